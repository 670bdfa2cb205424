"""Compare a policy's actions with those of held-out episodes: ``--validation`` reports the result beside the losses.

The metrics use the transitions that the sampler would return: an episode that was truncated without a final observation loses its last one.
Agreement with the data shows how well a policy imitates, not how good it is: read it beside the returns.
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

BATCH = 1024  # observations per call of the policy: pixels take at most 30 MB


def action_error(policy: Callable[[Any], np.ndarray], store: EpisodeStore, episodes: np.ndarray) -> float:
    """Return the mean squared distance between the policy's actions and the dataset's, in the environment's units squared.

    The square is summed over the dimensions and averaged over the transitions.

    Args:
        policy: takes observations ``[B, ...]`` (a dict of them for several fields) and returns actions ``[B, A]``.
        episodes: their numbers.

    Raises:
        InvalidInput: the actions differ in shape, or the episodes have no transition.
    """
    return _error((policy(observation), action) for observation, action in _batches(store, episodes))


def action_match(policy: Callable[[Any], np.ndarray], store: EpisodeStore, episodes: np.ndarray) -> float:
    """Return the share of transitions whose discrete action the policy also chooses; for arguments and errors see `action_error`."""
    return _match((policy(observation), action) for observation, action in _batches(store, episodes))


def evaluate_offline(learner: Learner) -> dict[str, dict[int, float]]:
    """Return ``{"action_match" | "action_error": {seed: value}}`` of a learner's policies on its held-out episodes; empty without any."""
    store, episodes = learner.store, np.asarray(learner.holdout)
    if store is None or not any(True for _ in _batches(store, episodes)):
        return {}
    name, metric = ("action_match", _match) if store.schema.action.discrete else ("action_error", _error)
    return {name: {seed: metric(_replayed(learner.policy(seed), store, episodes)) for seed in learner.seeds}}


def _error(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the mean squared distance of pairs of batches: the policy's and the dataset's actions."""
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
    """Yield the policy's and the dataset's actions at every transition.

    The policy sees the recorded episode up to the transition: the frames that it stacks or, for a sequence model, the steps of its context
    with the episode's own return as the target.
    """
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
    """Yield an episode's first row, its number of steps, and the rows of at most ``size`` of its transitions; never across episodes."""
    for number in episodes:
        episode, first = store.episodes[int(number)], int(store.episode_table["first_row"][int(number)])
        steps = episode.steps - (1 if episode.final_missing and not episode.terminated else 0)
        for start in range(0, steps, max(1, size)):
            yield first, episode.steps, first + np.arange(start, min(start + max(1, size), steps))


def _batches(store: EpisodeStore, episodes: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield observations and actions of at most `BATCH` transitions, for all transitions of the episodes."""
    for number in np.asarray(episodes):
        for first, _, rows in _rows(store, [number], BATCH):
            fields, inside = store.episodes[int(number)].observation, slice(rows[0] - first, rows[-1] + 1 - first)
            observation = {name: array[inside] for name, array in fields.items()} if isinstance(fields, dict) else fields[inside]
            yield observation, store.episodes[int(number)].action[inside]


def _of_shape(predicted: np.ndarray, action: np.ndarray) -> np.ndarray:
    predicted = np.asarray(predicted)
    if predicted.shape[:1] != action.shape[:1] or predicted.size != action.size:
        message = f"the policy's actions have shape {predicted.shape}; the dataset's have {action.shape}"
        raise InvalidInput(message, hint="use a policy that was trained on this dataset")
    return predicted.reshape(action.shape)


def _some(count: int) -> int:
    if not count:
        raise InvalidInput("the held-out episodes have no transition", hint="hold out more or longer episodes")
    return count


__all__ = ["action_error", "action_match", "evaluate_offline"]
