"""A learned positive number, such as a temperature or a dual variable, and `Zero`, which replaces it when the term is disabled."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from offrld.nets.context import context_of
from offrld.nets.linear import Params


class PositiveScalar:
    """``exp(p)`` with one parameter p, ``NAME.log``: a 0-d tensor that starts at ``log(initial)`` and stays within ``limits``."""

    def __init__(self, name: str, initial: float, limits: tuple[float, float] | None = None) -> None:
        self.name, self._initial, self._limits = name, initial, limits

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return {f"{self.name}.log": torch.tensor(math.log(self._initial), dtype=dtype)}

    def log(self, params: Params) -> Tensor:
        """Return the logarithm, which is the learned parameter."""
        return params[f"{self.name}.log"]

    def project(self, params: Params) -> Tensor:
        """Clip the logarithm to its limits. A later step's loss calls this, because the number's own step may leave the limits.

        Return the number within its limits, without gradient; the parameter itself changes after that later step.
        """
        log = self.log(params).detach()
        if self._limits is not None:
            log = log.clamp(*self._limits)
            context = context_of(params)
            if context is not None:
                context.updates[f"{self.name}.log"] = log
        return log.exp()

    def __call__(self, params: Params) -> Tensor:
        return self.log(params).exp()


class Zero:
    """The weight 0 of a disabled term; it has no parameters."""

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return {}

    def __call__(self, params: Params) -> float:
        return 0.0
