"""The policy as a module: every scaler inside, the environment's own units in and out. What is exported is exactly this."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from offrld.engine.algorithm import Algorithm
from offrld.engine.feed import Scalers, view_observation
from offrld.engine.space import Space
from offrld.nets import Params
from offrld.preprocess.scalers import Scaler


class PolicyModule(nn.Module):
    """``forward(observation) -> action``: observation ``[B, ...]`` in the dataset's dtype (or one tensor per field, by name); action
    ``[B, A]`` float32 within the bounds, or ``[B]`` int64."""

    def __init__(
        self, algorithm: Algorithm, config: Any, nets: SimpleNamespace, params: Params, space: Space, scalers: Scalers
    ) -> None:
        super().__init__()
        self._algorithm, self._config, self._nets, self.space = algorithm, config, nets, space
        self._names = list(params)
        for name, value in params.items():
            self.register_buffer(_buffer(name), value)
        self._scalers: dict[str, Scaler | None] = {}
        for name, scaler in [*scalers.observation.items(), ("action", scalers.action)]:
            self._keep(name, scaler)
        self._fields = list(scalers.observation)
        if not space.discrete:
            self.register_buffer("low", torch.as_tensor(space.low, dtype=torch.float32))
            self.register_buffer("high", torch.as_tensor(space.high, dtype=torch.float32))
        self.eval()

    def _keep(self, name: str, scaler: Scaler | None) -> None:
        self._scalers[name] = scaler
        for part, tensor in scaler.tensors().items() if scaler is not None else ():
            self.register_buffer(f"scaler_{name}_{part}", tensor.detach().cpu().to(torch.float32).clone())

    def _scaler(self, name: str) -> Scaler | None:
        scaler = self._scalers[name]
        return scaler and scaler.with_tensors({part: self.get_buffer(f"scaler_{name}_{part}") for part in scaler.tensors()})

    def scalers(self) -> Scalers:
        """The scalers of observations and actions, made of this module's buffers."""
        return Scalers({name: self._scaler(name) for name in self._fields}, self._scaler("action"), None)

    def network_parameters(self) -> Params:
        """The parameters by the names that networks give them."""
        return {name: self.get_buffer(_buffer(name)) for name in self._names}

    def scores(self, observation: Tensor | None = None, **fields: Tensor) -> Tensor:
        """What the greedy choice is made from: discrete scores ``[B, n]``, or the continuous action in [-1, 1]."""
        return self._algorithm.act(self.network_parameters(), self._config, self._nets, self._seen(observation, fields))

    def candidates(self, observation: Tensor | None = None, **fields: Tensor) -> tuple[Tensor, Tensor] | None:
        """What a policy that takes the best of several chooses from: actions ``[K, B, A]`` in the environment's units and their scores
        ``[K, B]``; None of other policies."""
        if self._algorithm.candidates is None:
            return None
        actions, scores = self._algorithm.candidates(
            self.network_parameters(), self._config, self._nets, self._seen(observation, fields)
        )  # fmt: skip
        return self.chosen(actions), scores

    def _seen(self, observation: Tensor | None, fields: dict[str, Tensor]) -> Any:
        """Observations as networks take them."""
        given = fields if observation is None else {self._fields[0]: observation}
        return view_observation(given, self.scalers(), torch.float32, self.get_buffer(_buffer(self._names[0])).device)

    def chosen(self, scores: Tensor) -> Tensor:
        """The action in the environment's units that `scores` mean."""
        if self.space.discrete:
            return scores.argmax(dim=-1)  # [B]
        scaler = self._scaler("action")
        action = scores if scaler is None else scaler.reverse(scores)
        return torch.minimum(torch.maximum(action, self.low), self.high)  # [B, A]

    def forward(self, observation: Tensor | None = None, **fields: Tensor) -> Tensor:
        return self.chosen(self.scores(observation, **fields))


def _buffer(name: str) -> str:
    return "param_" + name.replace(".", "_")
