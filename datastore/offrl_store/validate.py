"""The checks of episodes: a store accepts only whole, finite episodes with the declared fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from offrl_store.arrays import as_array
from offrl_store.errors import InvalidEpisode, InvalidInput
from offrl_store.schema import Column, Episode, Field, Schema, short


@dataclass(frozen=True)
class CheckedEpisode:
    """An episode that fits the schema: a C-contiguous array per column, in the order and dtypes of the schema."""

    steps: int
    terminated: bool
    final_missing: bool
    arrays: tuple[np.ndarray, ...]


def validate(schema: Schema, episode: Episode, number: int) -> CheckedEpisode:
    """Check an episode, except its values, against the schema. Raises InvalidEpisode with the episode's number, the field and the row.

    An ndarray of another dtype is accepted only if nothing is lost (a wider float field, whole numbers that the field can hold); a float64
    array is refused for a float32 field. Python lists have no dtype and are converted.
    """
    where = f"episode {number}"
    try:
        steps = len(episode.reward)
    except TypeError as error:
        raise InvalidEpisode(f"{where}: the reward is {short(episode.reward)}, not one number per step") from error
    if steps < 1:
        raise InvalidEpisode(f"{where} has no step", hint="an episode has at least one action and reward")
    if not isinstance(episode.terminated, (bool, np.bool_)):
        raise InvalidEpisode(f"{where}: terminated is {short(episode.terminated)}, not True or False")
    if episode.extra and not schema.extra:
        raise InvalidEpisode(f"{where}: extra has the unknown field {next(iter(episode.extra))}", hint="the schema has no extra field")
    arrays = []
    observed = 0
    for column in schema.columns:
        array, field = getattr(episode, column.role) if column.key is None else None, column.field
        if not (
            array.__class__ is np.ndarray
            and array.ndim
            and array.shape[1:] == field.shape
            and (array.dtype is field.dtype or array.dtype == field.dtype)
            and array.flags.c_contiguous
        ):
            array = convert_rows(_value(episode, schema, column, where), field, f"{where}, field {column.name}")
        rows = len(array)
        if column.role == "observation":
            if rows not in (steps, steps + 1):
                raise _wrong_rows(where, column, rows, f"{steps} or {steps + 1}", steps)
            if observed and rows != observed:
                raise InvalidEpisode(f"{where}: the observation fields have different numbers of rows: {observed} and {rows}")
            observed = rows
        elif rows != steps:
            raise _wrong_rows(where, column, rows, str(steps), steps)
        arrays.append(array)
    return CheckedEpisode(steps, bool(episode.terminated), observed == steps, tuple(arrays))


def _wrong_rows(where: str, column: Column, rows: int, expected: str, steps: int) -> InvalidEpisode:
    return InvalidEpisode(
        f"{where}, field {column.name} has {rows} rows; expected {expected} for {steps} rewards",
        hint="T rewards, T actions and T+1 observations (T if the final one is missing)",
    )


def check_values(array: np.ndarray, column: Column, where: str) -> None:
    """Raise InvalidEpisode for a value that is not finite (except in extras), or for an action outside its bounds."""
    if column.role == "action" and column.field.inner != (None, None):
        low, high = column.field.inner
        if (
            (low is None or np.minimum.reduce(array, None) >= low)
            and (high is None or np.maximum.reduce(array, None) <= high)
            and None not in (low, high)
        ):
            return  # neither NaN nor an infinity passes both
        _check_finite(array, column, where)
        _check_bounds(array, column, where)
    elif column.role != "extra":
        _check_finite(array, column, where)


def _value(episode: Episode, schema: Schema, column: Column, where: str) -> Any:
    """Return the episode's value for a column. Raises InvalidEpisode for unknown and missing names of dict fields."""
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


def convert_rows(value: Any, field: Field, where: str) -> np.ndarray:
    """Convert a value to the field's dtype, C-contiguous. Raises InvalidEpisode for another shape, or if the conversion would lose data."""
    typed = hasattr(value, "dtype") or (isinstance(value, (list, tuple)) and len(value) > 0 and hasattr(value[0], "dtype"))
    try:
        array = as_array(value, where)
    except InvalidInput as error:
        raise InvalidEpisode(error.message, hint=error.hint) from None
    if array.shape[1:] != field.shape or array.ndim == 0:
        raise InvalidEpisode(f"{where}: one row has shape {array.shape[1:]}; expected {field.shape}")
    if array.dtype == field.dtype:
        return np.ascontiguousarray(array)
    kind, target = array.dtype.kind, field.dtype.kind
    if kind not in "biuf" or (kind == "f" and target != "f") or (target == "b" and kind != "b"):
        raise InvalidEpisode(f"{where}: dtype {array.dtype} is not {field.dtype.name}", hint="convert it explicitly")
    if kind == "f":
        if typed and not np.can_cast(array.dtype, field.dtype, "safe"):
            raise InvalidEpisode(
                f"{where}: dtype {array.dtype} would be narrowed to {field.dtype.name}",
                hint=f"convert it explicitly (array.astype({field.dtype.name!r})) or declare the field {array.dtype}",
            )
        with np.errstate(over="ignore"):
            return array.astype(field.dtype, order="C")
    with np.errstate(invalid="ignore", over="ignore"):
        converted = array.astype(field.dtype, order="C")
        changed = converted.astype(array.dtype) != array
        if target != "f":
            changed |= (converted < 0) != (array < 0)
    if changed.any():
        row = int(np.argwhere(changed)[0][0])
        raise InvalidEpisode(f"{where}, row {row}: {array[changed].flat[0]} does not fit {field.dtype.name}")
    return converted


def _check_finite(array: np.ndarray, column: Column, where: str) -> None:
    if array.dtype.kind != "f":
        return
    # NaN and infinity propagate into a sum, so one fast pass suffices for valid data. For a short array the product with itself is fastest;
    # for a long one it would start the threads of the BLAS.
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
        raise InvalidEpisode(
            f"{where}, field {column.name}, row {row}: {array[bad].flat[0]} is not a finite number",
            hint="remove or repair the step: a NaN would spread through the whole network",
        )


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
    raise InvalidEpisode(
        f"{where}, field {column.name}, row {at[0]}: {array[at].item()} is outside the bounds {least} to {most}", hint=hint
    )
