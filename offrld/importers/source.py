"""The interface of importers: a source of episodes with its schema, the policy for bad episodes, and the description of a format."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offrl.errors import Unknown, nearest
from offrl_store import Episode, Schema
from offrl_store.errors import InvalidInput
from offrl_store.schema import NAME
from offrld.importers.bad_data import Damaged, Skipped
from offrld.importers.common_options import CommonOptions
from offrld.importers.spaces import ActionSpace


@dataclass(frozen=True, eq=False, repr=False)
class SourceEpisode(Episode):
    """An episode of a source.

    Attributes:
        number: its place in the source, from 0; the bad ones count.
        metadata: a JSON object that is kept with it (level seed, task), or None.
    """

    number: int = 0
    metadata: Mapping[str, Any] | None = None


class BadEpisodes:
    """The policy for episodes that cannot be used: the first one ends the import, or (``skip``) they are left out and recorded.

    Attributes:
        skip: whether they are left out.
        skipped: the ones that were, by their number.
        common: what the user says of the source, whatever its format.
    """

    def __init__(self, skip: bool = False, common: CommonOptions | None = None) -> None:
        self.skip, self.common = skip, common
        self.skipped: dict[int, Skipped] = {}

    def take(self, number: int, error: InvalidInput) -> None:
        """Record that episode ``number`` cannot be used; raise ``error`` if that ends the import."""
        if not self.skip or isinstance(error, Damaged):
            raise error
        self.skipped.setdefault(number, Skipped(number, getattr(error, "row", None), error.message))

    def __contains__(self, number: int) -> bool:
        return number in self.skipped

    def stated(self, space: ActionSpace | None, file: str) -> ActionSpace | None:
        """The action space that the file or its environment declares, with the user's options applied to it."""
        return space if self.common is None else self.common.space(space, file)


@dataclass
class Source:
    """An opened source. Use it as a context manager, or call `close`, so that its files are closed.

    Attributes:
        format: name of the format, as in `FORMATS`.
        schema: the fields as they will be stored; ``schema.metadata`` is ``metadata``.
        episodes: an iterator over the episodes in file order, which reads blocks on demand.
        metadata: JSON values: ``env_id``, ``bounds`` (``env:ID`` | ``declared`` | ``inferred``), ``source`` and ``source_attributes``.
        count: number of episodes where it is known beforehand, else None.
        bad: what becomes of episodes that cannot be used; complete when all episodes were given out.
        messages: one line for everything that was decided or left out; complete when `open_source` returns.
    """

    format: str
    schema: Schema
    episodes: Iterator[SourceEpisode]
    metadata: dict[str, Any]
    count: int | None = None
    bad: BadEpisodes = dataclasses.field(default_factory=BadEpisodes)
    messages: list[str] = dataclasses.field(default_factory=list)
    resources: ExitStack = dataclasses.field(default_factory=ExitStack, repr=False)

    def close(self) -> None:
        """Close the files behind the source; its episodes cannot be read afterwards."""
        close = getattr(self.episodes, "close", None)
        if close is not None:
            close()
        self.resources.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@dataclass(frozen=True)
class Format:
    """One format: how to detect it and how to open it.

    Attributes:
        name: what stands after ``--format``.
        summary: one line for lists and errors: what it looks like on disk.
        needs: what its content must hold, as errors name it.
        detect: whether the content at a path looks like this format; never raises on foreign content.
        open: opens a path, with what becomes of bad episodes and with the options by name; raises `InvalidInput` with one line on
            anything that is wrong.
        options: what stands after ``--option``: name -> what it means.
    """

    name: str
    summary: str
    needs: str
    detect: Callable[[Path], bool]
    open: Callable[..., Source]
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


def field_names(keys: Iterable[str], messages: list[str], what: str = "field") -> dict[str, str]:
    """The names under which a store keeps a format's keys: nested ones (``a/b``) with a dot, what a store does not take as ``_``.

    Names are unique. A line in ``messages`` reports each key that is renamed beyond the dot.
    """
    names: dict[str, str] = {}
    keys = list(keys)
    for key in sorted(keys, key=lambda key: NAME.match(key.replace("/", ".")) is None or "/" in key):  # plain names keep theirs
        plain = name = key.strip("/").replace("/", ".")
        if not NAME.match(name):
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:100]
            name = name if NAME.match(name) else f"_{name}"[:100]
        free, number = name, 2
        while free in names.values():
            free, number = f"{name[:95]}_{number}", number + 1
        if free != plain:
            messages.append(f"the {what} {key!r} is kept as {free!r}")
        names[key] = free
    return {key: names[key] for key in keys}


def named_keys(option: str, value: Any, known: Iterable[str], file: str) -> list[str]:
    """The keys that an option names, as a list or as a text with commas; raises `Unknown` for one that the source does not have."""
    given = [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)) or not all(isinstance(each, str) for each in given):
        raise InvalidInput(f"{option} is {value!r}", hint=f"give names: {option}=a,b")
    known = list(known)
    for each in given:
        if each not in known:
            raise Unknown(f"{file} has no {each!r} to {option}", hint=nearest(each, known) or f"it has: {', '.join(sorted(known)[:20])}")
    return list(given)


def make_metadata(*, env_id: str | None, bounds: str, format: str, file: str, attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The metadata that every imported store carries; ``file`` is a base name, never a path of the machine that read it. ``more`` says
    what else is known of the source."""
    return {
        "env_id": env_id,
        "bounds": bounds,
        "source": {"format": format, "file": file, **more},
        "source_attributes": attributes,
    }
