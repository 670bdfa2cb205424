"""Conversion between stores and flat arrays of N steps, as d3rlpy and D4RL use them."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from offrl_store import format as layout
from offrl_store.arrays import as_array
from offrl_store.errors import EmptyStore, InvalidEpisode, InvalidInput
from offrl_store.index import episode_numbers
from offrl_store.schema import Episode, Field, Schema
from offrl_store.store import EpisodeStore
from offrl_store.temporary import create_temporary


def MDPDataset(
    observations: Any,
    actions: Any,
    rewards: Any,
    terminals: Any,
    timeouts: Any = None,
    *,
    episode_terminals: Any = None,
    discrete_action: bool | None = None,
    action_size: int | None = None,
    tail: str = "drop",
    path: str | os.PathLike[str] | None = None,
) -> EpisodeStore:
    """Make a store from flat arrays of N steps, like d3rlpy's class of this name. Row t is an observation, its action and its reward.

    An episode ends at a row whose terminal (the task ended) or timeout (truncated) is set; ``episode_terminals``, as in d3rlpy v1, is 1 at
    both. Such arrays do not hold the observations after an end, so the last transition of a truncated episode cannot be sampled. Rows after
    the last end are dropped with a warning (d3rlpy drops them silently); tail="truncate" makes them an episode, tail="error" refuses them.

    Images are uint8, channel first [N, C, H, W]. Floating point arrays keep their dtype. Whole numbers become float32, or float64 if
    float32 does not hold all of them; lists become float32. Actions are discrete according to ``discrete_action``; by default if all are
    whole numbers (pass False for continuous ones). ``action_size`` is the number of actions, for data that do not contain all of them.
    ``path``: folder of the store; by default a temporary folder that is deleted with the object. Raises InvalidInput.
    """
    flat = _Flat.checked(observations, actions, rewards, terminals, timeouts, episode_terminals, tail)
    observed, rewarded = _floats(flat.observations, "observations"), _floats(flat.rewards, "rewards", reward=True)
    if observed.ndim == 4:
        _check_images(observed)
    acted, field = _actions(flat.actions, discrete_action, action_size)
    schema = Schema(
        Field(observed.dtype, observed.shape[1:]),
        field,
        Field(rewarded.dtype),
        metadata={"dropped_rows": flat.left if tail == "drop" else 0},
    )
    store = create_temporary(schema) if path is None else EpisodeStore.create(path, schema)
    try:
        _append(store, flat, observed, acted, rewarded)
    except BaseException:
        store.remove()
        raise
    return store


def append_rows(
    store: EpisodeStore,
    observations: Any,
    actions: Any,
    rewards: Any,
    terminals: Any,
    timeouts: Any = None,
    *,
    episode_terminals: Any = None,
    tail: str = "drop",
) -> list[int]:
    """Append flat arrays, as for MDPDataset, to a store of one observation and one action field. Returns the new episodes' numbers.

    Either all episodes are appended or none. Raises InvalidInput, InvalidEpisode for data that do not fit the store (an action beyond its
    choices; float64 for a float32 field), StoreLocked, DiskFull.
    """
    schema = store.schema
    if not isinstance(schema.observation, Field) or not isinstance(schema.action, Field):
        raise InvalidInput("the store has several observation or action fields", hint="append Episodes with store.writer()")
    flat = _Flat.checked(observations, actions, rewards, terminals, timeouts, episode_terminals, tail)
    observed, rewarded = _as_field(observations, flat.observations, schema.observation), _as_field(rewards, flat.rewards, schema.reward)
    if schema.action.discrete:
        acted, _ = _actions(flat.actions, True, None)
    else:
        acted = _as_field(actions, flat.actions, schema.action)
        acted = acted.reshape(len(acted), *schema.action.shape) if acted.size == len(acted) else acted
    return _append(store, flat, observed, acted, rewarded)


def to_arrays(store: EpisodeStore, episodes: Any = None, *, next_observations: bool = False) -> dict[str, Any]:
    """Copy the steps of a store to flat arrays of the fields' dtypes.

    Returns observations, actions, rewards [N, ...], terminals and timeouts bool [N] (one of them is set at each end of an episode), and
    extras by name under "extra". ``MDPDataset(**arrays)`` accepts them if there are no extras.

    next_observations: add the observations after each step (zeros if the final one is missing). episodes: their numbers, default all.
    Raises InvalidInput, EmptyStore.
    """
    numbers = np.arange(len(store)) if episodes is None else episode_numbers(store, episodes)
    if not len(numbers):
        raise EmptyStore(f"{store.path} has no episode")
    records = store.episode_table[numbers]
    steps, lasts = records["steps"], np.cumsum(records["steps"]) - 1
    rows = np.arange(int(steps.sum()), dtype=np.int64) + np.repeat(records["first_row"] - (lasts + 1 - steps), steps)
    arrays: dict[str, Any] = {}
    for role, name in (("observation", "observations"), ("action", "actions"), ("reward", "rewards"), ("extra", "extra")):
        parts = {c.key: store.column(c.name)[rows] for c in store.schema.columns if c.role == role}
        if parts:
            arrays[name] = parts.get(None, parts)
    ended = (records["flags"] & layout.TERMINATED) != 0
    for name, chosen in (("terminals", ended), ("timeouts", ~ended)):
        arrays[name] = np.zeros(len(rows), bool)
        arrays[name][lasts[chosen]] = True
    if next_observations:
        parts = {c.key: store.column(c.name)[rows + 1] for c in store.schema.columns if c.role == "observation"}
        arrays["next_observations"] = parts.get(None, parts)  # the row of a missing one holds zeros
    store.check_alive(store.first + int(numbers.min()))
    return arrays


@dataclass(frozen=True)
class _Flat:
    """Arrays of N rows each, the rows at which their episodes stop, and the number of rows after the last end."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminals: np.ndarray  # bool [N]
    cuts: np.ndarray
    left: int

    @classmethod
    def checked(
        cls, observations: Any, actions: Any, rewards: Any, terminals: Any, timeouts: Any, episode_terminals: Any, tail: str
    ) -> _Flat:
        observations, actions = _array(observations, "observations"), _array(actions, "actions")
        rewards = _array(rewards, "rewards").reshape(-1)
        terminals = _flags(terminals, "terminals")
        count = len(rewards)
        if timeouts is not None and episode_terminals is not None:
            raise InvalidInput(
                "timeouts and episode_terminals were both given", hint="episode_terminals is 1 at every end, timeouts at the cuts only"
            )
        if tail not in ("drop", "truncate", "error"):
            raise InvalidInput(f"tail {tail!r} is unknown", hint='use "drop", "truncate" or "error"')
        named = {"observations": observations, "actions": actions, "terminals": terminals}
        for name, flags in (("timeouts", timeouts), ("episode_terminals", episode_terminals)):
            if flags is not None:
                named[name] = _flags(flags, name)
        for name, array in named.items():
            if array.ndim == 0 or len(array) != count:
                raise InvalidEpisode(f"{name} has shape {array.shape} for {count} rewards", hint="every array has one row per step")
        ends = terminals | named.get("timeouts", terminals) | named.get("episode_terminals", terminals)
        cuts = np.flatnonzero(ends) + 1
        left = count - (int(cuts[-1]) if len(cuts) else 0)
        if left and tail == "truncate":
            cuts = np.append(cuts, count)
        elif left and tail == "error":
            raise InvalidEpisode(f"the last {left} rows have no end", hint='set a timeout, or tail="truncate"')
        elif left:
            warnings.warn(
                f"the last {left} of {count} rows do not belong to a whole episode and are dropped; tail='truncate' keeps them",
                stacklevel=4,
            )
        return cls(observations, actions, rewards, terminals, cuts, left)


def _append(store: EpisodeStore, flat: _Flat, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> list[int]:
    numbers = []
    with store.writer() as writer:
        try:
            for start, end in zip([0, *flat.cuts[:-1]], flat.cuts, strict=True) if len(flat.cuts) else ():
                episode = Episode(observations[start:end], actions[start:end], rewards[start:end], bool(flat.terminals[end - 1]))
                numbers.append(writer.append(episode))
        except BaseException:
            writer.abort()
            raise
    return numbers


def _array(value: Any, name: str) -> np.ndarray:
    array = as_array(value, name)
    if array.dtype.kind not in "biuf":
        raise InvalidInput(f"{name} has dtype {array.dtype}, not one of numbers")
    if array.dtype.kind == "f" and not hasattr(value, "dtype"):
        array = array.astype(np.float32)  # a list has no dtype of its own
    return array


def _flags(value: Any, name: str) -> np.ndarray:
    array = _array(value, name).reshape(-1)
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if len(wrong):
        raise InvalidInput(f"{name}, row {wrong[0]}: {array[wrong[0]]} is not a flag", hint="0 or 1 per step")
    return array != 0


def _floats(array: np.ndarray, name: str, reward: bool = False) -> np.ndarray:
    """Return floats and pixels unchanged, and other whole numbers as the smaller float that holds them. Raises InvalidInput."""
    if array.dtype.kind == "f":
        return array.astype(np.float32) if reward and array.dtype.itemsize < 4 else array
    if array.dtype == np.uint8 and not reward:
        return array
    for dtype in (np.float32, np.float64):
        converted = array.astype(dtype)
        if array.dtype.kind == "b" or np.array_equal(converted.astype(object), array.astype(object)):
            return converted
    raise InvalidInput(f"{name} holds whole numbers that no float holds", hint="convert them explicitly, or write Episodes")


def _as_field(value: Any, array: np.ndarray, field: Field) -> np.ndarray:
    """Return a list in the field's dtype, and an array unchanged: the writer accepts it only if nothing is lost."""
    return array if hasattr(value, "dtype") or field.dtype.kind != "f" else np.asarray(value, field.dtype).reshape(array.shape)


def _check_images(observations: np.ndarray) -> None:
    shape = observations.shape[1:]
    if observations.dtype != np.uint8:
        raise InvalidInput(
            f"images of dtype {observations.dtype}: observations of three dimensions are uint8",
            hint="pass the bytes, 0 to 255; a scaler divides them while training",
        )
    if shape[2] in (1, 3, 4) and shape[0] > 4:
        raise InvalidInput(f"images of shape {shape} look channel-last", hint="channels come first: observations.transpose(0, 3, 1, 2)")


def _actions(actions: np.ndarray, discrete: bool | None, size: int | None) -> tuple[np.ndarray, Field]:
    if discrete is None:
        discrete = size is not None or actions.dtype.kind in "iub" or bool(np.all(actions == np.floor(actions)))
    if not discrete:
        if size is not None:
            raise InvalidInput("action_size is the number of discrete actions", hint="leave it out with discrete_action=False")
        actions = _floats(actions, "actions", reward=actions.dtype == np.uint8)
        actions = actions.reshape(len(actions), -1)
        return actions, Field(actions.dtype, actions.shape[1:])
    if actions.size != len(actions):
        raise InvalidInput(
            f"actions of shape {actions.shape} are not discrete", hint="pass discrete_action=False for whole continuous actions"
        )
    flat = actions.reshape(-1)
    with np.errstate(invalid="ignore"):
        whole = flat.astype(np.int64)
    if not np.array_equal(whole, flat) or (len(whole) and whole.min() < 0):
        raise InvalidInput("discrete actions must be whole numbers from 0")
    least = int(whole.max()) + 1 if len(whole) else 1
    if size is not None and (isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < least):
        raise InvalidInput(f"action_size {size!r} is not a whole number of at least {least}", hint="the data hold higher actions")
    return whole, Field("int64", (), low=0, high=(least if size is None else int(size)) - 1)
