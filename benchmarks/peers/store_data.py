"""The data of both sides of the store's benchmark, and its clock. NumPy only: the peers' environment has no offrl."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

EPISODE, FRAME_EPISODE = 1000, 500  # steps
OBSERVATION, ACTION, ACTIONS = 17, 6, 6
STACK, N_STEPS, GAMMA, ALPHA, BETA = 4, 3, 0.99, 0.6, 0.4
STEPS = 100_000  # steps in a measurement of appending step by step
ENVIRONMENTS = 8


@dataclass(frozen=True)
class Data:
    """Transitions of observation 17 and action 6, float32, in truncated episodes of 1,000 steps, and 84x84 frames in episodes of 500."""

    transitions: int
    frames: int

    @cached_property
    def observation(self) -> np.ndarray:
        """Observations with the final one of each episode: float32 [episodes, T + 1, 17]."""
        noise = np.random.default_rng(0)
        return noise.standard_normal((self.transitions // EPISODE, EPISODE + 1, OBSERVATION), np.float32)

    @cached_property
    def action(self) -> np.ndarray:
        """Actions in 0..1: float32 [episodes, T, 6]."""
        return np.random.default_rng(1).random((self.transitions // EPISODE, EPISODE, ACTION), np.float32)

    @cached_property
    def reward(self) -> np.ndarray:
        """Rewards: float32 [episodes, T]."""
        return np.random.default_rng(2).random((self.transitions // EPISODE, EPISODE), np.float32)

    @cached_property
    def flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations, actions, rewards and next observations of all transitions, each [N, ...]."""
        return (
            self.observation[:, :-1].reshape(-1, OBSERVATION),
            self.action.reshape(-1, ACTION),
            self.reward.reshape(-1),
            self.observation[:, 1:].reshape(-1, OBSERVATION),
        )

    @cached_property
    def ends(self) -> np.ndarray:
        """Whether a transition is the last of its episode: bool [N]."""
        return np.arange(1, self.transitions + 1) % EPISODE == 0

    @cached_property
    def priorities(self) -> np.ndarray:
        return np.random.default_rng(3).random(256).astype(np.float32)

    def frame_episodes(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield frames uint8 [T + 1, 84, 84] and actions int64 [T] of each episode, made on demand."""
        noise = np.random.default_rng(4)
        for _ in range(self.frames // FRAME_EPISODE):
            yield noise.integers(0, 255, (FRAME_EPISODE + 1, 84, 84), np.uint8), noise.integers(0, ACTIONS, FRAME_EPISODE)

    def steps(self, count: int) -> list[tuple[np.ndarray, np.ndarray, float, np.ndarray, bool]]:
        """Make single steps before a measurement: observation, action, reward, next observation, whether the episode ends."""
        rows = []
        for i in range(count):
            e, t = divmod(i, EPISODE)
            observation, reward = self.observation[e], float(self.reward[e, t])
            rows.append((observation[t], self.action[e, t], reward, observation[t + 1], t == EPISODE - 1))
        return rows

    def batches(self, count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]]:
        """Make steps of 8 environments at once, ``count`` in all: as ``steps``, with 8 C-contiguous rows in every array."""
        rows = []
        observation, action, reward = (
            np.ascontiguousarray(x[:ENVIRONMENTS].swapaxes(0, 1)) for x in (self.observation, self.action, self.reward)
        )
        for i in range(count // ENVIRONMENTS):
            t = i % EPISODE
            rows.append((observation[t], action[t], reward[t], observation[t + 1], t == EPISODE - 1))
        return rows


def median_us(work: Callable[[], object], seconds: float = 1.5) -> float:
    """Measure the median microseconds per call, over at least nine calls after a first one."""
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 9:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    return statistics.median(seconds_of(work) for _ in range(repeats))
