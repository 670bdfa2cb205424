"""Import a source into a store, completely or not at all.

A new store is written under a temporary name beside its destination and renamed when it is complete. An append writes its rows after the
last episode, where no reader looks, and commits all of its episodes at once; if it fails, the rows are cut off again. In both cases memory
holds one block of the source and one episode.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store import EpisodeStore, Field, Schema
from offrl_store.disk import publish
from offrl_store.errors import DiskFull, EmptyStore, InvalidEpisode, InvalidInput, OffrlError, StoreExists
from offrl_store.schema import short
from offrld.importers import reading
from offrld.importers.bad_data import BadRow, Skipped
from offrld.importers.registry import open_source
from offrld.importers.source import BadEpisodes, Source

Progress = Callable[[int, int | None], None]


def import_into(
    source: str | os.PathLike[str] | Mapping[str, Any] | Source,
    destination: str | os.PathLike[str],
    *,
    format: str | None = None,
    append: bool = False,
    progress: Progress | None = None,
    message: Callable[[str], None] | None = None,
    options: Mapping[str, Any] | None = None,
    skip_bad: Callable[[Skipped], None] | None = None,
) -> EpisodeStore:
    """Import a source into the store at ``destination`` and open the store.

    Args:
        source: a file, a folder, a dict of arrays, or an opened `Source` (which is closed).
        destination: the folder of the store. It must not exist; with ``append`` it must be a store.
        format: name of the format; None detects it from the content.
        append: add to an existing store. Fields, dtypes and shapes must be the same, and actions within its bounds.
        progress: called with (episodes done, number of episodes or None) after each episode.
        message: called with a line for everything that the import decided or left out.
        options: options of the format by name (`Format.options`).
        skip_bad: leave out episodes that cannot be used (NaN, another shape, damage) and call this with each of them at the end. None: the
            first bad episode is an error. An opened `Source` has its own setting.

    Raises:
        InvalidInput: the source or one of its values cannot be used, the destination exists, or (``append``) the source does not fit it.
        DiskFull: the disk is full.

    After any error nothing is left behind: no new store, and no further episode in an existing one.
    """
    path = Path(destination)
    if not append and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StoreExists(f"{path} already exists", hint="choose another name, or append to it")
    store = EpisodeStore.open(path) if append else None
    with _opened(source, format, options, skip_bad is not None) as opened:
        opened.metadata = reading.fitting(opened.metadata, opened.messages, "metadata of the source")
        say = message if message is not None else _discard
        for line in opened.messages:
            say(line)
        reported = len(opened.messages)
        if store is not None:
            left_out = _check_fits(opened.schema, store.schema)
            if left_out:
                say(f"not appended: {', '.join(left_out)} (the dataset has no such extra field)")
            if kept_bounds := _kept_bounds(opened, store):
                say(kept_bounds)
            _append(opened, store, progress)
        else:
            _create(opened, path, progress)
        for line in opened.messages[reported:]:
            say(line)
    if skip_bad is not None:
        for number in sorted(opened.bad.skipped):
            skip_bad(opened.bad.skipped[number])
    return EpisodeStore.open(path)


def _discard(line: str) -> None:
    """Ignore messages."""


def _opened(source: Any, format: str | None, options: Mapping[str, Any] | None, skip_bad: bool) -> Source:
    return source if isinstance(source, Source) else open_source(source, format, options=options, skip_bad=skip_bad)


def _create(source: Source, path: Path, progress: Progress | None) -> None:
    schema = source.schema
    if source.metadata != schema.metadata:
        schema = Schema(schema.observation, schema.action, schema.reward, schema.extra, source.metadata)
    temporary = path.parent / f"{path.name}.partial-{secrets.token_hex(4)}"
    try:
        _append(source, EpisodeStore.create(temporary, schema), progress)
        try:
            publish(temporary, path)
        except FileExistsError:
            raise StoreExists(f"{path} already exists", hint="something else made it during the import; choose another name") from None
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, DiskFull):
            why = error.message.replace(str(temporary), str(path))
            raise DiskFull(why, hint="free some space and import again; nothing was left there") from None
        raise


def _append(source: Source, store: EpisodeStore, progress: Progress | None) -> None:
    """Append all episodes and commit them together."""
    writer = store.writer()
    extra = store.schema.extra
    sampled = 0
    notes: list[str] = []
    try:
        for done, episode in enumerate(source.episodes, start=1):
            if len(episode.extra) > len(extra):
                episode = replace(episode, extra={name: episode.extra[name] for name in extra})
            metadata = episode.metadata and reading.fitting(episode.metadata, notes, f"metadata of episode {episode.number}")
            try:
                writer.append(episode, metadata)
            except InvalidEpisode as error:
                _take(source.bad, episode.number, error)
                continue
            sampled += episode.steps - (episode.final_missing and not episode.terminated)
            if progress is not None:
                progress(done, source.count)
        if not sampled:
            raise EmptyStore(_why_empty(source.bad), hint="give longer episodes")
        writer.commit()
        source.messages += notes[:3] + ([f"and of {len(notes) - 3} more episodes"] if len(notes) > 3 else [])
    except BaseException as error:
        with contextlib.suppress(OffrlError, OSError):  # the first error matters more; the next writer cuts the rows off if this fails
            writer.abort()
        if isinstance(error, InvalidEpisode) and store.metadata.get("bounds") == "inferred" and "outside the bounds" in error.message:
            error.hint = (
                "the bounds are the range of the data imported first: import all of it again with --option action_low=... "
                "--option action_high=..., or with its env_id"
            )
        if isinstance(error, DiskFull):
            error.hint = "free some space and append again; nothing was added"
        raise
    writer.close()


def _take(bad: BadEpisodes, number: int, error: InvalidEpisode) -> None:
    """Record an episode that the store refuses. The store's message counts its own episodes, so that number is removed."""
    if bad.skip:
        why = re.sub(r"^episode \d+,? ?", "", error.message)
        row = re.search(r"\brow (\d+)", why)
        error = BadRow(why, int(row[1])) if row else InvalidEpisode(why)
    bad.take(number, error)


def _why_empty(bad: BadEpisodes) -> str:
    if bad.skipped:
        return f"the source holds no good episode with a transition; the first bad one: {next(iter(bad.skipped.values())).why}"
    return "the source holds no transition: each of its episodes is one step without its next observation"


def _check_fits(source: Schema, store: Schema) -> list[str]:
    """Check that the columns of a source can be appended: the same names, dtypes, shapes and kind of action. Raises `InvalidInput`.

    The writer checks the bounds of each value. Returns the extra fields that the store does not have; they are left out.
    """
    left_out = [name for name in source.extra if name not in store.extra]
    source = replace(source, extra={name: each for name, each in source.extra.items() if name in store.extra})
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
    return left_out


def _kept_bounds(source: Source, store: EpisodeStore) -> str:
    """Return a line if the source declares other action bounds than the dataset, which keeps its own; else ""."""
    theirs, ours = source.schema.action, store.schema.action
    if source.metadata.get("bounds") == "inferred" or not isinstance(theirs, Field) or theirs == ours:
        return ""
    bounds = [
        f"[{short(-np.inf if each.low is None else each.low)}, {short(np.inf if each.high is None else each.high)}]"
        for each in (theirs, ours)
    ]
    return f"the source declares actions within {bounds[0]}, the dataset keeps its {bounds[1]}"
