"""Field, Schema and Episode: what a stored step is, and the checks that keep anything else out of the store.

An episode of T steps has T actions, T rewards and T+1 observations; with T observations the final one is missing. It is
``terminated`` (the task ended, no bootstrap) or else truncated (cut; the final observation is a state like any other).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import cached_property
from typing import Any

import numpy as np

from .errors import InvalidEpisode, InvalidSchema

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
Arrays = Any  # an array-like, or a dict of them where the schema has several fields


@dataclass(frozen=True, eq=False)
class Field:
    """One array per step: its dtype, the shape of one row, and optionally inclusive bounds (scalars or arrays).

    A discrete action is an integer field of shape () with ``low=0, high=n-1``. Bounds are rounded to the field's dtype; only those
    of actions are enforced. An infinite bound is no bound. Raises InvalidSchema.
    """

    dtype: Any
    shape: tuple[int, ...] = ()
    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as error:
            raise InvalidSchema(f"{self.dtype!r} is no dtype", hint="use one of " + ", ".join(DTYPES)) from error
        if dtype.name not in DTYPES:
            raise InvalidSchema(f"dtype {dtype} cannot be stored", hint="use one of " + ", ".join(DTYPES))
        shape = (self.shape,) if isinstance(self.shape, (int, np.integer)) else tuple(self.shape)
        if any(not isinstance(n, (int, np.integer)) or n < 1 for n in shape):
            raise InvalidSchema(f"shape {shape} cannot be stored", hint="every dimension is a whole number of at least 1")
        object.__setattr__(self, "dtype", dtype.newbyteorder("<"))
        object.__setattr__(self, "shape", tuple(int(n) for n in shape))
        low, high = self._bound("low"), self._bound("high")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        if low is not None and high is not None and np.any(np.asarray(low) > np.asarray(high)):
            raise InvalidSchema(f"low {_short(low)} is above high {_short(high)}")
        # Within these two numbers a value is within the bounds of every place of a row: what one pass over an array can check.
        object.__setattr__(self, "inner", (None if low is None else np.max(low).item(), None if high is None else np.min(high).item()))

    def _bound(self, name: str) -> Any:
        """The bound as a read-only array of the field's shape and dtype (a Python number for shape ()), or None."""
        given = getattr(self, name)
        if given is None:
            return None
        try:
            wide = np.asarray(given)
            if wide.dtype.kind not in "iufb":
                raise ValueError("not a number")
            with np.errstate(over="ignore", invalid="ignore"):
                bound = np.broadcast_to(wide, self.shape).astype(self.dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidSchema(f"{name} {_short(given)} does not fit a field of shape {self.shape} and dtype {self.dtype.name}") from error
        if self.dtype.kind == "f":
            if np.isnan(bound).any():
                raise InvalidSchema(f"{name} {_short(given)} is not a number")
            if np.isinf(bound).all():
                return None
        elif not np.array_equal(bound, np.broadcast_to(wide, self.shape)):
            raise InvalidSchema(f"{name} {_short(given)} does not fit dtype {self.dtype.name}")
        bound.setflags(write=False)
        return bound.item() if self.shape == () else bound

    @property
    def discrete(self) -> bool:
        """Whether this is a choice among ``n``: whole numbers of shape () from 0 to a declared highest one."""
        return self.dtype.kind in "iu" and self.shape == () and self.low == 0 and self.high is not None

    @property
    def n(self) -> int:
        """Number of choices of a discrete field; raises InvalidSchema for any other."""
        if not self.discrete:
            raise InvalidSchema(f"{self!r} is not discrete", hint="declare an integer dtype, shape (), low=0 and high=n-1")
        return int(self.high) + 1

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"dtype": self.dtype.str, "shape": list(self.shape)}
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                value[name] = _bound_to_json(np.asarray(getattr(self, name)))
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Field:
        dtype = np.dtype(value["dtype"])
        bounds = {}
        for name, infinite in (("low", -np.inf), ("high", np.inf)):
            if value.get(name) is not None:
                bounds[name] = _bound_from_json(value[name], dtype, infinite)
        return cls(dtype, tuple(value["shape"]), **bounds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Field) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.dtype.str, self.shape))

    def __repr__(self) -> str:
        bounds = "".join(f", {name}={_short(getattr(self, name))}" for name in ("low", "high") if getattr(self, name) is not None)
        return f"Field({self.dtype.name!r}, {self.shape}{bounds})"


@dataclass(frozen=True)
class Column:
    """A field's place in the store: ``name`` is the file's stem, ``key`` the name inside its dict (None where it stands alone)."""

    name: str
    role: str
    key: str | None
    field: Field


@dataclass(frozen=True, eq=False)
class Schema:
    """The fields of a store. ``observation`` and ``action`` are one Field or a dict of them; ``extra`` rides along, one row per step.

    ``metadata`` is any JSON (env_id, source, licence). Raises InvalidSchema.
    """

    observation: Any
    action: Any
    reward: Field = Field("float32")
    extra: Mapping[str, Field] = dataclass_field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclass_field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in ("observation", "action", "extra"):
            fields = getattr(self, role)
            if isinstance(fields, Field) and role != "extra":
                continue
            named = isinstance(fields, Mapping) and all(isinstance(f, Field) for f in fields.values())
            if not named or (role != "extra" and not fields):
                expected = "a dict of Fields" if role == "extra" else "a Field or a dict of Fields"
                raise InvalidSchema(f"{role} is {_short(fields)}, not {expected}")
            for name in fields:
                if not isinstance(name, str) or not NAME.match(name):
                    raise InvalidSchema(f"{role} field name {name!r} cannot be stored", hint="use letters, digits, '_', '-' and '.'")
            object.__setattr__(self, role, dict(fields))
        reward = self.reward
        if not isinstance(reward, Field) or reward.shape != () or reward.dtype.name in ("float16", "bool"):
            raise InvalidSchema(f"reward is {reward!r}", hint="a reward is one number: float32, float64 or an integer dtype, shape ()")
        try:
            object.__setattr__(self, "metadata", json.loads(json.dumps(dict(self.metadata), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise InvalidSchema(f"metadata is not JSON: {error}") from error

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Every field in the order in which episodes are checksummed: observations, actions, reward, extras."""
        columns = []
        for role in ("observation", "action", "reward", "extra"):
            fields = getattr(self, role)
            if isinstance(fields, Field):
                columns.append(Column(role, role, None, fields))
            else:
                columns += [Column(f"{role}.{key}", role, key, f) for key, f in fields.items()]
        return tuple(columns)

    @property
    def row_bytes(self) -> int:
        return sum(column.field.row_bytes for column in self.columns)

    def to_json(self) -> dict[str, Any]:
        columns = [{"column": c.name, "role": c.role, "name": c.key, **c.field.to_json()} for c in self.columns]
        return {"columns": columns, "metadata": self.metadata}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Schema:
        roles: dict[str, Any] = {"extra": {}}
        for column in value["columns"]:
            parsed = Field.from_json(column)
            if column["name"] is None:
                roles[column["role"]] = parsed
            else:
                roles.setdefault(column["role"], {})[column["name"]] = parsed
        return cls(**roles, metadata=value["metadata"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def same_fields(self, other: Schema) -> bool:
        """Whether episodes of one fit the other: all columns equal, metadata aside."""
        return self.to_json()["columns"] == other.to_json()["columns"]


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of T steps: action, reward and each extra have T rows, observations T+1 (T: the final one is missing).

    Arrays or nested lists; a dict of them per named field. ``terminated=False`` means truncated. Checked when it is appended.
    """

    observation: Arrays
    action: Arrays
    reward: Any
    terminated: bool = False
    extra: Mapping[str, Any] = dataclass_field(default_factory=dict)

    @property
    def steps(self) -> int:
        """T, the number of actions taken."""
        return len(self.reward)

    @property
    def ret(self) -> float:
        """The undiscounted return over all T rewards."""
        return float(np.sum(self.reward, dtype=np.float64))

    @property
    def final_missing(self) -> bool:
        """Whether the observation after the last action is not there."""
        observation = self.observation
        return len(next(iter(observation.values())) if isinstance(observation, Mapping) else observation) == self.steps

    def __repr__(self) -> str:
        def shapes(value: Any) -> str:
            if isinstance(value, Mapping):
                return "{" + ", ".join(f"{k}: {shapes(v)}" for k, v in value.items()) + "}"
            return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else f"{type(value).__name__}[{len(value)}]"

        extra = f", extra={shapes(self.extra)}" if self.extra else ""
        return (f"Episode(steps={self.steps}, return={self.ret:.6g}, terminated={self.terminated}, "
                f"observation={shapes(self.observation)}, action={shapes(self.action)}{extra})")


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _bound_to_json(bound: np.ndarray) -> Any:
    if bound.ndim:
        return [_bound_to_json(row) for row in bound]
    return None if bound.dtype.kind == "f" and np.isinf(bound) else bound.item()


def _bound_from_json(value: Any, dtype: np.dtype, infinite: float) -> Any:
    if isinstance(value, list):
        return np.array([_bound_from_json(item, dtype, infinite) for item in value], dtype)
    return infinite if value is None else value


# --- Checking an episode ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckedEpisode:
    """An episode that fits: one C-contiguous array per column of the schema, in its order and its dtype."""

    steps: int
    terminated: bool
    final_missing: bool
    arrays: tuple[np.ndarray, ...]


def validate(schema: Schema, episode: Episode, number: int) -> CheckedEpisode:
    """Check an episode against the schema. Raises InvalidEpisode naming the episode's number, the field and the row.

    An ndarray of another dtype is taken only if nothing is lost (a wider float, whole numbers that the field can hold); float64 arrays
    are refused for a float32 field. Python lists carry no dtype and are converted. NaN and infinity are refused but in extras.
    """
    where = f"episode {number}"
    try:
        steps = len(episode.reward)
    except TypeError as error:
        raise InvalidEpisode(f"{where}: the reward is {_short(episode.reward)}, not one number per step") from error
    if steps < 1:
        raise InvalidEpisode(f"{where} has no step", hint="an episode has at least one action and reward")
    if not isinstance(episode.terminated, (bool, np.bool_)):
        raise InvalidEpisode(f"{where}: terminated is {_short(episode.terminated)}, not True or False")
    if episode.extra and not schema.extra:
        raise InvalidEpisode(f"{where}: extra has the unknown field {next(iter(episode.extra))}", hint="the schema has no extra field")
    arrays = []
    observed = 0
    for column in schema.columns:
        array, field = getattr(episode, column.role) if column.key is None else None, column.field
        if not (array.__class__ is np.ndarray and array.ndim and array.shape[1:] == field.shape and array.dtype == field.dtype
                and array.flags.c_contiguous):
            array = convert_rows(_given(episode, schema, column, where), field, f"{where}, field {column.name}")
        rows = len(array)
        if column.role == "observation":
            if rows not in (steps, steps + 1):
                raise _wrong_rows(where, column, rows, f"{steps} or {steps + 1}", steps)
            if observed and rows != observed:
                raise InvalidEpisode(f"{where}: the observation fields have different numbers of rows: {observed} and {rows}")
            observed = rows
        elif rows != steps:
            raise _wrong_rows(where, column, rows, str(steps), steps)
        check_values(array, column, where)
        arrays.append(array)
    return CheckedEpisode(steps, bool(episode.terminated), observed == steps, tuple(arrays))


def _wrong_rows(where: str, column: Column, rows: int, due: str, steps: int) -> InvalidEpisode:
    return InvalidEpisode(f"{where}, field {column.name} has {rows} rows, due are {due} for {steps} rewards",
                          hint="T rewards, T actions and T+1 observations (T where the final one is missing)")


def check_values(array: np.ndarray, column: Column, where: str) -> None:
    """Raise InvalidEpisode for a value that is not finite (extras aside) or an action outside its bounds."""
    if column.role == "action" and column.field.inner != (None, None):
        low, high = column.field.inner
        if (low is None or np.minimum.reduce(array, None) >= low) and (high is None or np.maximum.reduce(array, None) <= high) \
                and None not in (low, high):
            return  # neither NaN nor an infinity passes both
        _check_finite(array, column, where)
        _check_bounds(array, column, where)
    elif column.role != "extra":
        _check_finite(array, column, where)


def _given(episode: Episode, schema: Schema, column: Column, where: str) -> Any:
    """What the episode holds for a column; unknown and missing names of dict fields are errors."""
    value, fields = getattr(episode, column.role), getattr(schema, column.role)
    if column.key is None:
        if isinstance(value, Mapping):
            raise InvalidEpisode(f"{where}: {column.role} is a dict, the schema has one array")
        return value
    if not isinstance(value, Mapping):
        raise InvalidEpisode(f"{where}: {column.role} is one array, the schema has the fields {', '.join(fields)}")
    unknown = [str(name) for name in value if name not in fields]
    if unknown:
        raise InvalidEpisode(f"{where}: {column.role} has the unknown field {unknown[0]}", hint="the schema has " + ", ".join(fields))
    if column.key not in value:
        raise InvalidEpisode(f"{where}: field {column.name} is missing")
    return value[column.key]


def convert_rows(given: Any, field: Field, where: str) -> np.ndarray:
    """The value in the field's dtype and shape, C-contiguous; InvalidEpisode where that would lose something."""
    typed = hasattr(given, "dtype") or (isinstance(given, (list, tuple)) and len(given) > 0 and hasattr(given[0], "dtype"))
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise InvalidEpisode(f"{where}: not an array: rows differ in shape") from error
    if array.shape[1:] != field.shape or array.ndim == 0:
        raise InvalidEpisode(f"{where}: one row has shape {array.shape[1:]}, the schema says {field.shape}")
    if array.dtype == field.dtype:
        return np.ascontiguousarray(array)
    kind, due = array.dtype.kind, field.dtype.kind
    if kind not in "biuf" or (kind == "f" and due != "f") or (due == "b" and kind != "b"):
        raise InvalidEpisode(f"{where}: dtype {array.dtype} is not {field.dtype.name}", hint="convert it explicitly")
    if kind == "f":
        if typed and not np.can_cast(array.dtype, field.dtype, "safe"):
            raise InvalidEpisode(f"{where}: dtype {array.dtype} would be narrowed to {field.dtype.name}",
                                 hint=f"convert it explicitly (array.astype({field.dtype.name!r})) or declare the field {array.dtype}")
        with np.errstate(over="ignore"):
            return array.astype(field.dtype, order="C")
    with np.errstate(invalid="ignore", over="ignore"):
        converted = array.astype(field.dtype, order="C")
        changed = converted.astype(array.dtype) != array
        if due != "f":
            changed |= (converted < 0) != (array < 0)
    if changed.any():
        row = int(np.argwhere(changed)[0][0])
        raise InvalidEpisode(f"{where}, row {row}: {array[changed].flat[0]} does not fit {field.dtype.name}")
    return converted


def _check_finite(array: np.ndarray, column: Column, where: str) -> None:
    if array.dtype.kind != "f":
        return
    # NaN and infinity carry into a sum: one fast pass where all is well. A short array costs least as a product with itself; a long one
    # would start the threads of the BLAS.
    if array.size <= 8192 and array.dtype.itemsize > 2:
        flat = array.reshape(-1)
        if math.isfinite(flat.dot(flat)):
            return
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.add.reduce(array, None)):
                return
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise InvalidEpisode(f"{where}, field {column.name}, row {row}: {array[bad].flat[0]} is not a finite number",
                             hint="remove or repair the step: a NaN would spread through the whole network")


def _check_bounds(array: np.ndarray, column: Column, where: str) -> None:
    low, high = column.field.low, column.field.high
    if (low is None or array.min() >= np.max(low)) and (high is None or array.max() <= np.min(high)):
        return
    bad = np.zeros(array.shape, bool)
    if low is not None:
        bad |= array < low
    if high is not None:
        bad |= array > high
    if not bad.any():
        return
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    least, most = ("none" if bound is None else np.asarray(bound)[at[1:]].item() for bound in (low, high))
    discrete = column.field.discrete
    hint = f"a discrete action is one of 0..{column.field.n - 1}" if discrete else "rescale the action, or declare wider bounds"
    raise InvalidEpisode(f"{where}, field {column.name}, row {at[0]}: {array[at].item()} is outside the bounds {least} to {most}",
                         hint=hint)
