"""Views that users of other libraries know: splitting by episode, joining and copying stores, a data set from flat arrays."""

from __future__ import annotations

import os
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import InvalidEpisode, InvalidInput, InvalidSchema
from .schema import Episode, Field, Schema
from .store import EpisodeList, EpisodeStore


def train_test_split(store: EpisodeStore | EpisodeList, share: float = 0.2, seed: int = 0) -> tuple[EpisodeList, EpisodeList]:
    """The episodes in two lists: those to train on, and a random ``share`` of them (0 to 1, at least one) to test on, both in order.

    A list goes where samplers take ``episodes``: ``store.transitions(256, seed=0, episodes=train)``. Raises InvalidInput.
    """
    episodes = store.episodes if isinstance(store, EpisodeStore) else store
    count = len(episodes)
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise InvalidInput(f"share {share!r} is not a number between 0 and 1")
    if count < 2:
        raise InvalidInput(f"{count} episodes cannot be split", hint="a split is by episode and needs two")
    tested = min(max(round(share * count), 1), count - 1)
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    test, train = np.sort(order[:tested]), np.sort(order[tested:])
    return episodes.take(train), episodes.take(test)


def copy(store: EpisodeStore, path: str | os.PathLike[str], episodes: Any = None, **limit: Any) -> EpisodeStore:
    """A new store with the same fields and these episodes (their numbers; default all). Raises StoreExists, InvalidInput."""
    return concat(path, [store if episodes is None else store.episodes.take(np.asarray(episodes))], **limit)


def concat(path: str | os.PathLike[str], parts: Sequence[EpisodeStore | EpisodeList], **limit: Any) -> EpisodeStore:
    """A new store with the episodes of several, one after the other. All have the fields of the first: InvalidSchema.

    Metadata of the schema is that of the first, that of each episode goes along. ``limit``: as for ``EpisodeStore.create``. It is
    whole or not there.
    """
    lists = [part.episodes if isinstance(part, EpisodeStore) else part for part in parts]
    if not lists:
        raise InvalidInput("there is nothing to join")
    schema = lists[0].store.schema
    for part in lists:
        if not part.store.schema.same_fields(schema):
            raise InvalidSchema(f"{part.store.path} has other fields than {lists[0].store.path}",
                                hint="names, dtypes, shapes and bounds must be equal")
    joined = EpisodeStore.create(path, schema, **limit)
    try:
        with joined.writer() as writer:
            for part in lists:
                for i, number in enumerate(part.numbers):
                    writer.append(part[i], metadata=part.store.episode_metadata(int(number)) or None)
    except BaseException:
        joined.remove()
        raise
    return joined


def MDPDataset(observations: Any, actions: Any, rewards: Any, terminals: Any, timeouts: Any = None, *,
               episode_terminals: Any = None, discrete_action: bool | None = None, tail: str = "drop",
               path: str | os.PathLike[str] | None = None) -> EpisodeStore:
    """A store from flat arrays of N steps, as d3rlpy's class of this name: row t is an observation, the action there and its reward.

    An episode ends at a row whose terminal (the task ended) or timeout (it was cut) is set; ``episode_terminals``, as in d3rlpy v1, is 1
    at both. Observations after an end are not in such arrays: the last transition of a truncated episode cannot be sampled. Rows behind
    the last end are dropped with a warning, as d3rlpy does silently; tail="truncate" makes them an episode, tail="error" refuses them.
    Actions are discrete if ``discrete_action`` says so, else if all are whole numbers (pass False for whole continuous ones). Floating
    point observations and actions keep their dtype; others than uint8 become float32. ``path``: where to keep it; without one it lies in
    a temporary folder that goes with the object. Raises InvalidInput.
    """
    observations, actions = np.asarray(observations), np.asarray(actions)
    rewards, terminals = (np.asarray(value, np.float32).reshape(-1) for value in (rewards, terminals))
    count = len(rewards)
    if timeouts is not None and episode_terminals is not None:
        raise InvalidInput("timeouts and episode_terminals were both given",
                           hint="episode_terminals is 1 at every end, timeouts at the cuts only")
    ends = terminals != 0
    for given in (timeouts, episode_terminals):
        if given is not None:
            given = np.asarray(given).reshape(-1)
            if len(given) != count:
                raise InvalidEpisode(f"timeouts or episode_terminals have {len(given)} rows for {count} rewards")
            ends = ends | (given != 0)
    for name, array in (("observations", observations), ("actions", actions), ("terminals", terminals)):
        if array.ndim == 0 or len(array) != count:
            raise InvalidEpisode(f"{name} has shape {array.shape} for {count} rewards", hint="every array has one row per step")
    if tail not in ("drop", "truncate", "error"):
        raise InvalidInput(f"tail {tail!r} is unknown", hint='use "drop", "truncate" or "error"')
    cuts = np.flatnonzero(ends) + 1
    left = count - (int(cuts[-1]) if len(cuts) else 0)
    if left and tail == "truncate":
        cuts = np.append(cuts, count)
    elif left and tail == "error":
        raise InvalidEpisode(f"the last {left} rows have no end", hint='set a timeout, or tail="truncate"')
    elif left:
        warnings.warn(f"the last {left} of {count} rows belong to no whole episode and are dropped; tail='truncate' keeps them",
                      stacklevel=2)
    if observations.dtype.kind != "f" and observations.dtype != np.uint8:
        observations = observations.astype(np.float32)
    actions, field = _actions(actions, discrete_action)
    schema = Schema(Field(observations.dtype, observations.shape[1:]), field, metadata={"dropped_rows": left if tail == "drop" else 0})
    folder = None
    if path is None:
        folder = tempfile.TemporaryDirectory(prefix="offrl-store-")
        path = folder.name
    store = EpisodeStore.create(path, schema)
    if folder is not None:
        weakref.finalize(store, folder.cleanup)
    try:
        with store.writer() as writer:
            for start, end in zip(np.concatenate([[0], cuts[:-1]]), cuts, strict=True) if len(cuts) else ():
                writer.append(Episode(observations[start:end], actions[start:end], rewards[start:end], bool(terminals[end - 1])))
    except BaseException:
        store.remove()
        raise
    return store


def _actions(actions: np.ndarray, discrete: bool | None) -> tuple[np.ndarray, Field]:
    if discrete is None:
        discrete = actions.dtype.kind in "iub" or bool(np.all(actions == np.floor(actions)))
    if not discrete:
        if actions.dtype.kind != "f":
            actions = actions.astype(np.float32)
        actions = actions.reshape(len(actions), -1)
        return actions, Field(actions.dtype, actions.shape[1:])
    if actions.size != len(actions):
        raise InvalidInput(f"actions of shape {actions.shape} are not discrete",
                           hint="pass discrete_action=False for whole continuous actions")
    whole = actions.reshape(-1).astype(np.int64)
    if not np.array_equal(whole, actions.reshape(-1)) or (len(whole) and whole.min() < 0):
        raise InvalidInput("discrete actions must be whole numbers from 0")
    return whole, Field("int64", (), low=0, high=int(whole.max()) if len(whole) else 0)
