"""Time per batch of other replay buffers on the works of `benchmarks.store`, run by it in a virtual environment of their own.

    python store_peers.py TRANSITIONS    prints {"peer": {"work": microseconds}} of d3rlpy, cpprb, Stable-Baselines3, TorchRL, as installed

Medians over rounds; one thread; observation 17, action 6, float32, episodes of 1,000 steps.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

import numpy as np

EPISODE = 1000
PLAIN, WINDOWS, PRIORITIZED = "256 transitions", "64 windows of 20", "prioritized 256: sample + update"
Works = dict[str, Callable[[], object]]


class Data:
    """Flat arrays of the transitions."""

    def __init__(self, count: int) -> None:
        noise = np.random.default_rng(0)
        self.observation = noise.standard_normal((count, 17), np.float32)
        self.next_observation = np.roll(self.observation, -1, axis=0)
        self.action = noise.random((count, 6), np.float32)
        self.reward = noise.random(count, np.float32)
        self.last = np.arange(1, count + 1) % EPISODE == 0
        self.priorities = noise.random(256).astype(np.float32)


def d3rlpy_works(data: Data, folder: str) -> Works:
    import d3rlpy

    no_end = np.zeros(len(data.reward), np.float32)
    buffer = d3rlpy.dataset.MDPDataset(data.observation, data.action, data.reward, no_end, data.last.astype(np.float32))
    return {PLAIN: lambda: buffer.sample_transition_batch(256), WINDOWS: lambda: buffer.sample_trajectory_batch(64, 20)}


def cpprb_works(data: Data, folder: str) -> Works:
    import cpprb

    count = len(data.reward)
    fields = {"obs": {"shape": 17}, "act": {"shape": 6}, "rew": {}, "next_obs": {"shape": 17}, "done": {}}
    plain, weighted = cpprb.ReplayBuffer(count, fields), cpprb.PrioritizedReplayBuffer(count, fields, alpha=0.6)
    for buffer in (plain, weighted):
        buffer.add(obs=data.observation, act=data.action, rew=data.reward, next_obs=data.next_observation, done=np.zeros(count))

    def prioritized() -> None:
        weighted.update_priorities(weighted.sample(256, beta=0.4)["indexes"], data.priorities)

    return {PLAIN: lambda: plain.sample(256), PRIORITIZED: prioritized}


def sb3_works(data: Data, folder: str) -> Works:
    from gymnasium.spaces import Box
    from stable_baselines3.common.buffers import ReplayBuffer

    count = len(data.reward)
    buffer = ReplayBuffer(count, Box(-9, 9, (17,), np.float32), Box(-1, 1, (6,), np.float32), device="cpu")
    buffer.observations[:, 0], buffer.next_observations[:, 0] = data.observation, data.next_observation
    buffer.actions[:, 0], buffer.rewards[:, 0], buffer.full = data.action, data.reward, True
    return {PLAIN: lambda: buffer.sample(256)}


def torchrl_works(data: Data, folder: str) -> Works:
    import torch
    from tensordict import TensorDict
    from torchrl.data import LazyMemmapStorage, TensorDictPrioritizedReplayBuffer, TensorDictReplayBuffer
    from torchrl.data.replay_buffers.samplers import SliceSampler

    count = len(data.reward)
    rows = TensorDict({"observation": torch.from_numpy(data.observation), "action": torch.from_numpy(data.action),
                       "next": {"observation": torch.from_numpy(data.next_observation), "reward": torch.from_numpy(data.reward)},
                       "episode": torch.arange(count) // EPISODE}, [count])

    def storage() -> LazyMemmapStorage:
        return LazyMemmapStorage(count, scratch_dir=tempfile.mkdtemp(dir=folder))

    plain = TensorDictReplayBuffer(storage=storage(), batch_size=256)
    slices = TensorDictReplayBuffer(storage=storage(), batch_size=64 * 20, sampler=SliceSampler(
        num_slices=64, traj_key="episode", cache_values=True))
    for buffer in (plain, slices):
        buffer.extend(rows)
    works: Works = {PLAIN: plain.sample, WINDOWS: slices.sample}
    try:
        weighted = TensorDictPrioritizedReplayBuffer(alpha=0.6, beta=0.4, storage=storage(), batch_size=256)
    except RuntimeError as error:  # its compiled trees do not load beside every torch
        print(f"TorchRL's prioritized buffer is left out: {error}", file=sys.stderr)
        return works
    weighted.extend(rows)
    errors = torch.from_numpy(data.priorities)

    def prioritized() -> None:
        batch = weighted.sample()
        batch["td_error"] = errors
        weighted.update_tensordict_priority(batch)

    return {**works, PRIORITIZED: prioritized}


def median(work: Callable[[], object], seconds: float = 1.0) -> float:
    """Microseconds per call."""
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main(count: int) -> None:
    warnings.simplefilter("ignore")
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)
    data, results = Data(count), {}
    with tempfile.TemporaryDirectory() as folder:
        for peer, make in (("d3rlpy", d3rlpy_works), ("cpprb", cpprb_works), ("SB3", sb3_works), ("TorchRL", torchrl_works)):
            try:
                works = make(data, folder)
            except ImportError as error:
                print(f"{peer} is left out: {error}", file=sys.stderr)
                continue
            results[peer] = {name: round(median(work), 1) for name, work in works.items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]))
