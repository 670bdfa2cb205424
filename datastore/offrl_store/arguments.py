"""What the samplers share: checking their arguments, and the arrays that their batches are written into (``out`` or new ones)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl_store.errors import InvalidInput
from offrl_store.schema import Field, Schema


def whole(value: Any, name: str, low: int, high: int) -> int:
    """``value`` as an int from low to high. Raises InvalidInput."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise InvalidInput(f"{name} {value!r} is not a whole number from {low} to {high}")
    return int(value)


def number(value: Any, name: str, low: float, high: float) -> float:
    """``value`` as a float from low to high, NaN refused. Raises InvalidInput."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)) or not low <= value <= high:
        raise InvalidInput(f"{name} {value!r} is not a number from {low} to {high}")
    return float(value)


def flag(value: Any, name: str) -> bool:
    """``value`` as a bool. Raises InvalidInput."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidInput(f"{name} {value!r} is not True or False")
    return bool(value)


def padding(value: Any) -> bool:
    """Whether ``stack_pad`` repeats the first frame. Raises InvalidInput."""
    if value not in ("zero", "first"):
        raise InvalidInput(f"stack_pad {value!r} is unknown", hint='use "zero" or "first"')
    return value == "first"


def extras(schema: Schema, names: Any) -> tuple[str, ...]:
    """The names of the requested extra fields. Raises InvalidInput."""
    unknown = [name for name in names if name not in schema.extra]
    if unknown:
        raise InvalidInput(f"there is no extra field {unknown[0]!r}", hint="the store has " + (", ".join(schema.extra) or "none"))
    return tuple(names)


class Outputs:
    """The arrays of a batch: those of ``out``, by the names of the batch, checked, and new ones for the rest."""

    def __init__(self, given: Any) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise InvalidInput(f"out is {type(given).__name__}, not a dict of arrays")
        self._given = dict(given or {})

    def has(self, name: str, key: str | None) -> bool:
        """Whether ``out`` gives this part of the batch."""
        if name not in self._given or key is None:
            return name in self._given
        if not isinstance(self._given[name], Mapping):
            raise InvalidInput(f"out {name} is one array, the schema has several fields", hint="give a dict of arrays")
        return key in self._given[name]

    def take(self, name: str, key: str | None, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The array of ``out`` for this part of the batch, or a new one. Raises InvalidInput."""
        dtype = np.dtype(dtype)
        if not self.has(name, key):
            return allocate(shape, dtype)
        array = self._given.pop(name) if key is None else self._given[name][key]
        label = name if key is None else f"{name}[{key!r}]"
        if key is not None:
            self._given[name] = {other: value for other, value in self._given[name].items() if other != key}
            if not self._given[name]:
                del self._given[name]
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype or not array.flags.writeable:
            actual = f"{array.dtype.name}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InvalidInput(f"out {label} is {actual}; expected a writable {dtype.name}{list(shape)}")
        if not array[0].flags.c_contiguous or (array.strides[0] < 0) or (len(shape) == 1 and not array.flags.c_contiguous):
            raise InvalidInput(f"out {label} is not contiguous within a sample")
        return array

    def finish(self) -> None:
        """Raise InvalidInput if ``out`` gave an array that nothing took."""
        if self._given:
            raise InvalidInput(f"unknown key {next(iter(self._given))!r} in out", hint="use the names of the batch's arrays")


def allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    array = np.empty(shape, dtype)
    array.fill(0)  # touches every page now rather than in the first batch
    return array


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The same memory as uint8 [rows, bytes of a row]; rows may lie apart."""
    rows = array.reshape(len(array), -1) if len(array) else np.empty((0, 1), array.dtype)
    if not np.shares_memory(rows, array) and len(array):
        raise InvalidInput("an array of out is not contiguous within a sample")
    return rows.view(np.uint8)


def stacked(field: Field, k: int) -> tuple[int, ...]:
    """Shape of k rows joined along their first axis (a number becomes a vector of k)."""
    return (k,) if k > 1 and not field.shape else (k * field.shape[0], *field.shape[1:]) if field.shape else ()


def single(values: dict[str | None, Any]) -> Any:
    """The one array of a role without named fields, else the dict."""
    return values.get(None, values)


def head(value: Any, count: int) -> Any:
    """The first ``count`` samples of an array, or of every array of a dict; anything else as it is."""
    if isinstance(value, Mapping):
        return {name: array[:count] for name, array in value.items()}
    return value[:count] if isinstance(value, np.ndarray) else value
