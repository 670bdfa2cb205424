"""How near a policy is to the actions of episodes that it was not trained on: what ``--validation`` reports beside the losses.

An episode counts with the transitions that the sampler would give of it: without its last one where it was truncated and the final
observation is missing. Nearness to the data says how well a policy imitates, not how good it is: read it beside the returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore

if TYPE_CHECKING:
    from offrld.engine import Learner
    from offrld.engine.learner.policy_networks import PolicyModule

BATCH = 1024  # observations per call of the policy: bounds the memory of pixels to 30 MB


def action_error(policy: Callable[[Any], np.ndarray], store: EpisodeStore, episodes: np.ndarray) -> float:
    """Mean over the transitions of the squared distance between the policy's action and the dataset's, summed over the dimensions, in the
    environment's units squared. ``policy`` takes observations ``[B, ...]`` (a dict of them for several fields) and gives ``[B, A]``.

    Raises:
        InvalidInput: the actions differ in shape, or the episodes hold no transition.
    """
    return _error((policy(observation), action) for observation, action in _batches(store, episodes))


def action_match(policy: Callable[[Any], np.ndarray], store: EpisodeStore, episodes: np.ndarray) -> float:
    """Share of the transitions in which the policy's discrete action ``[B]`` is the dataset's. Arguments and errors as `action_error`."""
    return _match((policy(observation), action) for observation, action in _batches(store, episodes))


def evaluate_offline(learner: Learner) -> dict[str, dict[int, float]]:
    """``{"action_match" | "action_error": {seed: value}}`` of the learner's policies on its held-out episodes; empty without any."""
    store, episodes = learner.store, np.asarray(learner.holdout)
    if store is None or not any(True for _ in _batches(store, episodes)):
        return {}
    name, metric = ("action_match", _match) if store.schema.action.discrete else ("action_error", _error)
    return {name: {seed: metric(_replayed(learner.policy(seed), store, episodes)) for seed in learner.seeds}}


def _error(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Of the policy's and the dataset's actions, in batches."""
    total, count = 0.0, 0
    for predicted, action in pairs:
        total += float(np.square(_of_shape(predicted, action).astype(np.float64) - action).sum())
        count += len(action)
    return total / _some(count)


def _match(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    equal, count = 0, 0
    for predicted, action in pairs:
        equal += int((_of_shape(predicted, action) == action).sum())
        count += len(action)
    return equal / _some(count)


def _replayed(policy: PolicyModule, store: EpisodeStore, episodes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The policy's actions and the dataset's at every transition. It sees the episode up to there as it was: the frames that it stacks,
    and a sequence model the steps of its context, asked for the return that the episode had."""
    import torch

    from offrld.engine.learner.data import observation_column, stacked_rows
    from offrld.engine.learner.sequence_policy import SequencePolicy

    sequence = policy if isinstance(policy, SequencePolicy) else None
    fields = list(policy.space.observation)
    reward, action = store.column("reward"), store.column("action")
    for first, steps, rows in _rows(store, episodes, BATCH if sequence is None else BATCH // sequence.context_size):
        with torch.no_grad():
            if sequence is not None:
                earned = float(np.sum(reward[first : first + steps], dtype=np.float64))
                predicted = sequence(sequence.recorded(store, first, rows, earned))[0]
            else:
                seen = {
                    name: torch.from_numpy(stacked_rows(observation_column(store, name), rows, first, policy.space.frame_stack))
                    for name in fields
                }
                predicted = policy(seen)
        yield predicted.numpy(), action[rows]


def _rows(store: EpisodeStore, episodes: Iterable[int], size: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """An episode's first row and number of steps, and the rows of its transitions, at most ``size`` at a time, never across episodes."""
    for number in episodes:
        episode, first = store.episodes[int(number)], int(store.episode_table["first_row"][int(number)])
        steps = episode.steps - (1 if episode.final_missing and not episode.terminated else 0)
        for start in range(0, steps, max(1, size)):
            yield first, episode.steps, first + np.arange(start, min(start + max(1, size), steps))


def _batches(store: EpisodeStore, episodes: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """Observations and actions of the episodes' transitions, at most `BATCH` at a time."""
    for number in np.asarray(episodes):
        for first, _, rows in _rows(store, [number], BATCH):
            fields, inside = store.episodes[int(number)].observation, slice(rows[0] - first, rows[-1] + 1 - first)
            observation = {name: array[inside] for name, array in fields.items()} if isinstance(fields, dict) else fields[inside]
            yield observation, store.episodes[int(number)].action[inside]


def _of_shape(predicted: np.ndarray, action: np.ndarray) -> np.ndarray:
    predicted = np.asarray(predicted)
    if predicted.shape[:1] != action.shape[:1] or predicted.size != action.size:
        message = f"the policy gives actions of shape {predicted.shape} where the dataset has {action.shape}"
        raise InvalidInput(message, hint="use a policy of this dataset")
    return predicted.reshape(action.shape)


def _some(count: int) -> int:
    if not count:
        raise InvalidInput("the held-out episodes have no transition", hint="hold out more, or longer, episodes")
    return count


__all__ = ["action_error", "action_match", "evaluate_offline"]
