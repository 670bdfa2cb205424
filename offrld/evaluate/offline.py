"""How near a policy is to the actions of episodes that it was not trained on: what ``--validation`` reports beside the losses.

An episode counts with the transitions that the sampler would give of it: without its last one where it was truncated and the final
observation is missing. Nearness to the data says how well a policy imitates, not how good it is: read it beside the returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore

if TYPE_CHECKING:
    from torch import nn

    from offrld.engine import Learner

BATCH = 1024  # observations per call of the policy: bounds the memory of pixels to 30 MB


def action_error(policy: Callable[[Any], np.ndarray], store: EpisodeStore, episodes: np.ndarray) -> float:
    """Mean over the transitions of the squared distance between the policy's action and the dataset's, summed over the dimensions, in the
    environment's units squared. ``policy`` takes observations ``[B, ...]`` (a dict of them for several fields) and gives ``[B, A]``.

    Raises:
        InvalidInput: the actions differ in shape, or the episodes hold no transition.
    """
    total, count = 0.0, 0
    for observation, action in _batches(store, episodes):
        given = _of_shape(policy(observation), action)
        total += float(np.square(given.astype(np.float64) - action).sum())
        count += len(action)
    return total / _some(count)


def action_match(policy: Callable[[Any], np.ndarray], store: EpisodeStore, episodes: np.ndarray) -> float:
    """Share of the transitions in which the policy's discrete action ``[B]`` is the dataset's. Arguments and errors as `action_error`."""
    equal, count = 0, 0
    for observation, action in _batches(store, episodes):
        equal += int((_of_shape(policy(observation), action) == action).sum())
        count += len(action)
    return equal / _some(count)


def evaluate_offline(learner: Learner) -> dict[str, dict[int, float]]:
    """``{"action_match" | "action_error": {seed: value}}`` of the learner's policies on its held-out episodes; empty without any."""
    store, episodes = learner.store, np.asarray(learner.holdout)
    if not any(True for _ in _batches(store, episodes)):
        return {}
    discrete = store.schema.action.discrete
    metric = action_match if discrete else action_error
    values = {seed: metric(as_function(learner.policy(seed)), store, episodes) for seed in learner.seeds}
    return {"action_match" if discrete else "action_error": values}


def as_function(module: nn.Module) -> Callable[[Any], np.ndarray]:
    """A policy module on the CPU as a function from arrays to arrays, for the metrics above."""
    import torch

    @torch.no_grad()
    def act(observation: Any) -> np.ndarray:
        if isinstance(observation, dict):
            return module(**{name: torch.from_numpy(np.array(array)) for name, array in observation.items()}).numpy()
        return module(torch.from_numpy(np.array(observation))).numpy()  # a copy: the store's arrays are read-only

    return act


def _batches(store: EpisodeStore, episodes: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """Observations and actions of the episodes' transitions, at most `BATCH` at a time, never across episodes."""
    for number in np.asarray(episodes):
        episode = store.episodes[int(number)]
        steps = episode.steps - (1 if episode.final_missing and not episode.terminated else 0)
        for start in range(0, steps, BATCH):
            rows = slice(start, min(start + BATCH, steps))
            fields = episode.observation
            observation = {name: array[rows] for name, array in fields.items()} if isinstance(fields, dict) else fields[rows]
            yield observation, episode.action[rows]


def _of_shape(given: np.ndarray, action: np.ndarray) -> np.ndarray:
    given = np.asarray(given)
    if given.shape[:1] != action.shape[:1] or given.size != action.size:
        message = f"the policy gives actions of shape {given.shape} where the dataset has {action.shape}"
        raise InvalidInput(message, hint="use a policy of this dataset")
    return given.reshape(action.shape)


def _some(count: int) -> int:
    if not count:
        raise InvalidInput("the held-out episodes have no transition", hint="hold out more, or longer, episodes")
    return count


__all__ = ["action_error", "action_match", "as_function", "evaluate_offline"]
