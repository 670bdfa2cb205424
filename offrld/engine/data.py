"""What training takes from the store beside batches: the split into training and held-out episodes, and fitted scalers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore, rng
from offrl_store.format import FINAL_MISSING
from offrld.engine.feed import Scalers
from offrld.engine.space import Space
from offrld.preprocess.scalers import Affine, fit, rows


def split(episodes: int, holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training and of the held-out episodes: the same for every seed, so that seeds compare on the same episodes."""
    if holdout == 0.0:
        return np.arange(episodes), np.empty(0, np.int64)
    count = max(1, round(episodes * holdout))
    if count >= episodes:
        raise InvalidInput(
            f"validation share {holdout:g} of {episodes} episodes leaves none to train on", hint="give a smaller share or more episodes"
        )
    keys = np.empty(episodes, np.float32)
    rng.uniform(0, 0, rng.stream_id("holdout"), keys)
    order = np.argsort(keys, kind="stable")
    return np.sort(order[count:]), np.sort(order[:count])


def observation_column(store: EpisodeStore, name: str) -> np.ndarray:
    """All rows of an observation field, by the name that `Space.observation` gives it."""
    return store.column(f"observation.{name}" if isinstance(store.schema.observation, dict) else "observation")


def fit_scalers(
    config: Any, store: EpisodeStore, space: Space, training: np.ndarray, dtype: torch.dtype, device: torch.device
) -> Scalers:
    """Fit the scalers that ``config`` asks for on the transitions of the ``training`` episodes.

    Continuous actions are scaled by their bounds wherever these differ from [-1, 1].
    """
    table = store.episode_table
    starts = np.zeros(len(store.column("reward")), bool)  # rows that start a transition
    steps = np.zeros_like(starts)                         # rows that hold a step (a reward)
    cut = table["flags"] == FINAL_MISSING                 # truncated without a final observation: the last step starts no transition
    for first, length, lost in zip(table["first_row"][training], table["steps"][training], cut[training], strict=True):
        starts[first : first + length - lost] = True
        steps[first : first + length] = True
    observation = {}
    for name in space.observation:
        column = observation_column(store, name)
        observation[name] = fit(config.observation_scaler, rows(column, starts), rows(column, starts), dtype, device)
    action = None
    if not space.discrete and not (np.all(space.low == -1.0) and np.all(space.high == 1.0)):
        action = Affine.between(space.low, space.high, dtype, device)
    reward = None
    if hasattr(config, "reward_scaler"):
        column = store.column("reward")
        reward = fit(config.reward_scaler, rows(column, steps), rows(column, steps), dtype, device)
    return Scalers(observation, action, reward)
