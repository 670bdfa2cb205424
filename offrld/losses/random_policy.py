"""What RandomPolicy and DiscreteRandomPolicy share: pseudo-random numbers that are a function of the observation."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine import Space
from offrld.nets import Params

GRID = 4096.0  # cells per unit: observations within one cell get the same numbers
PRIME = 16_777_213  # the largest prime below 2^24: a number below it is exact in float32


class Hash:
    """Map observations ``[B, ...]`` to numbers in (0, 1), ``[B, outputs]``. Integer arithmetic gives the same in torch and onnxruntime."""

    def __init__(self, name: str, outputs: int) -> None:
        self.name, self._outputs = name, outputs

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return {f"{self.name}.key": torch.randint(1, 65_536, (1,), generator=generator).to(dtype)}

    def __call__(self, params: Params, observation: Any) -> Tensor:
        fields = observation.values() if isinstance(observation, dict) else (observation,)
        seen = torch.cat([field.reshape(field.shape[0], -1) for field in fields], dim=-1)
        key = params[f"{self.name}.key"].long()
        cells = torch.round(seen * GRID).long() % PRIME  # [B, D]
        places = torch.tensor([zlib.crc32(b"%d" % i) % 65_521 + 1 for i in range(cells.shape[-1])], device=seen.device)
        mixed = ((cells * places) % PRIME).sum(-1, keepdim=True) + key  # [B, 1]
        x = (mixed + torch.arange(1, self._outputs + 1, device=seen.device) * 7_919_777) % PRIME  # [B, outputs]
        for factor, add in ((48_271, 11), (69_621, 7), (16_807, 3)):
            x = ((x * x) % PRIME * 5 + x * factor + add) % PRIME
        return (x.to(seen.dtype) + 0.5) / PRIME


@dataclass(frozen=True)
class Nets:
    """The networks of both algorithms."""

    policy: Hash


def networks(config: Any, space: Space) -> Nets:
    """Build a hash with one output per dimension of a continuous action, or per discrete action."""
    return Nets(policy=Hash("policy", space.action_size))
