"""The fields of a recording: values of the control loop, checked and copied as the store holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl.spaces import flat, schema_of
from offrl_store import Field, Schema
from offrl_store.exact_numbers import Changed, exact, numbers, untyped
from offrl_store.schema import Column


class Fields:
    """The fields of one recorder: unknown until a schema, an environment or the first step declares them."""

    def __init__(self, action: ActionField) -> None:
        self.schema: Schema | None = None
        self._action = action
        self._casts: dict[str, list[_Cast]] = {}

    def use(self, schema: Schema | Any) -> None:
        """Take the fields of a `Schema` or of an environment, unless the fields are known already."""
        if self.schema is None:
            if not isinstance(schema, Schema):
                if not hasattr(schema, "observation_space"):
                    raise InvalidInput(f"schema is a {type(schema).__name__}", hint="pass an offrl_store.Schema, or an environment")
                schema = schema_of(schema, format="recorded")
            casts: dict[str, list[_Cast]] = {}
            for column in schema.columns:
                casts.setdefault(column.role, []).append(_Cast(column))
            self.schema, self._casts = schema, casts

    def forget(self) -> None:
        """Return to unknown fields."""
        self.schema, self._casts = None, {}

    def step(self, action: Any, reward: Any, observation: Any, extra: Any) -> tuple[Any, Any, Any, Any]:
        """The values of a step as the store holds them. Raises `InvalidInput`."""
        return (
            self.cast("action", action),
            self.cast("reward", reward),
            self.cast("observation", observation),
            self.cast("extra", extra or {}) if "extra" in self._casts or extra else None,
        )

    def cast(self, role: str, value: Any) -> Any:
        """A value, or a dict of them, as the fields of a role hold it. Raises `InvalidInput`."""
        casts = self._casts.get(role, [])
        if len(casts) == 1 and casts[0].column.key is None:
            return casts[0](value)
        expected = {str(cast.column.key): cast for cast in casts}
        values = flat(value) if isinstance(value, Mapping) else None
        if values is None or values.keys() != expected.keys():
            actual = f"a {type(value).__name__}" if values is None else ", ".join(values) or "nothing"
            raise InvalidInput(f"{role} is {actual}; expected the fields {', '.join(expected) or '(none)'}")
        return {key: cast(values[key]) for key, cast in expected.items()}

    def infer(self, before: Any, action: Any, observation: Any, extra: Mapping[str, Any]) -> None:
        """Take the fields that the first step shows. Those of the observation must also hold ``before``, the observation of the reset."""
        after = _arrays("observation", observation)
        if isinstance(before, dict) != isinstance(after, dict) or (isinstance(before, dict) and before.keys() != after.keys()):
            raise InvalidInput(
                f"observation is {_described(after)}, the first one was {_described(before)}", hint="give each observation the same fields"
            )
        if isinstance(after, dict):
            observed: Any = {name: _field_of(before[name], after[name]) for name in after}
        else:
            observed = _field_of(before, after)
        acted = self._action.field(_arrays("action", action))
        extras = _arrays("extra", dict(extra))
        metadata = {
            "env_id": None,
            "bounds": "declared" if self._action.declared else "inferred",
            "source": {"format": "recorded"},
            "source_attributes": {},
        }
        self.use(Schema(observed, acted, Field("float64"), {name: _field_of(array) for name, array in extras.items()}, metadata))


class _Cast:
    """Copies values of one column to the right dtype and shape. Refuses values that are not finite, out of bounds, or that would change."""

    def __init__(self, column: Column) -> None:
        self.column, self._dtype, self._shape = column, column.field.dtype, column.field.shape
        self._finite = self._dtype.kind == "f" and column.role != "extra"
        self._bounds = (column.field.low, column.field.high) if column.role == "action" else (None, None)
        self._is_plain_number = self._dtype == np.float64 and self._shape == () and self._bounds == (None, None)

    def __call__(self, value: Any) -> np.ndarray:
        if self._is_plain_number and value.__class__ is float and math.isfinite(value):  # a reward: a fifth of the time of the way below
            return np.array(value)
        array = value if value.__class__ is np.ndarray else numbers(value, self.column.name)
        if array.shape != self._shape:
            raise InvalidInput(f"{self.column.name} has shape {array.shape}; expected {self._shape}")
        array = array.copy() if array.dtype == self._dtype else self._converted(value, numbers(array, self.column.name))
        # The sum is finite if all values are (except for huge doubles): a third of the time of looking at each.
        if self._finite and not math.isfinite(np.add.reduce(array, axis=None, dtype=np.float64)):
            self._refuse_first(~np.isfinite(array), array, "which is not finite", "the episode ends before it: begin a new one")
        low, high = self._bounds
        if (low is not None and (array < low).any()) or (high is not None and (array > high).any()):
            outside = (array < (-np.inf if low is None else low)) | (array > (np.inf if high is None else high))
            self._refuse_first(outside, array, f"outside its bounds [{low}, {high}]", "clip it, or declare wider bounds")
        return array

    def _converted(self, value: Any, array: np.ndarray) -> np.ndarray:
        try:
            return np.array(exact(array, self._dtype, rounded=untyped(value) or self.column.role == "reward"))
        except Changed as error:
            name = f"{self.column.name}{list(error.at) or ''}"
            raise InvalidInput(
                f"{name} is {error.value}, which {self._dtype.name} does not hold",
                hint=f"give it as {self._dtype.name}, or declare a wider field with Recorder(schema=...)",
            ) from None

    def _refuse_first(self, bad: np.ndarray, array: np.ndarray, why: str, hint: str) -> None:
        if bad.any():
            at = np.argwhere(bad)[0].tolist()
            raise InvalidInput(f"{self.column.name}{at or ''} is {array[bad][0].item()}, {why}", hint=hint)


class ActionField:
    """What the user declares about the action; the first step shows the rest.

    Args:
        low, high: bounds of a vector.
        size: number of discrete actions.
    """

    def __init__(self, low: Any, high: Any, size: int | None) -> None:
        self._size = size
        self._low = None if low is None else numbers(low, "action_low")
        self._high = None if high is None else numbers(high, "action_high")
        bounded = low is not None or high is not None
        self.declared = bounded or size is not None
        if size is not None and (bounded or isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1):
            message = "action_size excludes action_low and action_high" if bounded else f"action_size is {size!r}"
            raise InvalidInput(message, hint="action_size=N: choices 0 to N-1; action_low=, action_high=: a vector")

    def field(self, action: Any) -> Field | dict[str, Field]:
        """The field for actions like this one. Raises `InvalidInput`."""
        if isinstance(action, dict):
            if self.declared:
                raise InvalidInput(f"action is {_described(action)}", hint="declare the bounds of several fields with schema=")
            return {name: _field_of(array) for name, array in action.items()}
        if self._size is not None:
            return Field("int64", (), low=0, high=int(self._size) - 1)
        if action.dtype.kind in "iub" and not action.shape:
            raise InvalidInput(
                "the number of choices of a discrete action is not known", hint="pass action_size=N, schema=, or an environment"
            )
        plain = _field_of(action)
        return Field(plain.dtype, plain.shape, low=self._low, high=self._high)


def first_observation(observation: Any) -> Any:
    """Copies of an observation whose fields are not known yet. Raises `InvalidInput` for values that are not finite."""
    arrays = _arrays("observation", observation)
    for name, array in arrays.items() if isinstance(arrays, dict) else (("", arrays),):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            at = np.argwhere(~np.isfinite(array))[0].tolist()
            where = f"observation{'.' * bool(name)}{name}{at or ''}"
            raise InvalidInput(f"{where} is {array[tuple(at)].item()}, which is not finite", hint="begin when the sensors are ready")
    return {name: array.copy() for name, array in arrays.items()} if isinstance(arrays, dict) else arrays.copy()


def flag(name: str, value: Any) -> bool:
    """True or False, from whatever type an environment uses. Raises `InvalidInput`."""
    if value is True or value is False:
        return value
    array = numbers(value, name)
    if array.size != 1 or array.reshape(()) not in (0, 1):
        raise InvalidInput(f"{name} is {value!r:.60}", hint="pass True or False")
    return bool(array.reshape(()))


def _field_of(*arrays: np.ndarray) -> Field:
    """The field for values like these. NumPy's default int64 says nothing about them, so that it becomes float64, which holds both."""
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise InvalidInput(f"observation has shape {arrays[-1].shape}, the first one has {arrays[0].shape}")
    dtype = np.result_type(*arrays)
    return Field("float64" if dtype == np.int64 else dtype, arrays[0].shape)


def _arrays(role: str, value: Any) -> Any:
    """A value as an array, or a dict of them as a dict of arrays."""
    if isinstance(value, Mapping):
        return {name: numbers(inner, f"{role}.{name}") for name, inner in flat(value).items()}
    return numbers(value, role)


def _described(value: Any) -> str:
    return f"the fields {', '.join(map(str, value)) or '(none)'}" if isinstance(value, dict) else "one array"
