"""What training reads from the store besides batches: the split into training and held-out episodes, and the data for scalers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore, rng
from offrl_store.format import FINAL_MISSING
from offrld.engine.batches.feed import view_observation
from offrld.engine.definition.run import Scalers
from offrld.engine.definition.space import Space
from offrld.engine.learner.policy_networks import PolicyModule
from offrld.preprocess.rewards import REWARD_SCALERS, Clip, RewardScaler, fit_reward
from offrld.preprocess.scalers import OBSERVATION_SCALERS, ActionScaler, Affine, Own, Scaler, fit_action, fit_observation, is_wide, scaled
from offrld.preprocess.statistics import Blocks, extremes, rows

ROWS = 4096  # rows of an episode per call of a policy: bounds the memory for images


def split(episodes: int, holdout: float, chosen: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the training and of the held-out episodes, the same for every seed, so that seeds are comparable.

    Args:
        chosen: numbers of the episodes to use; None: all.
    """
    numbers = np.arange(episodes) if chosen is None else np.unique(np.asarray(chosen))
    if chosen is not None and (numbers.dtype.kind not in "iu" or not len(numbers) or numbers[0] < 0 or numbers[-1] >= episodes):
        raise InvalidInput(f"episodes must be some of the numbers 0 to {episodes - 1}", hint="for example store.select(min_return=...)")
    if holdout == 0.0:
        return numbers, np.empty(0, np.int64)
    count = max(1, round(len(numbers) * holdout))
    if count >= len(numbers):
        raise InvalidInput(
            f"holding out a fraction {holdout:g} of {len(numbers)} episodes leaves none to train on",
            hint="hold out a smaller fraction, or add episodes",
        )
    keys = np.empty(len(numbers), np.float32)
    rng.uniform(0, 0, rng.stream_id("holdout"), keys)
    order = np.argsort(keys, kind="stable")
    return np.sort(numbers[order[count:]]), np.sort(numbers[order[:count]])


def observation_column(store: EpisodeStore, name: str) -> np.ndarray:
    """Return all rows of an observation field, by its name in `Space.observation`."""
    return store.column(f"observation.{name}" if isinstance(store.schema.observation, dict) else "observation")


def spans_of(store: EpisodeStore, episodes: np.ndarray) -> list[tuple[int, int]]:
    """Return each episode's first row and the end of its transitions.

    A truncated episode without its final observation has one transition less than steps.
    """
    table = store.episode_table[episodes]
    return [
        (int(first), int(first + length - (flags == FINAL_MISSING)))
        for first, length, flags in zip(table["first_row"], table["steps"], table["flags"], strict=True)
    ]


def spread_rows(store: EpisodeStore, episodes: np.ndarray, most: int) -> np.ndarray:
    """Return the rows of at most ``most`` evenly spread transitions of some episodes, skipping rows that hold no transition."""
    spans = np.array(spans_of(store, episodes), np.int64).reshape(-1, 2)
    ends = np.cumsum(spans[:, 1] - spans[:, 0])
    total = int(ends[-1]) if len(ends) else 0
    if not total:
        return np.empty(0, np.int64)
    number = np.arange(total) if total <= most else np.arange(most) * total // most
    episode = np.searchsorted(ends, number, side="right")
    return spans[episode, 1] - (ends[episode] - number)


@dataclass(frozen=True)
class Dataset:
    """The training episodes of the pinned snapshot, as `Algorithm.prepare` sees them.

    Attributes:
        starts: the rows that start a transition, int64.
        inputs: the other jobs' models that the algorithm's settings name.
    """

    store: EpisodeStore
    space: Space
    scalers: Scalers
    episodes: np.ndarray
    dtype: torch.dtype
    device: torch.device
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def starts(self) -> np.ndarray:
        return np.concatenate([np.arange(first, end) for first, end in spans_of(self.store, self.episodes)])

    def observations(self, rows: np.ndarray) -> Tensor:
        """Return the scaled vectors ``[n, D]`` at these rows; raise `InvalidInput` for images and stacked frames."""
        if self.space.frame_stack > 1:
            raise InvalidInput("this algorithm does not support stacked frames", hint="set frame_stack=1")
        size = self.space.observation_size
        fields = {name: torch.from_numpy(observation_column(self.store, name)[rows]) for name in self.space.observation}
        vectors = view_observation(fields, self.scalers, self.dtype, self.device)
        assert isinstance(vectors, Tensor)  # `observation_size` refuses images
        return vectors.reshape(len(rows), size)

    def actions(self, rows: np.ndarray) -> Tensor:
        """Return the scaled actions ``[n, A]`` at these rows."""
        return scaled(self.scalers.action, torch.from_numpy(self.store.column("action")[rows]), self.dtype, self.device)


def action_range(store: EpisodeStore) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest action per dimension over all transitions: the bounds if a dataset declares none."""
    column, used = store.column("action"), np.zeros(len(store.column("reward")), bool)
    for first, end in spans_of(store, np.arange(len(store))):
        used[first:end] = True
    return extremes(lambda: rows(column, used))


def actions_of(policy: PolicyModule, store: EpisodeStore) -> np.ndarray:
    """Return a policy's greedy actions at every row of a store, in the form of its action column: ``[rows, A]`` or ``[rows]``.

    Each episode's frames are stacked as the policy needs them, with zeros before its first step.
    """
    k, fields = policy.space.frame_stack, list(policy.space.observation)
    actions = np.zeros_like(store.column("action"))
    for first, steps in zip(store.episode_table["first_row"].tolist(), store.episode_table["steps"].tolist(), strict=True):
        for start in range(first, first + steps + 1, ROWS):
            rows = np.arange(start, min(start + ROWS, first + steps + 1))
            observation = {name: torch.from_numpy(stacked_rows(observation_column(store, name), rows, first, k)) for name in fields}
            with torch.no_grad():
                actions[rows] = policy(observation).numpy().astype(actions.dtype)
    return actions


def stacked_rows(column: np.ndarray, rows: np.ndarray, first: int, k: int) -> np.ndarray:
    """Return the last ``k`` frames at each row, joined along the first axis, oldest first; zeros before the episode's row ``first``."""
    if k == 1:
        return column[rows]
    frames = []
    for back in range(k - 1, -1, -1):
        at = rows - back
        frame = column[np.maximum(at, first)]
        frame[at < first] = 0
        frames.append(frame if frame.ndim > 1 else frame[:, None])
    return np.concatenate(frames, axis=1)


def fit_scalers(config: Any, store: EpisodeStore, space: Space, training: np.ndarray, dtype: torch.dtype, device: torch.device) -> Scalers:
    """Fit the scalers that ``config`` selects on the transitions of the ``training`` episodes.

    They are fitted on single observations; with ``frame_stack`` they apply to each stacked frame. An algorithm without the setting
    ``action_scaler`` or ``reward_scaler`` uses the default.
    """
    reward, spans = store.column("reward"), spans_of(store, training)
    starts = np.zeros(len(reward), bool)  # rows that start a transition
    for first, end in spans:
        starts[first:end] = True

    def blocks(column: np.ndarray) -> Blocks:
        return lambda: rows(column, starts)

    columns = {name: observation_column(store, name) for name in space.observation}
    observation = fit_observation(config.observation_scaler, columns, {n: blocks(c) for n, c in columns.items()}, dtype, device)
    frames = getattr(config, "frame_stack", 1)
    observation = {name: scaler if scaler is None else scaler.stacked(frames) for name, scaler in observation.items()}
    action = None
    if not space.discrete:
        action = fit_action(getattr(config, "action_scaler", ActionScaler()), *space.bounds, dtype, device)
    scaler = fit_reward(
        getattr(config, "reward_scaler", RewardScaler()),
        blocks(reward),
        lambda: np.array([reward[first:end].sum(dtype=np.float64) for first, end in spans]),
        torch.float64 if is_wide(reward.dtype) else dtype,
        device,
    )
    return Scalers(observation, action, scaler)


def rebuild_scalers(
    config: Any, space: Space, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Scalers:
    """Rebuild the scalers of a training run from their `Scalers.tensors`, without its data.

    Args:
        dtype, device: dtype and device of training; None: those of the tensors.

    Raises:
        Unknown: the config names a scaler from a package that is not installed.
    """

    def parts(of: str) -> dict[str, torch.Tensor]:
        # Names of parts have no dot. A dot means another field: `state.goal` next to `state`.
        own = {name.removeprefix(f"{of}."): tensor for name, tensor in tensors.items() if name.startswith(f"{of}.")}
        own_dtype = None if of == "reward" else dtype
        if of.startswith("observation.") and is_wide(space.observation[of.removeprefix("observation.")][0]):
            own_dtype = torch.float64  # see `scaled`
        return {name: tensor.to(device or tensor.device, own_dtype or tensor.dtype) for name, tensor in own.items() if "." not in name}

    observation: dict[str, Scaler | None] = {}
    for name, (stored, shape) in space.observation.items():
        kind = config.observation_scaler.kind_of(name, stored, shape, several=len(space.observation) > 1)
        tensors_of = parts(f"observation.{name}")
        if kind not in OBSERVATION_SCALERS:
            observation[name] = Own.rebuilt(kind, tensors_of, len(shape), space.frame_stack)
        else:
            observation[name] = Affine(**tensors_of) if tensors_of else None
    action_parts = parts("action")
    action = Affine(**action_parts) if action_parts else None
    kind, reward_parts = getattr(config, "reward_scaler", RewardScaler()).type, parts("reward")
    if kind not in REWARD_SCALERS:
        reward: Scaler | None = Own.rebuilt(kind, reward_parts, 0)
    else:
        reward = (Clip if kind == "clip" else Affine)(**reward_parts) if reward_parts else None
    return Scalers(observation, action, reward)
