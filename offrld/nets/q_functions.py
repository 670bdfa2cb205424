"""Q functions in ensembles, and the state-value function.

Members are separate networks, not one batched product: on the CPU separate products of this size are the faster.
"""

from __future__ import annotations

import torch
from torch import Tensor

from offrld.nets.encoders import Encoder, Mlp, Params


class _Ensemble:
    def __init__(self, name: str, members: int, inputs: int, outputs: int, encoder: Encoder) -> None:
        self.name = name
        self._members = [Mlp(f"{name}.{i}", inputs, outputs, encoder) for i in range(members)]

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params: Params = {}
        for member in self._members:
            params.update(member.init(generator, dtype))
        return params


class Critics(_Ensemble):
    """``N`` Q functions of observation and continuous action."""

    def __init__(self, name: str, members: int, observation_size: int, action_size: int, encoder: Encoder) -> None:
        super().__init__(name, members, observation_size + action_size, 1, encoder)

    def __call__(self, params: Params, observation: Tensor, action: Tensor, *, members: int | None = None) -> Tensor:
        """Values ``[N, B]`` at observation ``[B, D]`` and action ``[B, A]``; of the first ``members`` only, when given."""
        x = torch.cat([observation, action], dim=-1)
        return torch.stack([member(params, x).squeeze(-1) for member in self._members[:members]])


class DiscreteCritics(_Ensemble):
    """``N`` Q functions over ``n`` discrete actions."""

    def __init__(self, name: str, members: int, observation_size: int, actions: int, encoder: Encoder) -> None:
        super().__init__(name, members, observation_size, actions, encoder)

    def __call__(self, params: Params, observation: Tensor) -> Tensor:
        """Values of every action, ``[N, B, n]``."""
        return torch.stack([member(params, observation) for member in self._members])


class ValueFunction:
    """A state-value function ``V(s)``: observation ``[B, D]`` to ``[B]``."""

    def __init__(self, name: str, observation_size: int, encoder: Encoder) -> None:
        self.name = name
        self._mlp = Mlp(name, observation_size, 1, encoder)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return self._mlp.init(generator, dtype)

    def __call__(self, params: Params, observation: Tensor) -> Tensor:
        return self._mlp(params, observation).squeeze(-1)  # [B]
