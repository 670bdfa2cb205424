"""The policy as a module that contains every scaler, with inputs and outputs in the environment's units. It is what export exports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from offrl.memory import CONTEXT, NEXT, REWARD, TARGET_RETURN
from offrl.policy import ACTION
from offrld.engine.batches.feed import view_observation
from offrld.engine.definition.algorithm import Algorithm
from offrld.engine.definition.run import Scalers
from offrld.engine.definition.space import Space
from offrld.nets import Params
from offrld.preprocess.scalers import Scaler, is_wide

# Names of the graph's other inputs and outputs, and `self`, which cannot be a keyword argument.
OWN_NAMES = (ACTION, "scores", REWARD, TARGET_RETURN, "self")
OWN_PREFIXES = (CONTEXT, NEXT, "policy.")  # "policy." starts the names of the graph's constants


class PolicyModule(nn.Module):
    """``forward(observation) -> action``.

    The observation is ``[B, ...]`` in the dataset's dtype, or several fields as a mapping or as keyword arguments. The action is float32
    ``[B, A]`` within the bounds, or int64 ``[B]``.

    Attributes:
        input_names: field -> name of its input in an exported graph.
        low, high: bounds of continuous actions; absent for discrete ones.
    """

    low: Tensor
    high: Tensor

    def __init__(self, algorithm: Algorithm, config: Any, nets: Any, params: Params, space: Space, scalers: Scalers) -> None:
        super().__init__()
        self._algorithm, self._config, self._nets, self.space = algorithm, config, nets, space
        self.input_names = input_names(space.observation)
        self._buffer_of: dict[str, str] = {}
        self._names = list(params)
        for name, value in params.items():
            self._hold(f"param.{name}", value)
        self._scalers: dict[str, Scaler | None] = {}
        for name, scaler in scalers.observation.items():
            self._keep(f"observation.{name}", scaler, torch.float64 if is_wide(space.observation[name][0]) else torch.float32)
        self._keep(ACTION, scalers.action)
        self._fields = list(scalers.observation)
        if not space.discrete:
            self.register_buffer("low", torch.as_tensor(space.low, dtype=torch.float32))
            self.register_buffer("high", torch.as_tensor(space.high, dtype=torch.float32))
        self.eval()

    def _hold(self, name: str, value: Tensor) -> None:
        """Register a buffer for a tensor of any name.

        Names of networks and scalers contain field names of the dataset, and not all of those are valid names of buffers:
        ``observation.state``, ``training``.
        """
        buffer = re.sub(r"\W", "_", name, flags=re.ASCII)
        while hasattr(self, buffer):
            buffer += "_"
        self._buffer_of[name] = buffer
        self.register_buffer(buffer, value)

    def _held(self, name: str) -> Tensor:
        return self.get_buffer(self._buffer_of[name])

    def _keep(self, name: str, scaler: Scaler | None, dtype: torch.dtype = torch.float32) -> None:
        self._scalers[name] = scaler
        for part, tensor in scaler.tensors().items() if scaler is not None else ():
            self._hold(f"scaler.{name}.{part}", tensor.detach().cpu().to(dtype).clone())

    def _scaler(self, name: str) -> Scaler | None:
        scaler = self._scalers[name]
        return scaler and scaler.with_tensors({part: self._held(f"scaler.{name}.{part}") for part in scaler.tensors()})

    def scalers(self) -> Scalers:
        """Return the scalers of observations and actions, built from this module's buffers."""
        return Scalers({name: self._scaler(f"observation.{name}") for name in self._fields}, self._scaler(ACTION), None)

    def network_parameters(self) -> Params:
        """Return the networks' parameters by name."""
        return {name: self._held(f"param.{name}") for name in self._names}

    def scores(self, observation: Any = None, /, **fields: Tensor) -> Tensor:
        """Return what the greedy choice depends on: discrete scores ``[B, n]``, or the continuous action in [-1, 1]."""
        return self._algorithm.act(self.network_parameters(), self._config, self._nets, self._seen(observation, fields))

    def candidates(self, observation: Any = None, /, **fields: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the candidates of a policy that takes the best of several; None for other policies.

        The actions ``[K, B, A]`` are in the environment's units; their scores are ``[K, B]``.
        """
        if self._algorithm.candidates is None:
            return None
        actions, scores = self._algorithm.candidates(self.network_parameters(), self._config, self._nets, self._seen(observation, fields))
        return self.chosen(actions), scores

    def _seen(self, observation: Any, fields: Mapping[str, Tensor]) -> Any:
        """Convert observations to the networks' inputs."""
        named = fields if observation is None else observation
        if not isinstance(named, Mapping):
            named = {self._fields[0]: named}
        # Keys are names of fields or of an exported graph's inputs; no input has the name of another field.
        by_field = {field: named[field] if field in named else named[name] for field, name in self.input_names.items()}
        return view_observation(by_field, self.scalers(), torch.float32, self._held(f"param.{self._names[0]}").device)

    def in_units(self, scores: Tensor) -> Tensor:
        """Convert `scores` to the continuous action in the environment's units, within the bounds, before any rounding."""
        scaler = self._scaler(ACTION)
        action = scores if scaler is None else scaler.reverse(scores)
        return torch.minimum(torch.maximum(action, self.low), self.high)  # [B, A]

    def unrounded(self, observation: Any = None, /, **fields: Tensor) -> Tensor:
        """Return the continuous action in the environment's units, before any rounding."""
        return self.in_units(self.scores(observation, **fields))

    def chosen(self, scores: Tensor) -> Tensor:
        """Convert `scores` to the action in the environment's units."""
        if self.space.discrete:
            return scores.argmax(dim=-1)  # [B]
        action = self.in_units(scores)
        return torch.round(action) if self.space.whole else action

    def forward(self, observation: Any = None, /, **fields: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the action; a policy that remembers earlier steps also returns its next context."""
        return self.chosen(self.scores(observation, **fields))


def input_names(fields: Iterable[str]) -> dict[str, str]:
    """Return field -> name of its input in an exported graph: the field's own, or ``observation.NAME`` if that one is reserved."""
    fields = list(fields)
    names: dict[str, str] = {}
    for field in fields:
        name = field
        while name in OWN_NAMES or name.startswith(OWN_PREFIXES) or (name != field and (name in fields or name in names.values())):
            name = f"observation.{name}"
        names[field] = name
    return names
