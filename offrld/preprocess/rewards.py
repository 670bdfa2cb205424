"""Scalers of rewards. Each step's reward is scaled before it is summed: n-step returns and returns-to-go are sums of scaled rewards.

All scalers but `clip` and those of other packages are affine, so a sum of raw rewards can be scaled afterwards (`Affine.n_step_reward`).
The others scale the whole column first (`reward_column`), from which samplers then read. So do affine ones if scaling the sum would lose
digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrld import plugins
from offrld.preprocess.scalers import GROUP, Affine, Own, Scaler, chosen, divisor
from offrld.preprocess.statistics import Blocks, block_rows, extremes, moments
from offrld.settings import setting

REWARD_SCALERS = ("none", "standard", "min_max", "multiply", "clip", "return", "shift")
_SCALED = REWARD_SCALERS[1:]
_NEAR_ONE = 0.999  # above it, 1 - gamma^n in float32 has lost more than three digits


def _own() -> tuple[str, ...]:
    return plugins.names(GROUP, REWARD_SCALERS)


def _types() -> tuple[str, ...]:
    return (*REWARD_SCALERS, *_own())


@dataclass(frozen=True)
class RewardScaler:
    """How each step's reward r is scaled; m is the multiplier. Unset statistics are fitted on the training episodes."""

    type: str = setting(
        "none",
        "none, standard m (r - mean)/(std + eps), min_max onto [-m, m], multiply m r, clip m clip(r, low, high), "
        "return m r/(return_max - return_min), shift (r + shift) m",
        choices=_types,
    )
    multiplier: float = setting(1.0, "factor on the scaled reward; not 0", only=_SCALED, probe={"": 2.0, "type": "multiply"})
    mean: float | None = setting(None, "mean reward; none: fitted", only=("standard",), probe=0.5)
    std: float | None = setting(None, "standard deviation of rewards; none: fitted", low=0.0, only=("standard",), probe=0.5)
    eps: float = setting(1e-3, "added to the standard deviation", low=0.0, only=("standard",))
    minimum: float | None = setting(None, "smallest reward; none: fitted", only=("min_max",), probe=-9.0)
    maximum: float | None = setting(None, "largest reward; none: fitted", only=("min_max",), probe=9.0)
    low: float | None = setting(None, "rewards below it are raised to it", only=("clip",), probe={"": 0.1, "high": 0.2})
    high: float | None = setting(None, "rewards above it are lowered to it", only=("clip",), probe={"": 0.1, "low": -0.1})
    return_min: float | None = setting(None, "smallest return of an episode; none: fitted", only=("return",), probe=-90.0)
    return_max: float | None = setting(None, "largest return of an episode; none: fitted", only=("return",), probe=90.0)
    shift: float = setting(0.0, "added to the reward", only=("shift",), probe=-1.0)
    multiply_first: bool = setting(
        False, "multiply before shifting: r m + shift", only=("shift",), probe={"": True, "shift": -1.0, "multiplier": 2.0}
    )
    options: dict[str, Any] = setting({}, "settings for a scaler from another package", only=_own)

    def __post_init__(self) -> None:
        if self.multiplier == 0.0:
            raise InvalidInput("multiplier is 0, which makes every reward 0", hint="choose another number")
        if self.type == "clip" and self.low is None and self.high is None:
            raise InvalidInput("clip needs low or high", hint="for example low=-1 high=1")
        for low, high in (("low", "high"), ("minimum", "maximum"), ("return_min", "return_max")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise InvalidInput(f"{low} {least:g} is above {high} {most:g}", hint="swap them")


@dataclass(frozen=True)
class Clip:
    """``multiplier * clip(r, low, high)``."""

    low: Tensor
    high: Tensor
    multiplier: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.low), self.high) * self.multiplier

    def reverse(self, y: Tensor) -> Tensor:
        """Return the clipped reward; the part beyond the limits is lost."""
        return y / self.multiplier

    def tensors(self) -> dict[str, Tensor]:
        return {"low": self.low, "high": self.high, "multiplier": self.multiplier}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Clip:
        return Clip(tensors["low"], tensors["high"], tensors["multiplier"])

    def stacked(self, frames: int) -> Clip:
        raise TypeError("rewards are not stacked")


def fit_reward(
    spec: RewardScaler, blocks: Blocks, returns: Callable[[], np.ndarray], dtype: torch.dtype, device: torch.device
) -> Scaler | None:
    """Fit the scaler of rewards; return None if rewards are not scaled.

    Args:
        blocks: the rewards of the training episodes' transitions.
        returns: computes each training episode's undiscounted return.
    """
    m, kind = spec.multiplier, spec.type
    if kind == "none":
        return None
    if kind == "multiply":
        return Affine.of(0.0, m, dtype, device)
    if kind == "shift":
        return Affine.of(-spec.shift / m if spec.multiply_first else -spec.shift, m, dtype, device)
    if kind == "clip":
        limits = (-np.inf if spec.low is None else spec.low, np.inf if spec.high is None else spec.high, m)
        return Clip(*(torch.tensor(float(value), dtype=dtype, device=device) for value in limits))
    if kind == "min_max":
        return Affine.between(*chosen(extremes, blocks, spec.minimum, spec.maximum), dtype, device, reach=m)
    if kind == "standard":
        mean, std = chosen(moments, blocks, spec.mean, spec.std)
        return Affine.of(mean, m / divisor(std + spec.eps), dtype, device)
    if kind == "return":
        low, high = chosen(extremes, lambda: iter((returns(),)), spec.return_min, spec.return_max)
        return Affine.of(0.0, m / divisor(high - low), dtype, device)
    return Own.fit(kind, spec.options, blocks, 0, dtype, device)


def needs_column(scaler: Scaler | None, *, n_steps: int = 1, gamma: float = 1.0, whole_returns: bool = False, wide: bool = False) -> bool:
    """Return whether rewards must be scaled before they are summed (`reward_column`), rather than their sum afterwards.

    Args:
        n_steps, gamma: parameters of the sampler's n-step sums.
        whole_returns: the sampler also sums to the end of the episode (returns-to-go).
        wide: the rewards' dtype has values that float32, in which samplers sum, cannot represent.
    """
    if scaler is None:
        return False
    if not isinstance(scaler, Affine):
        return True
    if not bool((scaler.shift != 0).any()):
        return False  # a sum of multiples is the multiple of the sum
    return wide or whole_returns or (n_steps > 1 and gamma > _NEAR_ONE)


def reward_column(scaler: Scaler, store: EpisodeStore) -> np.ndarray:
    """Return every row's scaled reward, float32 ``[rows]``; samplers sum it instead of the store's own column.

    The column takes four bytes per row. Rows between episodes hold the scaled zero; no sampler reads them.
    """
    column = store.column("reward")
    double = scaler.with_tensors({name: part.detach().cpu().double() for name, part in scaler.tensors().items()})
    scaled, length = np.empty(column.shape, np.float32), block_rows(column)
    for start in range(0, len(column), length):
        block = torch.from_numpy(np.array(column[start : start + length], np.float64))
        scaled[start : start + length] = double(block).numpy()
    return scaled
