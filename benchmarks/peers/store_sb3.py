"""Stable-Baselines3 on the works of the store's benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from store_data import (
    ACTION,
    ACTIONS,
    ENVIRONMENTS,
    FRAME_EPISODE,
    GAMMA,
    N_STEPS,
    OBSERVATION,
    STACK,
    STEPS,
    Data,
    median_seconds,
    median_us,
    seconds_of,
)

SPACES = Box(-9, 9, (OBSERVATION,), np.float32), Box(-1, 1, (ACTION,), np.float32)


def fill(buffer: Any, data: Data) -> Any:
    """Fill a buffer's arrays directly, because its `add` takes one step at a time."""
    buffer.observations[:, 0], buffer.actions[:, 0], buffer.rewards[:, 0], buffer.next_observations[:, 0] = data.flat
    buffer.dones[:, 0] = buffer.timeouts[:, 0] = data.ends
    buffer.full = True
    return buffer


def plain(data: Data) -> Any:
    return fill(ReplayBuffer(data.transitions, *SPACES, device="cpu"), data)


def sample(size: int) -> Any:
    def work(data: Data, folder: Path) -> float:
        buffer = plain(data)
        return median_us(lambda: buffer.sample(size))

    return work


def n_step(data: Data, folder: Path) -> float:
    buffer = fill(NStepReplayBuffer(data.transitions, *SPACES, device="cpu", n_steps=N_STEPS, gamma=GAMMA), data)
    return median_us(lambda: buffer.sample(256))


def stacks(data: Data, folder: Path) -> float:
    """Measure stacks that are stored whole, each once: the next stack is in the following row (`optimize_memory_usage`)."""
    buffer = ReplayBuffer(
        data.frames,
        Box(0, 255, (STACK, 84, 84), np.uint8),
        Discrete(ACTIONS),
        device="cpu",
        optimize_memory_usage=True,
        handle_timeout_termination=False,
    )
    for number, (frames, actions) in enumerate(data.frame_episodes()):
        rows = slice(number * FRAME_EPISODE, (number + 1) * FRAME_EPISODE)
        for k in range(STACK):
            missing = STACK - 1 - k
            buffer.observations[rows, 0, k][missing:] = frames[: FRAME_EPISODE - missing]
        buffer.actions[rows, 0, 0] = actions
    buffer.full = True
    return median_us(lambda: buffer.sample(32))


def opened(data: Data, folder: Path) -> float:
    save_to_pkl(folder / "buffer.pkl", plain(data))
    return median_seconds(lambda: load_from_pkl(folder / "buffer.pkl")) * 1e3


def appended(rows: list[tuple[Any, ...]], count: int, data: Data) -> float:
    """Measure steps per second of `add`, which takes one step of all environments."""
    done = np.zeros(count)
    infos: list[dict[str, Any]] = [{} for _ in range(count)]
    rows = [(observation, after, action, np.asarray(reward)) for observation, action, reward, after, _ in rows]

    def work() -> None:
        buffer = ReplayBuffer(data.transitions, *SPACES, device="cpu", n_envs=count)
        for observation, after, action, reward in rows:
            buffer.add(observation, after, action, reward, done, infos)

    return len(rows) * count / seconds_of(work)


def step(data: Data, folder: Path) -> float:
    return appended(data.steps(STEPS), 1, data)


def step_batch(data: Data, folder: Path) -> float:
    return appended(data.batches(STEPS), ENVIRONMENTS, data)


WORKS = {
    "sample 256": sample(256),
    "sample 4096": sample(4096),
    "stacks": stacks,
    "n-step": n_step,
    "open": opened,
    "step": step,
    "step batch": step_batch,
}
