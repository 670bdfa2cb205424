"""Importing: from a source into a store, the whole of it or nothing.

A new store is written under a temporary name beside its destination and renamed when it is complete. An append writes its rows behind the
last episode, where no reader looks, and commits all of its episodes at once; when it fails the rows are cut off again. In both cases memory
holds one block of the source and one episode.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from offrl_store import EpisodeStore, Schema
from offrl_store.errors import DiskFull, EmptyStore, InvalidEpisode, InvalidInput, OffrlError, StoreExists

from .registry import open_source
from .source import Source

Progress = Callable[[int, int | None], None]


def import_into(
    source: str | os.PathLike[str] | Mapping[str, Any] | Source,
    destination: str | os.PathLike[str],
    *,
    format: str | None = None,
    append: bool = False,
    progress: Progress | None = None,
    message: Callable[[str], None] | None = None,
) -> EpisodeStore:
    """Imports a source into the store at ``destination`` and opens it.

    Args:
        source: a file, a folder, a dict of arrays, or an opened `Source` (which is closed).
        destination: the store's folder: must not exist, or with ``append`` must be a store.
        format: name of the format; told from the content if left out.
        append: add to the store instead of making it; fields, dtypes and shapes must be the same, actions within its bounds.
        progress: called with (episodes done, episodes in all or None) after each episode.
        message: called with every line that the import has to say about what it decided or left out.

    Raises:
        InvalidInput: the source or one of its values cannot be used, the destination exists, or (``append``) does not fit.
        DiskFull: nothing of the source is kept.

    Whatever is raised, nothing is left behind: no store where none was, no episode more in the one that was.
    """
    path = Path(destination)
    if not append and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StoreExists(f"{path} exists already", hint="choose another name, or append to it")
    store = EpisodeStore.open(path) if append else None
    with source if isinstance(source, Source) else open_source(source, format) as opened:
        for line in opened.messages if message is not None else ():
            message(line)
        if store is not None:
            _check_fits(opened.schema, store.schema)
            _append(opened, store, progress)
        else:
            _create(opened, path, progress)
    return EpisodeStore.open(path)


def _create(source: Source, path: Path, progress: Progress | None) -> None:
    schema = source.schema
    if source.metadata != schema.metadata:
        schema = Schema(schema.observation, schema.action, schema.reward, schema.extra, source.metadata)
    temporary = path.parent / f"{path.name}.partial-{secrets.token_hex(4)}"
    try:
        _append(source, EpisodeStore.create(temporary, schema), progress)
        try:
            os.rename(temporary, path)
        except OSError:
            if path.exists():
                raise StoreExists(f"{path} exists already", hint="something else made it during the import; choose another name") from None
            raise
        _sync(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, DiskFull):
            raise DiskFull(f"no space left to write {path}", hint="free some space and import again; nothing was left there") from None
        raise


def _append(source: Source, store: EpisodeStore, progress: Progress | None) -> None:
    """Appends all episodes and commits them together."""
    writer = store.writer()
    sampled = 0
    try:
        for done, episode in enumerate(source.episodes, start=1):
            writer.append(episode)
            sampled += episode.steps - (episode.final_missing and not episode.terminated)
            if progress is not None:
                progress(done, source.count)
        if not sampled:
            raise EmptyStore(
                "the source holds no transition: each of its episodes is one step without its next observation", hint="give longer episodes"
            )
        writer.commit()
    except BaseException as error:
        with contextlib.suppress(OffrlError, OSError):  # what made the import fail says more; the next writer cuts the rows off then
            writer.abort()
        if isinstance(error, InvalidEpisode) and store.metadata.get("bounds") == "inferred" and "outside the bounds" in str(error):
            error.hint = "the bounds are the range of the data imported first: import it anew with its env_id, or with declared bounds"
        if isinstance(error, DiskFull):
            error.hint = "free some space and append again; nothing was added"
        raise
    writer.close()


def _check_fits(source: Schema, store: Schema) -> None:
    """Whether the columns of a source can be appended: the same names, dtypes, shapes and kind of action. Bounds are checked per value."""
    theirs, ours = ({column.name: column.field for column in schema.columns} for schema in (source, store))
    if theirs.keys() != ours.keys():
        raise InvalidInput(
            f"the source has the fields {', '.join(theirs)}, the dataset {', '.join(ours)}",
            hint="only data with the same fields can be appended",
        )
    for name, field in ours.items():
        other = theirs[name]
        if (field.dtype, field.shape, field.discrete) != (other.dtype, other.shape, other.discrete):
            described = [f"{'discrete ' if each.discrete else ''}{each.dtype.name} {each.shape}" for each in (other, field)]
            raise InvalidInput(
                f"{name!r} is {described[0]} in the source and {described[1]} in the dataset",
                hint="only data of the same form can be appended",
            )


def _sync(folder: Path) -> None:
    """Makes the renamed entry of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
