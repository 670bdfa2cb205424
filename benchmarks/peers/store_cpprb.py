"""cpprb on the works of the store's benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cpprb
import numpy as np
from store_data import (
    ACTION,
    ALPHA,
    BETA,
    ENVIRONMENTS,
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

FIELDS = {"obs": {"shape": OBSERVATION}, "act": {"shape": ACTION}, "rew": {}, "next_obs": {"shape": OBSERVATION}, "done": {}}


def fill(buffer: Any, data: Data) -> Any:
    """Fill a buffer episode by episode, as n-step returns require."""
    for observation, action, reward in zip(data.observation, data.action, data.reward, strict=True):
        buffer.add(obs=observation[:-1], act=action, rew=reward, next_obs=observation[1:], done=np.zeros(len(reward)))
        buffer.on_episode_end()
    return buffer


def plain(data: Data) -> Any:
    return fill(cpprb.ReplayBuffer(data.transitions, FIELDS), data)


def sample(size: int) -> Any:
    def work(data: Data, folder: Path) -> float:
        buffer = plain(data)
        return median_us(lambda: buffer.sample(size))

    return work


def n_step(data: Data, folder: Path) -> float:
    options = {"size": N_STEPS, "gamma": GAMMA, "rew": "rew", "next": "next_obs"}
    buffer = fill(cpprb.ReplayBuffer(data.transitions, FIELDS, Nstep=options), data)
    return median_us(lambda: buffer.sample(256))


def stacks(data: Data, folder: Path) -> float:
    """Measure its compressed stacks: each frame is stored once, the last axis is the stack."""
    fields = {"obs": {"shape": (84, 84, STACK), "dtype": np.uint8}, "act": {"dtype": np.int64}, "rew": {}, "done": {}}
    buffer = cpprb.ReplayBuffer(data.frames, fields, next_of="obs", stack_compress="obs")
    for frames, actions in data.frame_episodes():
        padded = np.concatenate([np.zeros((STACK - 1, 84, 84), np.uint8), frames])
        stacked = np.lib.stride_tricks.sliding_window_view(padded, STACK, axis=0)
        buffer.add(obs=stacked[:-1], act=actions, rew=np.zeros(len(actions)), next_obs=stacked[1:], done=np.zeros(len(actions)))
        buffer.on_episode_end()
    return median_us(lambda: buffer.sample(32))


def prioritized(data: Data, folder: Path) -> float:
    buffer = fill(cpprb.PrioritizedReplayBuffer(data.transitions, FIELDS, alpha=ALPHA), data)

    def work() -> None:
        buffer.update_priorities(buffer.sample(256, beta=BETA)["indexes"], data.priorities)

    return median_us(work)


def opened(data: Data, folder: Path) -> float:
    plain(data).save_transitions(folder / "rows.npz")

    def work() -> None:
        cpprb.ReplayBuffer(data.transitions, FIELDS).load_transitions(folder / "rows.npz")

    return median_seconds(work) * 1e3


def write(data: Data, folder: Path) -> float:
    return data.transitions / median_seconds(lambda: plain(data))


def step(data: Data, folder: Path) -> float:
    steps = data.steps(STEPS)

    def work() -> None:
        buffer = cpprb.ReplayBuffer(data.transitions, FIELDS)
        for observation, action, reward, after, last in steps:
            buffer.add(obs=observation, act=action, rew=reward, next_obs=after, done=0.0)
            if last:
                buffer.on_episode_end()

    return len(steps) / seconds_of(work)


def step_batch(data: Data, folder: Path) -> float:
    batches, done = data.batches(STEPS), np.zeros(ENVIRONMENTS)

    def work() -> None:
        buffer = cpprb.ReplayBuffer(data.transitions, FIELDS)
        for observation, action, reward, after, _ in batches:
            buffer.add(obs=observation, act=action, rew=reward, next_obs=after, done=done)

    return len(batches) * ENVIRONMENTS / seconds_of(work)


WORKS = {
    "sample 256": sample(256),
    "sample 4096": sample(4096),
    "stacks": stacks,
    "n-step": n_step,
    "prioritized": prioritized,
    "open": opened,
    "write": write,
    "step": step,
    "step batch": step_batch,
}
