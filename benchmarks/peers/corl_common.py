"""Shared code of the scripts in the style of single-file implementations (CORL): plain modules, `torch.optim.Adam`, a buffer of tensors.

The code is our own; the comparison is with the style. NumPy draws the random indices of a batch.

    python corl_NAME.py DATA.npz BATCH STEPS    prints {"updates_per_second": ..., "updates_per_cpu_second": ...}
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import nn

OBSERVATION, ACTION, HIDDEN = 17, 6, 256
WARM = 20
Update: TypeAlias = Callable[[list[torch.Tensor]], object]
Module = TypeVar("Module", bound=nn.Module)


def mlp(*sizes: int, last: nn.Module | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers.append(nn.Linear(sizes[i], sizes[i + 1]))
        if i < len(sizes) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers, *([] if last is None else [last]))


class Q(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(OBSERVATION + ACTION, HIDDEN, HIDDEN, 1)

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([observation, action], -1)).squeeze(-1)


class TwinQ(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Q(), Q()

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.first(observation, action), self.second(observation, action)


class Buffer:
    """Transitions as tensors; a batch is five selections by random indices."""

    def __init__(self, path: str) -> None:
        data = np.load(path)
        observation = data["observations"]
        following = np.concatenate([observation[1:], observation[-1:]])
        columns = (observation, data["actions"], data["rewards"], following, data["terminals"].astype(np.float32))
        self.columns = [torch.tensor(column) for column in columns]
        self.size = len(observation)

    def sample(self, batch: int) -> list[torch.Tensor]:
        indices = np.random.randint(0, self.size, size=batch)
        return [column[indices] for column in self.columns]


def frozen_copy(module: Module) -> Module:
    return copy.deepcopy(module).requires_grad_(False)


def follow(target: nn.Module, online: nn.Module, tau: float) -> None:
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.data.copy_((1 - tau) * old.data + tau * new.data)


def adam(*modules: nn.Module, rate: float = 3e-4) -> torch.optim.Adam:
    return torch.optim.Adam([p for module in modules for p in module.parameters()], lr=rate)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def measure(make: Callable[[], Update]) -> None:
    """Run the update that ``make`` returns, and print its rate."""
    path, batch, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    buffer, update = Buffer(path), make()
    for k in range(steps + WARM):
        if k == WARM:
            start, start_cpu = time.perf_counter(), time.process_time()
        update(buffer.sample(batch))
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(json.dumps({"updates_per_second": steps / wall, "updates_per_cpu_second": steps / cpu}))
