"""The batches of a run: the dataset that it trains on, and the feeds that give each update its batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offrl_store import EpisodeStore
from offrld.engine.batches.feed import Feed, request_of
from offrld.engine.batches.source_choice import SourceChoice
from offrld.engine.definition.algorithm import Stage
from offrld.engine.definition.run import Run


@dataclass(frozen=True)
class Selection:
    """A choice of samples other than the usual one: all training episodes, drawn with replacement.

    Attributes:
        arguments: of the sampler, in place of the usual ones.
        store: another store with the same fields, used as a whole; None: the run's own.
        offset: the feeds' number of a batch minus the number of its update.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    store: EpisodeStore | None = None
    offset: int = 0


USUAL = Selection()


@dataclass(frozen=True)
class Feeds:
    """One feed per view of the training state, for ordinary stages and for stages of single steps.

    Attributes:
        kind: the source of the samples (`SourceChoice.feed`).
    """

    several_steps: list[Feed]
    single_steps: list[Feed]
    kind: str
    selection: Selection = USUAL

    def __bool__(self) -> bool:
        return bool(self.several_steps)

    def of(self, stage: Stage) -> list[Feed]:
        """The feeds of a stage."""
        return self.single_steps if stage.single_steps else self.several_steps

    def batches(self, stage: Stage, k: int) -> list[Any]:
        """The batch of update ``k`` for each view."""
        return [feed.batch(k + self.selection.offset) for feed in self.of(stage)]

    def close(self) -> None:
        """Release threads and memory."""
        for feed in {id(feed): feed for feed in (*self.several_steps, *self.single_steps)}.values():
            feed.source.close()


NO_FEEDS = Feeds([], [], "none")


class TrainingData:
    """The dataset of a run, and what opens its feeds.

    Args:
        training, holdout: numbers of the episodes that are trained on, and of those that are not.
        sources: opens the sources of ``store``.
        policy_actions: actions of an evaluated policy at every row, which become the next actions of batches.
        log: receives one-line messages.
    """

    def __init__(
        self,
        store: EpisodeStore,
        training: np.ndarray,
        holdout: np.ndarray,
        sources: SourceChoice,
        *,
        policy_actions: np.ndarray | None,
        log: Callable[[str], None],
    ) -> None:
        self.store, self.training, self.holdout, self.sources = store, training, holdout, sources
        self._policy_actions, self._log = policy_actions, log

    def open(self, run: Run, selection: Selection = USUAL) -> Feeds:
        """The feeds of a run."""
        if selection.store is None:
            sources, episodes = self.sources, self._numbers(self.training)
        else:
            sources, episodes = SourceChoice(selection.store, run.device, "host", self._log), None

        def opened(**changes: Any) -> list[Feed]:
            changes = {**selection.arguments, **changes}
            return [self._feed(run, sources, seeds, episodes, run.stacked, changes=changes) for seeds in run.groups]

        feeds = opened()
        differs = getattr(run.config, "n_steps", 1) > 1 and any(stage.single_steps for stage in run.stages)
        return Feeds(feeds, opened(n_steps=1) if differs else feeds, sources.feed, selection)

    def open_holdout(self, run: Run, stage: Stage) -> Feed:
        """A feed of the held-out episodes for one stage; the same batches for every seed."""
        changes = {"n_steps": 1} if stage.single_steps and getattr(run.config, "n_steps", 1) > 1 else {}
        return self._feed(run, self.sources, (0,), self._numbers(self.holdout), False, ahead=False, changes=changes)

    def _numbers(self, episodes: np.ndarray) -> np.ndarray | None:
        """Numbers of episodes as samplers take them: None for all."""
        return None if len(episodes) == len(self.store) else episodes

    def _feed(
        self,
        run: Run,
        sources: SourceChoice,
        seeds: tuple[int, ...],
        episodes: np.ndarray | None,
        stacked: bool,
        *,
        ahead: bool = True,
        changes: Mapping[str, Any],
    ) -> Feed:
        request = request_of(
            run, sources.store, seeds, stacked=stacked, episodes=episodes, policy_actions=self._policy_actions, changes=changes
        )
        return Feed(run, request, sources.open(request, ahead=ahead))
