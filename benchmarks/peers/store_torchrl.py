"""TorchRL's memory-mapped buffers on the works of the store's benchmark."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from store_data import (
    ALPHA,
    BETA,
    ENVIRONMENTS,
    EPISODE,
    FRAME_EPISODE,
    GAMMA,
    N_STEPS,
    STACK,
    STEPS,
    Data,
    median_seconds,
    median_us,
    seconds_of,
)
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, ReplayBuffer, TensorDictPrioritizedReplayBuffer, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SliceSampler
from torchrl.envs.transforms import CatFrames, Compose, MultiStepTransform, UnsqueezeTransform


def storage(count: int, folder: Path) -> LazyMemmapStorage:
    return LazyMemmapStorage(count, scratch_dir=tempfile.mkdtemp(dir=folder))


def rows(observation: np.ndarray, action: np.ndarray, reward: Any, after: np.ndarray, ends: np.ndarray) -> TensorDict:
    done = torch.from_numpy(ends).reshape(-1, 1)
    count = len(observation)
    following = {
        "observation": torch.from_numpy(after),
        "reward": torch.as_tensor(reward).reshape(-1, 1),
        "done": done,
        "truncated": done,
        "terminated": torch.zeros_like(done),
    }
    return TensorDict({"observation": torch.from_numpy(observation), "action": torch.from_numpy(action), "next": following}, [count])


def all_rows(data: Data) -> TensorDict:
    observations, actions, rewards, following = data.flat
    table = rows(observations, actions, rewards, following, data.ends)
    table["episode"] = torch.arange(data.transitions) // EPISODE
    return table


def filled(buffer: Any, data: Data) -> Any:
    buffer.extend(all_rows(data))
    return buffer


def sample(size: int) -> Any:
    def work(data: Data, folder: Path) -> float:
        return median_us(filled(TensorDictReplayBuffer(storage=storage(data.transitions, folder), batch_size=size), data).sample)

    return work


def windows(data: Data, folder: Path) -> float:
    slices = SliceSampler(num_slices=64, traj_key="episode", cache_values=True)
    buffer = TensorDictReplayBuffer(storage=storage(data.transitions, folder), batch_size=64 * 20, sampler=slices)
    return median_us(filled(buffer, data).sample)


def n_step(data: Data, folder: Path) -> float:
    """Measure n-step batches. Its transform computes the returns when the rows are written, an episode at a time."""
    buffer = TensorDictReplayBuffer(storage=storage(data.transitions, folder), batch_size=256)
    buffer.append_transform(MultiStepTransform(n_steps=N_STEPS, gamma=GAMMA))
    found = all_rows(data)
    for start in range(0, data.transitions, EPISODE):
        buffer.extend(found[start : start + EPISODE])
    return median_us(buffer.sample)


def stacks(data: Data, folder: Path) -> float:
    """Measure frames that are stored once and stacked while sampling, by the transform and the sampler that CatFrames makes."""
    add_axis = UnsqueezeTransform(dim=-3, in_keys=["pixels", ("next", "pixels")], out_keys=["stack", ("next", "stack")])
    stacking = CatFrames(N=STACK, dim=-3, in_keys=["stack"], padding="constant", reset_key="_reset")
    transform, sampler = stacking.make_rb_transform_and_sampler(batch_size=32, traj_key="episode", cache_values=True, strict_length=False)
    buffer = ReplayBuffer(storage=storage(data.frames, folder), sampler=sampler, batch_size=32, transform=Compose(add_axis, transform))
    for number, (frames, actions) in enumerate(data.frame_episodes()):
        done = torch.arange(1, FRAME_EPISODE + 1).reshape(-1, 1) == FRAME_EPISODE
        pixels = torch.from_numpy(frames)
        rows = {
            "pixels": pixels[:-1],
            "action": torch.from_numpy(actions),
            "episode": torch.full((FRAME_EPISODE,), number),
            "done": torch.zeros_like(done),
            "is_init": done.roll(1, 0),
            "next": {"pixels": pixels[1:], "done": done},
        }
        buffer.extend(TensorDict(rows, [FRAME_EPISODE]))
    return median_us(buffer.sample)


def prioritized(data: Data, folder: Path) -> float:
    try:
        import torchrl._torchrl  # noqa: F401
    except ImportError as error:
        symbol = str(error).partition(": ")[2]
        raise RuntimeError(f"its compiled trees do not load beside torch {torch.__version__}: {symbol[:60]}...") from error
    buffer = TensorDictPrioritizedReplayBuffer(alpha=ALPHA, beta=BETA, storage=storage(data.transitions, folder), batch_size=256)
    filled(buffer, data)
    errors = torch.from_numpy(data.priorities)

    def work() -> None:
        batch = buffer.sample()
        batch["td_error"] = errors
        buffer.update_tensordict_priority(batch)

    return median_us(work)


def opened(data: Data, folder: Path) -> float:
    filled(TensorDictReplayBuffer(storage=storage(data.transitions, folder), batch_size=256), data).dumps(folder / "dump")

    def work() -> None:
        TensorDictReplayBuffer(storage=storage(data.transitions, folder), batch_size=256).loads(folder / "dump")

    return median_seconds(work) * 1e3


def write(data: Data, folder: Path) -> float:
    found = all_rows(data)
    episodes = [found[start : start + EPISODE] for start in range(0, data.transitions, EPISODE)]

    def work() -> None:
        buffer = TensorDictReplayBuffer(storage=storage(data.transitions, folder), batch_size=256)
        for episode in episodes:
            buffer.extend(episode)

    return data.transitions / median_seconds(work)


def step(data: Data, folder: Path) -> float:
    steps = data.steps(STEPS // 20)

    def work() -> None:
        buffer = TensorDictReplayBuffer(storage=storage(data.transitions, folder), batch_size=256)
        for observation, action, reward, after, last in steps:
            buffer.add(
                TensorDict(
                    {
                        "observation": torch.from_numpy(observation),
                        "action": torch.from_numpy(action),
                        "next": {"observation": torch.from_numpy(after), "reward": reward, "done": last},
                    }
                )
            )

    return len(steps) / seconds_of(work)


def step_batch(data: Data, folder: Path) -> float:
    batches = data.batches(STEPS)

    def work() -> None:
        buffer = TensorDictReplayBuffer(storage=storage(data.transitions, folder), batch_size=256)
        for observation, action, reward, after, last in batches:
            buffer.extend(rows(observation, action, reward, after, np.full(ENVIRONMENTS, last)))

    return len(batches) * ENVIRONMENTS / seconds_of(work)


WORKS = {
    "sample 256": sample(256),
    "sample 4096": sample(4096),
    "stacks": stacks,
    "windows": windows,
    "n-step": n_step,
    "prioritized": prioritized,
    "open": opened,
    "write": write,
    "step": step,
    "step batch": step_batch,
}
