"""A positive number that is learned: a temperature, a dual variable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from offrld.nets.linear import Params


class PositiveScalar:
    """``exp(p)`` with the one parameter ``NAME.log``, a 0-d tensor that starts at ``log(initial)``."""

    def __init__(self, name: str, initial: float) -> None:
        self.name, self._initial = name, initial

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return {f"{self.name}.log": torch.tensor(math.log(self._initial), dtype=dtype)}

    def log(self, params: Params) -> Tensor:
        """The logarithm, which is what is learned."""
        return params[f"{self.name}.log"]

    def __call__(self, params: Params) -> Tensor:
        return self.log(params).exp()
