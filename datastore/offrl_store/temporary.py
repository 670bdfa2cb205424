"""Other ways to make a store: from episodes, with their fields inferred, and temporary stores on disk or in memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from offrl_store.arrays import as_array
from offrl_store.errors import InvalidInput, InvalidSchema
from offrl_store.schema import Episode, Field, Schema
from offrl_store.store import EpisodeStore

MEMORY = "/dev/shm"  # a file system in memory


def create_temporary(schema: Schema, *, memory: bool = False, **limit: Any) -> EpisodeStore:
    """Make a store that is deleted with the object or at the end of the process, in the folder for temporary files or in memory.

    memory: below /dev/shm, which writes nothing to disk and does not survive a restart of the machine. Several processes can still open it.
    limit: as for ``EpisodeStore.create``. Raises InvalidInput if the machine has no /dev/shm.
    """
    if memory and not os.access(MEMORY, os.W_OK):
        raise InvalidInput(f"there is no memory file system at {MEMORY}", hint="mount a tmpfs and create the store there")
    folder = tempfile.TemporaryDirectory(prefix="offrl-store-", dir=MEMORY if memory else None)
    store = EpisodeStore.create(folder.name, schema, **limit)
    weakref.finalize(store, folder.cleanup)
    return store


def infer_schema(episode: Episode, *, action_size: int | None = None, metadata: Mapping[str, Any] | None = None) -> Schema:
    """Infer the fields of an episode from the dtypes and shapes of its arrays. Lists get NumPy's dtype, but floats become float32.

    action_size: the number of discrete actions, which must be whole numbers [T]; without it actions have no bounds. Raises InvalidSchema.
    """

    def field(value: Any) -> Field:
        array = as_array(value, "a field")
        if array.ndim == 0:
            raise InvalidSchema(f"{value!r} is not one row per step")
        return Field(array.dtype if hasattr(value, "dtype") or array.dtype.kind != "f" else np.float32, array.shape[1:])

    def fields(value: Any) -> Any:
        return {name: field(each) for name, each in value.items()} if isinstance(value, Mapping) else field(value)

    action, reward = fields(episode.action), field(episode.reward)
    if action_size is not None:
        if not isinstance(action, Field) or action.dtype.kind not in "iu" or action.shape != ():
            raise InvalidSchema(f"actions of {action!r} are not discrete", hint="discrete actions are whole numbers [T]")
        action = Field(action.dtype, (), low=0, high=action_size - 1)
    if reward.dtype.kind in "iub":
        reward = Field("float32")
    return Schema(fields(episode.observation), action, reward, fields(episode.extra), metadata or {})


def from_episodes(
    path: str | os.PathLike[str] | None, episodes: Iterable[Episode], *, action_size: int | None = None, **limit: Any
) -> EpisodeStore:
    """Make a store of episodes, with the fields of the first one.

    path: None makes a temporary store. limit: as for ``EpisodeStore.create``. Raises InvalidInput if there is no episode, InvalidEpisode
        for
    an episode that differs from the first; nothing is left then.
    """
    left = iter(episodes)
    first = next(left, None)
    if first is None:
        raise InvalidInput("there is no episode", hint="create the store with a Schema instead")
    schema = infer_schema(first, action_size=action_size)
    store = create_temporary(schema, **limit) if path is None else EpisodeStore.create(path, schema, **limit)
    try:
        with store.writer() as writer:
            writer.append(first)
            for episode in left:
                writer.append(episode)
    except BaseException:
        store.remove()
        raise
    return store
