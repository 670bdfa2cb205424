"""Numbers as somebody gives them, and in another dtype: exactly, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from offrl_store.arrays import as_array
from offrl_store.errors import InvalidInput
from offrl_store.schema import DTYPES, short

# Whole numbers up to here are exact in a float of that many bytes.
_WHOLE = {2: 1 << 11, 4: 1 << 24, 8: 1 << 53}


def numbers(value: Any, name: str) -> np.ndarray:
    """What `as_array` takes, as an array of a dtype that a store has, in the machine's byte order; Python's numbers as float64 or int64.

    Raises `InvalidInput`, which calls the value ``name``, for anything that would not be exact: what `as_array` refuses, texts, objects,
    complex numbers, times, whole numbers that no dtype holds.
    """
    array = as_array(value, name)
    dtype = array.dtype
    if dtype.kind not in "biuf" or dtype.name not in DTYPES:
        said = {"U": "text", "S": "text", "O": "Python objects", "c": "complex numbers", "M": "times", "m": "times"}.get(dtype.kind)
        odd = [each for each in array.reshape(-1).tolist() if not isinstance(each, int | float)] if dtype.kind in "USO" else []
        shown = f": {short(odd[0])}" if odd else ""
        raise InvalidInput(f"{name} holds {said or f'values of dtype {dtype}'}{shown}", hint="give numbers: an array, or a list of them")
    if dtype == np.float64 and array.size and untyped(value) and np.abs(array).max() >= _WHOLE[8]:
        exactly = np.array(value, object)  # NumPy makes floats of whole numbers beside a float, and of those of both 2**63 and -1
        if not np.equal(array.astype(object), exactly).astype(bool).all():
            raise InvalidInput(f"{name} holds whole numbers that no float holds: {short(value)}", hint="give an array of a dtype that does")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def untyped(value: Any) -> bool:
    """Whether a value has no dtype of its own: a Python number or lists of them. What they are kept as is for the field to say."""
    if isinstance(value, list | tuple):
        return not value or untyped(value[0])
    return isinstance(value, int | float)


def exact(array: np.ndarray, dtype: np.dtype, *, rounded: bool = False) -> np.ndarray:
    """``array`` in ``dtype``, itself where it has it. Raises `Changed` for the first value that would be another one there.

    rounded: a float may become the nearest one of ``dtype``; one that is beyond its range is refused all the same.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(invalid="ignore", over="ignore"):
        converted = array.astype(dtype)
    kind, due = array.dtype.kind, dtype.kind
    if not array.size or (np.can_cast(array.dtype, dtype, "safe") and (kind, due) not in (("i", "f"), ("u", "f"))):
        return converted  # NumPy calls int64 into float64 safe, too
    if kind == "f" and due == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            same = np.isfinite(converted) if rounded else converted.astype(array.dtype) == array
        same |= ~np.isfinite(array)  # what is not finite stays so
    elif due == "b":
        same = (array == 0) | (array == 1)
    elif kind != "f" and due == "f" and -_WHOLE[dtype.itemsize] <= int(array.min()) and int(array.max()) <= _WHOLE[dtype.itemsize]:
        return converted
    else:  # Python's numbers compare exactly
        same = np.equal(converted.astype(object), array.astype(object)).astype(bool)
    if not same.all():
        raise Changed(tuple(int(i) for i in np.argwhere(~same)[0]), array[~same][0].item(), dtype)
    return converted


class Changed(Exception):
    """A value that a dtype does not hold, and where it stands; for the caller, who knows the field's name."""

    def __init__(self, at: tuple[int, ...], value: Any, dtype: np.dtype) -> None:
        super().__init__(at, value, dtype)
        self.at, self.value, self.dtype = at, value, dtype
