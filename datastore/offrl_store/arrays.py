"""Conversion of array-like values to NumPy: tensors of other libraries, lists, masked arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from offrl_store.errors import InvalidInput


def as_array(value: Any, name: str) -> np.ndarray:
    """Convert a value to a NumPy array.

    The value is a NumPy array, a torch tensor (on any device, with or without a gradient), nested lists, or any object with ``__array__``
    or ``__dlpack__``. ``name`` is its name in errors.

    Raises InvalidInput for rows of different shapes, for masked values, and for values that are not arrays.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(value)
        if masked.any():
            at = [int(i) for i in np.argwhere(masked)[0]]
            raise InvalidInput(f"{name}{at} is masked", hint="fill the gap (filled), or remove the episode")
        return value.data
    try:
        if hasattr(value, "detach") and hasattr(value, "cpu"):
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":  # NumPy has no such dtype; float32 holds all of its values
                value = value.float()
            return value.resolve_conj().resolve_neg().to_dense().numpy()
        if isinstance(value, list | tuple) and value and hasattr(value[0], "detach"):
            value = [as_array(each, name) for each in value]
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except ValueError as error:
        if "inhomogeneous" in str(error):
            raise InvalidInput(f"{name}: not an array: rows differ in shape", hint="every row needs the same shape") from None
        raise InvalidInput(f"{name} is not an array: {error}", hint="pass numbers, one row per step") from None
    except (TypeError, RuntimeError, BufferError) as error:
        raise InvalidInput(f"{name} is not an array: {str(error).splitlines()[0]}", hint="pass numbers, one row per step") from None
