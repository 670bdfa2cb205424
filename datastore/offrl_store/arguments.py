"""Checks of the samplers' arguments, and the arrays that batches are written into (``out`` or new ones)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl_store.errors import InvalidInput
from offrl_store.schema import Field, Schema


def whole(value: Any, name: str, low: int, high: int) -> int:
    """Return ``value`` as an int from low to high. Raises InvalidInput."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise InvalidInput(f"{name} {value!r} is not a whole number from {low} to {high}")
    return int(value)


def number(value: Any, name: str, low: float, high: float) -> float:
    """Return ``value`` as a float from low to high. Raises InvalidInput, also for NaN."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)) or not low <= value <= high:
        raise InvalidInput(f"{name} {value!r} is not a number from {low} to {high}")
    return float(value)


def flag(value: Any, name: str) -> bool:
    """Return ``value`` as a bool. Raises InvalidInput."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidInput(f"{name} {value!r} is not True or False")
    return bool(value)


def padding(value: Any) -> bool:
    """Return whether ``stack_pad`` repeats the first frame. Raises InvalidInput."""
    if value not in ("zero", "first"):
        raise InvalidInput(f"stack_pad {value!r} is unknown", hint='use "zero" or "first"')
    return value == "first"


def extras(schema: Schema, names: Any) -> tuple[str, ...]:
    """Return the names of the requested extra fields. Raises InvalidInput for an unknown one."""
    unknown = [name for name in names if name not in schema.extra]
    if unknown:
        raise InvalidInput(f"there is no extra field {unknown[0]!r}", hint="the store has " + (", ".join(schema.extra) or "none"))
    return tuple(names)


class Outputs:
    """Gives the arrays of a batch: checked arrays of ``out`` by their names in the batch, and new arrays for the rest."""

    def __init__(self, out: Any) -> None:
        if out is not None and not isinstance(out, Mapping):
            raise InvalidInput(f"out is {type(out).__name__}, not a dict of arrays")
        self._out = dict(out or {})  # what is left of it: `take` removes the arrays

    def has(self, name: str, key: str | None) -> bool:
        """Return whether ``out`` has this part of the batch."""
        if name not in self._out or key is None:
            return name in self._out
        if not isinstance(self._out[name], Mapping):
            raise InvalidInput(f"out {name} is one array, the schema has several fields", hint="pass a dict of arrays")
        return key in self._out[name]

    def take(self, name: str, key: str | None, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return the array of ``out`` for this part of the batch, or a new one. Raises InvalidInput if it does not fit."""
        dtype = np.dtype(dtype)
        if not self.has(name, key):
            return allocate(shape, dtype)
        array = self._out.pop(name) if key is None else self._out[name][key]
        label = name if key is None else f"{name}[{key!r}]"
        if key is not None:
            self._out[name] = {other: value for other, value in self._out[name].items() if other != key}
            if not self._out[name]:
                del self._out[name]
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype or not array.flags.writeable:
            actual = f"{array.dtype.name}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InvalidInput(f"out {label} is {actual}; expected a writable {dtype.name}{list(shape)}")
        if not array[0].flags.c_contiguous or (array.strides[0] < 0) or (len(shape) == 1 and not array.flags.c_contiguous):
            raise InvalidInput(f"out {label} is not contiguous within a sample")
        return array

    def finish(self) -> None:
        """Raise InvalidInput if ``out`` has an array that the batch does not use."""
        if self._out:
            raise InvalidInput(f"unknown key {next(iter(self._out))!r} in out", hint="use the names of the batch's arrays")


def allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    array = np.empty(shape, dtype)
    array.fill(0)  # maps every page now instead of in the first batch
    return array


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Return the same memory as uint8 [rows, bytes of a row]; rows need not be adjacent. Raises InvalidInput."""
    rows = array.reshape(len(array), -1) if len(array) else np.empty((0, 1), array.dtype)
    if not np.shares_memory(rows, array) and len(array):
        raise InvalidInput("an array of out is not contiguous within a sample")
    return rows.view(np.uint8)


def stacked(field: Field, k: int) -> tuple[int, ...]:
    """Return the shape of k rows joined along their first axis (a number becomes a vector of k)."""
    return (k,) if k > 1 and not field.shape else (k * field.shape[0], *field.shape[1:]) if field.shape else ()


def single(values: dict[str | None, Any]) -> Any:
    """Return the single array of a role without named fields, or else the dict."""
    return values.get(None, values)


def head(value: Any, count: int) -> Any:
    """Return the first ``count`` samples of an array, or of every array of a dict; any other value unchanged."""
    if isinstance(value, Mapping):
        return {name: array[:count] for name, array in value.items()}
    return value[:count] if isinstance(value, np.ndarray) else value
