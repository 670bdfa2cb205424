"""The batches of a run: its dataset, and the feeds that provide each update's batch."""

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
    """A choice of samples. The default is all training episodes, drawn with replacement.

    Attributes:
        arguments: arguments of the sampler that replace the default ones.
        store: another store with the same fields, used as a whole; None: the run's own.
        offset: the number of a batch in the feeds minus the number of its update.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    store: EpisodeStore | None = None
    offset: int = 0


USUAL = Selection()


@dataclass(frozen=True)
class Feeds:
    """One feed per view of the training state, for ordinary stages and for stages of single steps.

    Attributes:
        kind: the kind of source that the samples come from (`SourceChoice.feed`).
    """

    several_steps: list[Feed]
    single_steps: list[Feed]
    kind: str
    selection: Selection = USUAL

    def __bool__(self) -> bool:
        return bool(self.several_steps)

    def of(self, stage: Stage) -> list[Feed]:
        """Return the feeds of a stage."""
        return self.single_steps if stage.single_steps else self.several_steps

    def batches(self, stage: Stage, k: int) -> list[Any]:
        """Return each view's batch for update ``k``."""
        return [feed.batch(k + self.selection.offset) for feed in self.of(stage)]

    def close(self) -> None:
        """Release threads and memory."""
        for feed in {id(feed): feed for feed in (*self.several_steps, *self.single_steps)}.values():
            feed.source.close()


NO_FEEDS = Feeds([], [], "none")


class TrainingData:
    """The dataset of a run, from which it opens feeds.

    Args:
        training, holdout: numbers of the training episodes and of the held-out ones.
        sources: opens the sources of ``store``.
        policy_actions: an evaluated policy's actions at every row, which become the batches' next actions.
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
        """Open the feeds of a run."""
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
        """Open a feed of the held-out episodes for one stage, with the same batches for every seed."""
        changes = {"n_steps": 1} if stage.single_steps and getattr(run.config, "n_steps", 1) > 1 else {}
        return self._feed(run, self.sources, (0,), self._numbers(self.holdout), False, ahead=False, changes=changes)

    def _numbers(self, episodes: np.ndarray) -> np.ndarray | None:
        """Return numbers of episodes in the form that samplers take: None for all."""
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
