"""d3rlpy on the works of the store's benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from d3rlpy.dataset import Episode, FrameStackTransitionPicker, InfiniteBuffer, MultiStepTransitionPicker, ReplayBuffer
from store_data import GAMMA, N_STEPS, STACK, STEPS, Data, median_seconds, median_us, seconds_of


def episodes(data: Data) -> list[Episode]:
    """Make the episodes, of T steps each: d3rlpy has no place for a final observation."""
    return [
        Episode(observation[:-1], action, reward.reshape(-1, 1), False)
        for observation, action, reward in zip(data.observation, data.action, data.reward, strict=True)
    ]


def plain(data: Data, picker: Any = None) -> ReplayBuffer:
    return ReplayBuffer(InfiniteBuffer(), episodes=episodes(data), transition_picker=picker)


def sample(size: int) -> Any:
    def work(data: Data, folder: Path) -> float:
        buffer = plain(data)
        return median_us(lambda: buffer.sample_transition_batch(size))

    return work


def n_step(data: Data, folder: Path) -> float:
    buffer = plain(data, MultiStepTransitionPicker(n_steps=N_STEPS, gamma=GAMMA))
    return median_us(lambda: buffer.sample_transition_batch(256))


def windows(data: Data, folder: Path) -> float:
    buffer = plain(data)
    return median_us(lambda: buffer.sample_trajectory_batch(64, 20))


def stacks(data: Data, folder: Path) -> float:
    pixels = [
        Episode(frames[:-1, None], actions.reshape(-1, 1), np.zeros((len(actions), 1), np.float32), False)
        for frames, actions in data.frame_episodes()
    ]
    buffer = ReplayBuffer(InfiniteBuffer(), episodes=pixels, transition_picker=FrameStackTransitionPicker(STACK))
    return median_us(lambda: buffer.sample_transition_batch(32))


def opened(data: Data, folder: Path) -> float:
    with open(folder / "rows.h5", "w+b") as file:
        plain(data).dump(file)

    def work() -> None:
        with open(folder / "rows.h5", "rb") as file:
            ReplayBuffer.load(file, InfiniteBuffer())

    return median_seconds(work) * 1e3


def write(data: Data, folder: Path) -> float:
    whole = episodes(data)

    def work() -> None:
        buffer = ReplayBuffer(InfiniteBuffer(), episodes=whole[:1])
        for episode in whole[1:]:
            buffer.append_episode(episode)

    return data.transitions / median_seconds(work)


def step(data: Data, folder: Path) -> float:
    steps, first = data.steps(STEPS), episodes(data)[:1]

    def work() -> None:
        buffer = ReplayBuffer(InfiniteBuffer(), episodes=first)
        for observation, action, reward, _, last in steps:
            buffer.append(observation, action, reward)
            if last:
                buffer.clip_episode(False)

    return len(steps) / seconds_of(work)


WORKS = {
    "sample 256": sample(256),
    "sample 4096": sample(4096),
    "stacks": stacks,
    "windows": windows,
    "n-step": n_step,
    "open": opened,
    "write": write,
    "step": step,
}
