"""Environments that count, for tests of collecting: the counts alone determine what must be stored."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import gymnasium
import numpy as np

STRIDE = 1000.0


class Counting(gymnasium.Env):
    """Observation: [episode * 1000 + step, the last action]. Ends after ``lengths[episode]`` steps, terminated if that is even.

    Writes every observation into the same array, as some simulators do. ``fail_at``: the step of all that raises, or (``hang_s``) hangs.
    """

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, lengths: tuple[int, ...] = (3, 4, 5), fail_at: int | None = None, hang_s: float = 0.0, slow_s: float = 0.0) -> None:
        self.lengths, self.fail_at, self.hang_s, self.slow_s = lengths, fail_at, hang_s, slow_s
        self.row = np.zeros(2, np.float32)
        self.episode, self.total, self.seeds = -1, 0, []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode += 1
        self.at = 0
        self.row[:] = self.episode * STRIDE, 0
        return self.row, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.total += 1
        if self.total == self.fail_at:
            time.sleep(self.hang_s)
            if not self.hang_s:
                raise RuntimeError("the motor is off")
        time.sleep(self.slow_s)
        self.at += 1
        self.row[:] = self.episode * STRIDE + self.at, float(np.asarray(action).reshape(-1)[0])
        length = self.lengths[self.episode % len(self.lengths)]
        over = self.at == length
        return self.row, float(self.at), over and length % 2 == 0, over and length % 2 == 1, {}


class Pictures(gymnasium.Env):
    """One frame [1, 4, 4] of the step's number; 6 steps an episode."""

    action_space = gymnasium.spaces.Discrete(3)
    observation_space = gymnasium.spaces.Box(0, 255, (1, 4, 4), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = 1
        return np.full((1, 4, 4), self.at, np.uint8), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at += 1
        return np.full((1, 4, 4), self.at, np.uint8), 1.0, self.at == 7, False, {}


class Fresh(Counting):
    """Returns its own arrays."""

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return super().reset(**options)[0].copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        row, *rest = super().step(action)
        return row.copy(), *rest


def counting(**options: Any) -> Any:
    """Return a maker of `Counting` that spawned processes can import."""
    return partial(Counting, **options)
