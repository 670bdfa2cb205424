"""Steps per second of another library that collects in CartPole-v1 with a 256x256 policy; runs in the peers' interpreter.

collect_peer.py torchrl|sb3|d3rlpy STEPS FOLDER     runs one round per line of input and prints its figures as JSON
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable

import gymnasium
import torch

ENV = "CartPole-v1"
BATCH = 1000


def torchrl(steps: int, folder: str) -> Callable[[], object]:
    """Return a round of TorchRL's collector into a memory-mapped buffer."""
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.data import LazyMemmapStorage, ReplayBuffer
    from torchrl.envs import GymEnv
    from torchrl.modules import MLP

    class Greedy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = MLP(in_features=4, out_features=2, num_cells=[256, 256])

        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(self.net(observation).argmax(-1), 2)

    policy = TensorDictModule(Greedy(), in_keys=["observation"], out_keys=["action"])
    collector = Collector(lambda: GymEnv(ENV), policy, frames_per_batch=BATCH, total_frames=-1)
    buffer = ReplayBuffer(storage=LazyMemmapStorage(1_000_000, scratch_dir=tempfile.mkdtemp(dir=folder)))
    batches = iter(collector)

    def work() -> None:
        for _ in range(steps // BATCH):
            buffer.extend(next(batches).reshape(-1))

    return work


def sb3(steps: int, folder: str) -> Callable[[], object]:
    """Return a round of DQN's rollout into its buffer in memory, without updates."""
    from stable_baselines3 import DQN

    model = DQN(
        "MlpPolicy",
        ENV,
        policy_kwargs={"net_arch": [256, 256]},
        buffer_size=100_000,
        learning_starts=0,
        train_freq=BATCH,
        gradient_steps=0,
        exploration_initial_eps=0.0,
        exploration_final_eps=0.0,
        device="cpu",
    )
    return lambda: model.learn(steps // BATCH * BATCH, reset_num_timesteps=False)


def d3rlpy(steps: int, folder: str) -> Callable[[], object]:
    """Return a round of `collect` into a buffer in memory."""
    import d3rlpy as library

    env = gymnasium.make(ENV)
    factory = library.models.VectorEncoderFactory([256, 256])
    algorithm = library.algos.DQNConfig(encoder_factory=factory).create(device=False)
    algorithm.build_with_env(env)
    buffer = library.dataset.create_fifo_replay_buffer(limit=1_000_000, env=env)
    return lambda: algorithm.collect(env, buffer, n_steps=steps, show_progress=False)


def main(name: str, steps: int, folder: str) -> None:
    torch.set_num_threads(1)
    work = {"torchrl": torchrl, "sb3": sb3, "d3rlpy": d3rlpy}[name](steps, folder)
    work()
    print("ready", flush=True)
    for _ in sys.stdin:
        began, spent = time.perf_counter(), time.process_time()
        work()
        print(json.dumps([steps / (time.perf_counter() - began), steps / (time.process_time() - spent)]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
