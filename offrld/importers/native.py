"""Import a store folder of this project (format ``store``): its unchanged episodes, each checked against its checksum."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store import Episode, EpisodeStore, Field, Schema
from offrl_store.errors import EmptyStore, InvalidInput, StoreCorrupt, StoreNotFound
from offrl_store.temporary import from_episodes
from offrld.importers.source import BadEpisodes, Format, Source, SourceEpisode
from offrld.importers.spaces import Choices

NEEDS = "a folder with schema.json, episodes.log and columns/"


def detect(path: Path) -> bool:
    return path.is_dir() and (path / "schema.json").is_file() and (path / "episodes.log").is_file()


def open_folder(path: Path, bad: BadEpisodes) -> Source:
    """Open a store and keep its metadata. Raises `InvalidInput` if it is not a store or is damaged."""
    name = path.resolve().name
    try:
        store = EpisodeStore.open(path)
    except (StoreNotFound, StoreCorrupt) as error:
        raise InvalidInput(f"{name} cannot be opened as a store: {error.message}", hint=error.hint or f"needed: {NEEDS}") from None
    return open_store(store, name, bad)


def open_given(store: EpisodeStore, bad: BadEpisodes) -> Source:
    """Make a source of a store that is already open."""
    return open_store(store, store.path.name, bad)


def open_episodes(episodes: Iterable[Any], bad: BadEpisodes) -> Source:
    """Make a source of an iterable of episodes. They are copied to a temporary store with the fields of the first one."""

    def checked() -> Iterator[Episode]:
        for number, each in enumerate(episodes):
            if not isinstance(each, Episode):
                raise InvalidInput(f"item {number} is a {type(each).__name__}, not an Episode", hint="pass offrl_store.Episode objects")
            yield each

    store = from_episodes(None, checked())
    source = open_store(store, "episodes", bad)
    source.resources.callback(lambda: store)  # keeps the object, and so the temporary store, until the source is closed
    return source


def open_store(store: EpisodeStore, name: str, bad: BadEpisodes | None = None) -> Source:
    """Make a source of the episodes that an opened store sees: those of its snapshot if it was opened at one."""
    if not len(store):
        raise EmptyStore(f"{name} holds no episodes", hint="give a store with at least one episode")
    metadata = dict(store.metadata)
    metadata.setdefault("source", {"format": "store", "file": name})
    bad = bad or BadEpisodes()
    schema = _stated(store.schema, bad, name, metadata)
    return Source("store", schema, _episodes(store, name, bad), metadata, len(store), bad)


def _stated(schema: Schema, bad: BadEpisodes, name: str, metadata: dict[str, Any]) -> Schema:
    """Return the schema with the action space that the user states, if any."""
    action = schema.action
    if not isinstance(action, Field):
        return schema
    space = bad.stated(None, name)
    if space is None:
        return schema
    if isinstance(space, Choices):
        stated = Field(action.dtype, action.shape, low=0, high=space.n - 1)
    else:
        pairs = ((space.low, action.low), (space.high, action.high))
        bounds = (option if own is None else np.where(np.isfinite(option), option, own) for option, own in pairs)
        stated = Field(action.dtype, action.shape, *bounds)
    metadata["bounds"] = space.origin
    return replace(schema, action=stated)


def _episodes(store: EpisodeStore, name: str, bad: BadEpisodes) -> Iterator[SourceEpisode]:
    columns = [store.column(column.name) for column in store.schema.columns]
    for number, record in enumerate(store.episode_table):
        rows = slice(int(record["first_row"]), int(record["first_row"] + record["steps"]) + 1)
        checksum = 0
        for column in columns:
            checksum = zlib.crc32(column[rows].data, checksum)
        if checksum != record["data_crc"]:
            bad.take(
                number, InvalidInput(f"{name}: episode {number} does not fit its checksum", hint="the store is damaged; copy it again")
            )
            continue
        episode = store.episodes[number]
        yield SourceEpisode(
            episode.observation,
            episode.action,
            episode.reward,
            episode.terminated,
            episode.extra,
            number=number,
            metadata=store.episode_metadata(number) or None,
        )


FORMAT = Format("store", "store folder of this project", NEEDS, detect, open_folder)
