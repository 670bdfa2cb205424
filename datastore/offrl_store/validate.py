"""The checks that keep anything but whole, finite episodes of the declared fields out of a store."""

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
    """An episode that fits: one C-contiguous array per column of the schema, in its order and its dtype."""

    steps: int
    terminated: bool
    final_missing: bool
    arrays: tuple[np.ndarray, ...]


def validate(schema: Schema, episode: Episode, number: int) -> CheckedEpisode:
    """Check an episode against the schema, all but its values. Raises InvalidEpisode naming the episode's number, the field and the row.

    An ndarray of another dtype is taken only if nothing is lost (a wider float, whole numbers that the field can hold); float64 arrays
    are refused for a float32 field. Python lists carry no dtype and are converted.
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
        arrays.append(array)
    return CheckedEpisode(steps, bool(episode.terminated), observed == steps, tuple(arrays))


def _wrong_rows(where: str, column: Column, rows: int, due: str, steps: int) -> InvalidEpisode:
    return InvalidEpisode(
        f"{where}, field {column.name} has {rows} rows; expected {due} for {steps} rewards",
        hint="T rewards, T actions and T+1 observations (T where the final one is missing)",
    )


def check_values(array: np.ndarray, column: Column, where: str) -> None:
    """Raise InvalidEpisode for a value that is not finite (extras aside) or an action outside its bounds."""
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
        array = as_array(given, where)
    except InvalidInput as error:
        raise InvalidEpisode(error.message, hint=error.hint) from None
    if array.shape[1:] != field.shape or array.ndim == 0:
        raise InvalidEpisode(f"{where}: one row has shape {array.shape[1:]}, the schema says {field.shape}")
    if array.dtype == field.dtype:
        return np.ascontiguousarray(array)
    kind, due = array.dtype.kind, field.dtype.kind
    if kind not in "biuf" or (kind == "f" and due != "f") or (due == "b" and kind != "b"):
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
