"""Scalers of observations and actions: fitted once on the pinned snapshot, and part of the exported policy's graph.

The built-in scalers are affine, ``y = (x - shift) * scale`` per element. They are fitted on the rows that start a transition of a training
episode; the last observation of a truncated episode starts none and does not count. For rewards see `offrld.preprocess.rewards`.

Scalers from other packages. A package registers an object (a module will do) in the entry-point group ``offrl.scalers``::

    [project.entry-points."offrl.scalers"]
    log = "my_package.log_scaler"

Its name becomes a `type` of observation_scaler and reward_scaler. The object has three functions::

    fit(blocks, options) -> {name: array}    each call of blocks() is one pass over arrays [n, *shape]; options is the setting `options`
    transform(x, parts) -> Tensor            x [..., *shape] and the fitted parts as tensors; plain torch, exported with the policy
    reverse(y, parts) -> Tensor              the inverse of transform

Checkpoints store the parts. Listing the names does not import the package; jobs that use the scaler do.
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
WIDE = ("float64", "int32", "int64", "uint32", "uint64")  # dtypes with values that float32 cannot represent
OBSERVATION_SCALERS = ("none", "standard", "min_max", "pixel")


class Scaler(Protocol):
    """A fitted scaler."""

    def __call__(self, x: Tensor) -> Tensor:
        """Scale ``x``: one element, or elements with leading batch axes."""

    def reverse(self, y: Tensor) -> Tensor:
        """Invert the scaling."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the fitted tensors by name, as checkpoints and policies store them. Writing to them changes the scaler."""

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Scaler:
        """Return the same scaler with these tensors instead of its own."""

    def stacked(self, frames: int) -> Scaler:
        """Return the scaler for ``frames`` elements joined along their first axis."""


def is_wide(dtype: Any) -> bool:
    """Return whether a dtype (of NumPy, of torch, or a name) has values that float32 cannot represent."""
    return str(dtype).removeprefix("torch.") in WIDE


def scaled(scaler: Scaler | None, value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Scale a ``value`` of the dataset and narrow it to the dtype of training. Values are narrowed nowhere else.

    Values far from zero relative to their spread (seconds since 1970, metres of a map grid) differ in digits that float32 lacks. So the
    mean is subtracted in float64, and only the difference is narrowed.
    """
    if scaler is None:
        return value.to(device, dtype, non_blocking=True)
    if is_wide(value.dtype):
        return scaler(value.to(device, torch.float64, non_blocking=True)).to(dtype)
    return scaler(value.to(device, dtype, non_blocking=True))


@dataclass(frozen=True)
class Affine:
    """``y = (x - shift) * scale``; both tensors have the shape of one element, or are scalars."""

    shift: Tensor
    scale: Tensor

    @classmethod
    def of(cls, shift: Any, scale: Any, dtype: torch.dtype, device: torch.device) -> Affine:
        return cls(*(torch.from_numpy(np.array(part, np.float64)).to(device, dtype) for part in (shift, scale)))

    @classmethod
    def between(cls, low: Any, high: Any, dtype: torch.dtype, device: torch.device, *, reach: float = 1.0) -> Affine:
        """Map [low, high] onto [-reach, reach]; a dimension whose ends are equal maps to 0."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        half = np.where(high > low, high / 2.0 - low / 2.0, 0.5)  # halved first: high - low may overflow float64
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
        """Return the n-step sum of scaled rewards, from the sum of raw rewards ``[B]`` and ``discount = gamma^n [B]``.

        The sum of gamma^i (r_i - shift) scale is (total - shift (1 - gamma^n) / (1 - gamma)) scale. With gamma = 1 the formula assumes
        n = 1; for a larger n, or a gamma close to 1, scale each reward instead (`rewards.needs_column`).
        """
        weight = (1 - discount) / (1 - gamma) if gamma < 1 else torch.ones_like(discount)
        return (total - self.shift * weight) * self.scale


@dataclass(frozen=True)
class Own:
    """A scaler from another package (see the top of this file), with its fitted parts."""

    rule: Any
    parts: Mapping[str, Tensor]
    axes: int  # number of axes of an element
    frames: int = 1

    @classmethod
    def fit(cls, kind: str, options: Mapping[str, Any], blocks: Blocks, axes: int, dtype: torch.dtype, device: torch.device) -> Own:
        rule = plugins.load(GROUP, kind, ("fit", "transform", "reverse"))
        parts = rule.fit(blocks, dict(options))
        if not isinstance(parts, Mapping) or not all(isinstance(name, str) and name.isidentifier() for name in parts):
            what = f"the function fit of the scaler {kind!r} returned {parts!r}, not {{name: array}}"
            raise InvalidInput(what, hint="return a dict whose names are Python identifiers")
        return cls(rule, {name: torch.as_tensor(np.asarray(part, np.float64)).to(device, dtype) for name, part in parts.items()}, axes)

    @classmethod
    def rebuilt(cls, kind: str, parts: Mapping[str, Tensor], axes: int, frames: int = 1) -> Own:
        """Rebuild a fitted scaler from its `tensors`; raise `Unknown` if the package is not installed."""
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
    """How observations are scaled before the networks see them. `none` still divides images (uint8, channel first) by 255."""

    type: str = setting(
        "none", "none (images: as pixel), standard (x - mean)/(std + eps), min_max onto [-1, 1], pixel x/255", choices=_observation_types
    )
    mean: tuple[float, ...] | None = setting(
        None, "mean of each element (one number: of all); none: fitted", only=("standard",), probe=(0.5,)
    )
    std: tuple[float, ...] | None = setting(
        None, "standard deviation of each element; none: fitted", low=0.0, only=("standard",), probe=(2.0,)
    )
    minimum: tuple[float, ...] | None = setting(None, "smallest value of each element; none: fitted", only=("min_max",), probe=(-9.0,))
    maximum: tuple[float, ...] | None = setting(None, "largest value of each element; none: fitted", only=("min_max",), probe=(9.0,))
    eps: float = setting(
        1e-3, "added to the standard deviation, so that nearly constant elements are not amplified", low=0.0, only=("standard",)
    )
    fields: dict[str, Any] = setting(
        {}, "types of single fields, by field name, for observations with several fields", probe={"": {"observation": "min_max"}}
    )
    options: dict[str, Any] = setting({}, "settings for a scaler from another package", only=_own)

    def kind_of(self, name: str, dtype: Any, shape: tuple[int, ...], *, several: bool) -> str:
        """Return the type for one field: its entry in `fields`, or `type`.

        Images with other fields beside them get pixel; fields that are not uint8 never do.
        """
        kind = self.fields.get(name)
        if kind is None:
            image = np.dtype(dtype) == np.uint8 and len(shape) == 3
            kind = "pixel" if image and (several or self.type == "none") else self.type
            return "none" if kind == "pixel" and np.dtype(dtype) != np.uint8 else kind
        if kind not in _observation_types():
            raise Unknown(f"observation_scaler.fields: unknown scaler {kind!r}", hint=nearest(str(kind), list(_observation_types())))
        return str(kind)


def fit_observation(
    spec: ObservationScaler, columns: Mapping[str, np.ndarray], blocks: Mapping[str, Blocks], dtype: torch.dtype, device: torch.device
) -> dict[str, Scaler | None]:
    """Fit one scaler per observation field; None for a field that is not scaled.

    Args:
        columns: field -> ``[rows, *shape]``; only dtype and shape are used.
        blocks: field -> the rows to fit on.

    Raises:
        InvalidInput: the length of a set statistic is not the observation's; pixel without a uint8 field.
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
    """Fit as `fit_observation` does, but from an environment's Box bounds: field -> (low, high) in the observation's dtype.

    Raises:
        InvalidInput: the bounds do not suffice: an element is unbounded, or the scaler needs statistics that are not set.
    """

    def blocks(name: str) -> Blocks:
        low, high = bounds[name]
        if spec.type not in ("none", "pixel", "min_max") and spec.mean is None:
            raise InvalidInput(
                f"{spec.type} scaling of observations cannot be fitted from an environment's bounds",
                hint="set observation_scaler.mean and std, or use min_max",
            )
        if spec.type == "min_max" and spec.minimum is None and not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise InvalidInput(
                f"observation field {name!r} of the environment has unbounded elements",
                hint="set observation_scaler.minimum and maximum",
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
        raise InvalidInput(f"pixel scaling needs uint8 observations, got {dtypes}", hint="use standard or min_max")
    return kinds


def _by_hand(spec: ObservationScaler, statistic: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Split a statistic from the settings by field: one number for all, or the numbers of all fields in order; {} if it is not set."""
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
        "auto: by the bounds, unless they are [-1, 1]; none; min_max: 2 (a - minimum)/(maximum - minimum) - 1",
        choices=("auto", "none", "min_max"),
    )
    minimum: tuple[float, ...] | None = setting(
        None, "minimum of each dimension (one number: of all); none: its lower bound", only=("min_max",), probe=(-9.0,)
    )
    maximum: tuple[float, ...] | None = setting(None, "maximum of each dimension; none: its upper bound", only=("min_max",), probe=(9.0,))


def fit_action(spec: ActionScaler, low: np.ndarray, high: np.ndarray, dtype: torch.dtype, device: torch.device) -> Affine | None:
    """Return the scaler for actions with the bounds ``low``, ``high`` ``[A]``; None if actions are not scaled.

    Raises:
        InvalidInput: a dimension has no finite bounds; a setting has the wrong length.
    """
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
            hint="set action_scaler.type=min_max with minimum and maximum",
        )
    return Affine.between(low, high, dtype, device)


# --- Shared ---
def by_length(name: str, values: tuple[float, ...], length: int, of: str) -> np.ndarray:
    """Return the numbers of a setting as float64 ``[length]``; a single number is repeated. Raise `InvalidInput` for another length."""
    if len(values) not in (1, length):
        raise InvalidInput(f"{name} has {len(values)} numbers for {length} {of}", hint=f"pass one number, or {length}")
    return np.broadcast_to(np.asarray(values, np.float64), length)


def chosen(fit: Callable[[Blocks], tuple[Any, Any]], blocks: Blocks, one: Any, other: Any) -> tuple[Any, Any]:
    """Return a pair of statistics: each as it is set, or fitted."""
    if one is not None and other is not None:
        return one, other
    first, second = fit(blocks)
    return (first if one is None else one), (second if other is None else other)


def divisor(values: Any) -> np.ndarray:
    """Return ``values`` with 1 in place of 0, so that a constant element maps to a finite number."""
    array = np.asarray(values, np.float64)
    return np.where(array > 0, array, 1.0)
