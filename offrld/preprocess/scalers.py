"""Scalers of observations and actions: fitted once on the pinned snapshot, inside the policy's graph when it is exported.

offrld's own scalers are affine, ``y = (x - shift) * scale`` per element. They are fitted on the rows that start a transition of training
episodes; the last observation of a truncated episode starts none and does not count. Rewards: `offrld.preprocess.rewards`.

Own scalers. A package registers an object (a module will do) in the entry-point group ``offrl.scalers``::

    [project.entry-points."offrl.scalers"]
    log = "my_package.log_scaler"

and its name becomes a `type` of observation_scaler and reward_scaler. The object has three functions::

    fit(blocks, options) -> {name: array}    blocks() gives arrays [n, *shape] of all transitions, again for each pass; options: the setting
    transform(x, parts) -> Tensor            x [..., *shape] and the fitted parts as tensors; plain torch, it is exported with the policy
    reverse(y, parts) -> Tensor              the x of which y is the image

Checkpoints hold the parts. Listing the names does not import the package; jobs that use it do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from offrl.errors import InvalidInput, Unknown, nearest
from offrld import plugins
from offrld.preprocess.statistics import Blocks, extremes, moments
from offrld.settings import setting

GROUP = "offrl.scalers"
WIDE = ("float64", "int32", "int64", "uint32", "uint64")  # dtypes of which float32 does not hold every value
OBSERVATION_SCALERS = ("none", "standard", "min_max", "pixel")


class Scaler(Protocol):
    """A fitted scaler."""

    def __call__(self, x: Tensor) -> Tensor:
        """The scaled value of ``x``, an element with any axes before its own."""

    def reverse(self, y: Tensor) -> Tensor:
        """The ``x`` of which ``y`` is the image."""

    def tensors(self) -> dict[str, Tensor]:
        """The fitted tensors by name, as checkpoints and policies keep them. Writing into them changes the scaler."""

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Scaler:
        """The same scaler with these tensors instead of its own."""

    def stacked(self, frames: int) -> Scaler:
        """The scaler of ``frames`` elements joined along their first axis."""


def is_wide(dtype: Any) -> bool:
    """Whether a dtype (of NumPy, of torch, or its name) has values that float32 does not hold."""
    return str(dtype).removeprefix("torch.") in WIDE


def scaled(scaler: Scaler | None, value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Scale a ``value`` of the dataset and narrow it to the dtype of training; values are narrowed nowhere else.

    Values far from zero relative to their spread (seconds since 1970, metres of a map grid) differ in digits that float32 lacks. So the
    mean is subtracted in float64, and only the rest is narrowed.
    """
    if scaler is None:
        return value.to(device, dtype, non_blocking=True)
    if is_wide(value.dtype):
        return scaler(value.to(device, torch.float64, non_blocking=True)).to(dtype)
    return scaler(value.to(device, dtype, non_blocking=True))


@dataclass(frozen=True)
class Affine:
    """``y = (x - shift) * scale``; both tensors have the shape of one element, or none."""

    shift: Tensor
    scale: Tensor

    @classmethod
    def of(cls, shift: Any, scale: Any, dtype: torch.dtype, device: torch.device) -> Affine:
        return cls(*(torch.from_numpy(np.array(part, np.float64)).to(device, dtype) for part in (shift, scale)))

    @classmethod
    def between(cls, low: Any, high: Any, dtype: torch.dtype, device: torch.device, *, reach: float = 1.0) -> Affine:
        """The map of [low, high] onto [-reach, reach]; a dimension whose ends are equal maps to 0."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        half = np.where(high > low, high / 2.0 - low / 2.0, 0.5)  # halves: the whole span may be beyond float64
        return cls.of(low / 2.0 + high / 2.0, reach / half, dtype, device)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.shift) * self.scale

    def reverse(self, y: Tensor) -> Tensor:
        return y / self.scale + self.shift

    def tensors(self) -> dict[str, Tensor]:
        return {"shift": self.shift, "scale": self.scale}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Affine:
        return Affine(tensors["shift"], tensors["scale"])

    def stacked(self, frames: int) -> Affine:
        if frames == 1 or self.shift.dim() == 0:
            return self
        return Affine(*(part.repeat(frames, *(1,) * (part.dim() - 1)) for part in (self.shift, self.scale)))

    def n_step_reward(self, total: Tensor, discount: Tensor, gamma: float) -> Tensor:
        """The n-step sum of scaled rewards, from the sum of raw ones ``[B]`` and ``discount = gamma^n [B]``.

        Every step is scaled, then summed: sum of gamma^i (r_i - shift) scale = (total - shift (1 - gamma^n) / (1 - gamma)) scale. With
        gamma = 1, n is taken for 1; where it is not, or gamma is close to 1, scale each reward (`rewards.needs_column`).
        """
        weight = (1 - discount) / (1 - gamma) if gamma < 1 else torch.ones_like(discount)
        return (total - self.shift * weight) * self.scale


@dataclass(frozen=True)
class Own:
    """A scaler of another package (see the top of this file), with its fitted parts."""

    rule: Any
    parts: Mapping[str, Tensor]
    axes: int  # of an element
    frames: int = 1

    @classmethod
    def fit(cls, kind: str, options: Mapping[str, Any], blocks: Blocks, axes: int, dtype: torch.dtype, device: torch.device) -> Own:
        rule = plugins.load(GROUP, kind, ("fit", "transform", "reverse"))
        parts = rule.fit(blocks, dict(options))
        if not isinstance(parts, Mapping) or not all(isinstance(name, str) and name.isidentifier() for name in parts):
            raise InvalidInput(f"the scaler {kind!r} fitted {parts!r}", hint="its function fit gives {name: array}, names like Python's")
        return cls(rule, {name: torch.as_tensor(np.asarray(part, np.float64)).to(device, dtype) for name, part in parts.items()}, axes)

    @classmethod
    def rebuilt(cls, kind: str, parts: Mapping[str, Tensor], axes: int, frames: int = 1) -> Own:
        """A fitted scaler from its `tensors`; raises `Unknown` if the package is not installed."""
        return cls(plugins.load(GROUP, kind, ("fit", "transform", "reverse")), dict(parts), axes, frames)

    def __call__(self, x: Tensor) -> Tensor:
        return self._by_frame(self.rule.transform, x)

    def reverse(self, y: Tensor) -> Tensor:
        return self._by_frame(self.rule.reverse, y)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.parts)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Own:
        return Own(self.rule, dict(tensors), self.axes, self.frames)

    def stacked(self, frames: int) -> Own:
        return Own(self.rule, self.parts, self.axes, frames)

    def _by_frame(self, function: Any, x: Tensor) -> Tensor:
        if self.frames == 1:
            return function(x, self.parts)
        axis = -max(self.axes, 1)
        return torch.cat([function(part, self.parts) for part in x.chunk(self.frames, dim=axis)], dim=axis)


def _own() -> tuple[str, ...]:
    return plugins.names(GROUP, OBSERVATION_SCALERS)


def _observation_types() -> tuple[str, ...]:
    return (*OBSERVATION_SCALERS, *_own())


@dataclass(frozen=True)
class ObservationScaler:
    """How observations are scaled before the networks see them. Images (uint8, channel first) with `none` are divided by 255."""

    type: str = setting(
        "none", "none (images: as pixel), standard (x - mean)/(std + eps), min_max onto [-1, 1], pixel x/255", choices=_observation_types
    )
    mean: tuple[float, ...] | None = setting(
        None, "mean of each element (one number: of all), not fitted", only=("standard",), probe=(0.5,)
    )
    std: tuple[float, ...] | None = setting(None, "deviation of each element, not fitted", low=0.0, only=("standard",), probe=(2.0,))
    minimum: tuple[float, ...] | None = setting(None, "least value of each element, not fitted", only=("min_max",), probe=(-9.0,))
    maximum: tuple[float, ...] | None = setting(None, "largest value of each element, not fitted", only=("min_max",), probe=(9.0,))
    eps: float = setting(1e-3, "added to the deviation: a nearly constant element is not blown up", low=0.0, only=("standard",))
    fields: dict[str, Any] = setting(
        {}, "another type for single fields of an observation with several, by field", probe={"": {"observation": "min_max"}}
    )
    options: dict[str, Any] = setting({}, "settings of another package's scaler", only=_own)

    def kind_of(self, name: str, dtype: Any, shape: tuple[int, ...], *, several: bool) -> str:
        """The type for one field: its entry in `fields`, or `type`; pixel for images beside other fields, and never pixel for floats."""
        kind = self.fields.get(name)
        if kind is None:
            image = np.dtype(dtype) == np.uint8 and len(shape) == 3
            kind = "pixel" if image and (several or self.type == "none") else self.type
            return "none" if kind == "pixel" and np.dtype(dtype) != np.uint8 else kind
        if kind not in _observation_types():
            raise Unknown(f"observation_scaler.fields: no scaler {kind!r}", hint=nearest(str(kind), list(_observation_types())))
        return str(kind)


def fit_observation(
    spec: ObservationScaler, columns: Mapping[str, np.ndarray], blocks: Mapping[str, Blocks], dtype: torch.dtype, device: torch.device
) -> dict[str, Scaler | None]:
    """Fit a scaler for each observation field; None for a field that is not scaled.

    Args:
        columns: field -> ``[rows, *shape]``, for dtype and shape.
        blocks: field -> the rows to fit on.

    Raises:
        InvalidInput: statistics given by hand do not have the observation's length; pixel without a uint8 field.
    """
    kinds = _kinds(spec, columns)
    shapes = {name: column.shape[1:] for name, column in columns.items() if kinds[name] == spec.type}
    by_hand = {statistic: _by_hand(spec, statistic, shapes) for statistic in ("mean", "std", "minimum", "maximum")}
    scalers: dict[str, Scaler | None] = {}
    training = dtype
    for name, kind in kinds.items():
        dtype = torch.float64 if is_wide(columns[name].dtype) else training  # see `scaled`
        if kind == "none":
            scalers[name] = None
        elif kind == "pixel":
            scalers[name] = Affine.of(0.0, 1.0 / 255.0, dtype, device)
        elif kind == "min_max":
            low, high = chosen(extremes, blocks[name], by_hand["minimum"].get(name), by_hand["maximum"].get(name))
            scalers[name] = Affine.between(low, high, dtype, device)
        elif kind == "standard":
            mean, std = chosen(moments, blocks[name], by_hand["mean"].get(name), by_hand["std"].get(name))
            scalers[name] = Affine.of(mean, 1.0 / divisor(std + spec.eps), dtype, device)
        else:
            scalers[name] = Own.fit(kind, spec.options, blocks[name], columns[name].ndim - 1, dtype, device)
    return scalers


def observation_between(
    spec: ObservationScaler, bounds: Mapping[str, tuple[np.ndarray, np.ndarray]], dtype: torch.dtype, device: torch.device
) -> dict[str, Scaler | None]:
    """As `fit_observation`, without data: from an environment's Box bounds, field -> (low, high) in the observation's dtype.

    Raises `InvalidInput` if the bounds do not suffice: for unbounded elements, and for scalers that need a deviation that is not set.
    """

    def blocks(name: str) -> Blocks:
        low, high = bounds[name]
        if spec.type not in ("none", "pixel", "min_max") and spec.mean is None:
            raise InvalidInput(
                f"{spec.type} scaling of observations cannot be fitted from an environment's bounds",
                hint="pass observation_scaler.mean and std, or take min_max",
            )
        if spec.type == "min_max" and spec.minimum is None and not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise InvalidInput(
                f"observation field {name!r} of the environment has elements without bounds",
                hint="pass observation_scaler.minimum and maximum",
            )
        return lambda: iter((np.stack([low, high]),))

    columns = {name: np.asarray(low)[None] for name, (low, _) in bounds.items()}
    return fit_observation(spec, columns, {name: blocks(name) for name in bounds}, dtype, device)


def _kinds(spec: ObservationScaler, columns: Mapping[str, np.ndarray]) -> dict[str, str]:
    for name in spec.fields:
        if name not in columns:
            raise Unknown(f"observation_scaler.fields: no observation field {name!r}", hint=nearest(name, list(columns)))
    kinds = {n: spec.kind_of(n, c.dtype, c.shape[1:], several=len(columns) > 1) for n, c in columns.items()}
    if spec.type == "pixel" and "pixel" not in kinds.values():
        dtypes = ", ".join(str(column.dtype) for column in columns.values())
        raise InvalidInput(f"pixel scaling is of uint8 observations, these are {dtypes}", hint="take standard or min_max")
    return kinds


def _by_hand(spec: ObservationScaler, statistic: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A statistic given by hand for each field: one number for all, or the numbers of all fields one after the other; {} if not given."""
    values = getattr(spec, statistic)
    if values is None or not shapes:
        return {}
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]
    array = by_length(f"observation_scaler.{statistic}", values, sum(sizes), "elements of the observation")
    split = np.split(array, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for part, (name, shape) in zip(split, shapes.items(), strict=True)}


# --- Actions ---
@dataclass(frozen=True)
class ActionScaler:
    """How continuous actions are mapped onto the [-1, 1] in which policies act."""

    type: str = setting(
        "auto",
        "auto: by the bounds where they are not [-1, 1]; none; min_max: 2 (a - minimum)/(maximum - minimum) - 1",
        choices=("auto", "none", "min_max"),
    )
    minimum: tuple[float, ...] | None = setting(
        None, "of each dimension (one number: of all), not its bound", only=("min_max",), probe=(-9.0,)
    )
    maximum: tuple[float, ...] | None = setting(None, "of each dimension, not its bound", only=("min_max",), probe=(9.0,))


def fit_action(spec: ActionScaler, low: np.ndarray, high: np.ndarray, dtype: torch.dtype, device: torch.device) -> Affine | None:
    """The scaler of actions with the bounds ``low``, ``high`` ``[A]``; None if they stay as they are. Raises `InvalidInput`."""
    if spec.minimum is not None:
        low = by_length("action_scaler.minimum", spec.minimum, len(low), "dimensions of the action")
    if spec.maximum is not None:
        high = by_length("action_scaler.maximum", spec.maximum, len(high), "dimensions of the action")
    if spec.type == "none" or (np.all(low == -1.0) and np.all(high == 1.0)):
        return None
    unbounded = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
    if len(unbounded):
        first = unbounded[0]
        raise InvalidInput(
            f"action dimension {first} has the bounds {low[first]:g} and {high[first]:g}: it cannot be scaled to [-1, 1]",
            hint="pass action_scaler.type=min_max with minimum and maximum",
        )
    return Affine.between(low, high, dtype, device)


# --- Shared ---
def by_length(name: str, values: tuple[float, ...], length: int, of: str) -> np.ndarray:
    """The numbers of a setting as float64 ``[length]``; a single one is repeated. Raises `InvalidInput`."""
    if len(values) not in (1, length):
        raise InvalidInput(f"{name} has {len(values)} numbers for {length} {of}", hint=f"pass one, or {length}")
    return np.broadcast_to(np.asarray(values, np.float64), length)


def chosen(fit: Callable[[Blocks], tuple[Any, Any]], blocks: Blocks, one: Any, other: Any) -> tuple[Any, Any]:
    """A pair of statistics: each as set, or fitted."""
    if one is not None and other is not None:
        return one, other
    first, second = fit(blocks)
    return (first if one is None else one), (second if other is None else other)


def divisor(values: Any) -> np.ndarray:
    """``values`` with 1 where they are 0, so that a constant element maps to a number."""
    array = np.asarray(values, np.float64)
    return np.where(array > 0, array, 1.0)
