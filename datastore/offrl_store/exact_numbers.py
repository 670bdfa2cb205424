"""Exact conversion of numbers to arrays and dtypes: a value that would change is an error."""

from __future__ import annotations

from typing import Any

import numpy as np

from offrl_store.arrays import as_array
from offrl_store.errors import InvalidInput
from offrl_store.schema import DTYPES, short

# Bytes of a float -> the largest magnitude up to which it holds every whole number.
_WHOLE = {2: 1 << 11, 4: 1 << 24, 8: 1 << 53}


def numbers(value: Any, name: str) -> np.ndarray:
    """Convert a value as `as_array` does, to a dtype that a store holds, in native byte order. Python numbers become float64 or int64.

    Raises `InvalidInput`, with ``name`` for the value, for everything that `as_array` refuses, for texts, objects, complex numbers and
    times, and for whole numbers that no dtype holds.
    """
    array = as_array(value, name)
    dtype = array.dtype
    if dtype.kind not in "biuf" or dtype.name not in DTYPES:
        content = {"U": "text", "S": "text", "O": "Python objects", "c": "complex numbers", "M": "times", "m": "times"}.get(dtype.kind)
        odd = [each for each in array.reshape(-1).tolist() if not isinstance(each, int | float)] if dtype.kind in "USO" else []
        shown = f": {short(odd[0])}" if odd else ""
        raise InvalidInput(f"{name} holds {content or f'values of dtype {dtype}'}{shown}", hint="pass numbers: an array, or a list of them")
    if dtype == np.float64 and array.size and untyped(value) and np.abs(array).max() >= _WHOLE[8]:
        exactly = np.array(value, object)  # NumPy turns whole numbers beside a float, or both 2**63 and -1, into floats
        if not np.equal(array.astype(object), exactly).astype(bool).all():
            raise InvalidInput(f"{name} holds whole numbers that no float holds: {short(value)}", hint="pass an array of a dtype that does")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def untyped(value: Any) -> bool:
    """Return whether a value has no dtype of its own: a Python number or lists of them. The field then decides the dtype."""
    if isinstance(value, list | tuple):
        return not value or untyped(value[0])
    return isinstance(value, int | float)


def exact(array: np.ndarray, dtype: np.dtype, *, rounded: bool = False) -> np.ndarray:
    """Convert ``array`` to ``dtype``; return it unchanged if it has that dtype. Raises `Changed` for the first value that would change.

    rounded: accept the nearest float of ``dtype``; a float beyond its range is still refused.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(invalid="ignore", over="ignore"):
        converted = array.astype(dtype)
    kind, target = array.dtype.kind, dtype.kind
    if not array.size or (np.can_cast(array.dtype, dtype, "safe") and (kind, target) not in (("i", "f"), ("u", "f"))):
        return converted  # integers into floats are excluded: NumPy calls int64 into float64 safe
    if kind == "f" and target == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            same = np.isfinite(converted) if rounded else converted.astype(array.dtype) == array
        same |= ~np.isfinite(array)  # NaN and infinity stay what they are
    elif target == "b":
        same = (array == 0) | (array == 1)
    elif kind != "f" and target == "f" and -_WHOLE[dtype.itemsize] <= int(array.min()) and int(array.max()) <= _WHOLE[dtype.itemsize]:
        return converted
    else:  # Python numbers compare exactly
        same = np.equal(converted.astype(object), array.astype(object)).astype(bool)
    if not same.all():
        raise Changed(tuple(int(i) for i in np.argwhere(~same)[0]), array[~same][0].item(), dtype)
    return converted


class Changed(Exception):
    """A value that a dtype cannot hold, and its index. The caller knows the name of the field and makes the message."""

    def __init__(self, at: tuple[int, ...], value: Any, dtype: np.dtype) -> None:
        super().__init__(at, value, dtype)
        self.at, self.value, self.dtype = at, value, dtype
