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
        number: its index in the source, from 0; bad episodes count.
        metadata: a JSON object that the store keeps with it (level seed, task), or None.
    """

    number: int = 0
    metadata: Mapping[str, Any] | None = None


class BadEpisodes:
    """The policy for episodes that cannot be used: the first one ends the import, or (``skip``) they are left out and recorded.

    Attributes:
        skip: whether bad episodes are left out.
        skipped: the episodes left out so far, by number.
        common: the options that apply to every format.
    """

    def __init__(self, skip: bool = False, common: CommonOptions | None = None) -> None:
        self.skip, self.common = skip, common
        self.skipped: dict[int, Skipped] = {}

    def take(self, number: int, error: InvalidInput) -> None:
        """Record that episode ``number`` cannot be used, or raise ``error`` if bad episodes end the import."""
        if not self.skip or isinstance(error, Damaged):
            raise error
        self.skipped.setdefault(number, Skipped(number, getattr(error, "row", None), error.message))

    def __contains__(self, number: int) -> bool:
        return number in self.skipped

    def stated(self, space: ActionSpace | None, file: str) -> ActionSpace | None:
        """Apply the user's options to the action space that the file or its environment declares."""
        return space if self.common is None else self.common.space(space, file)


@dataclass
class Source:
    """An opened source. Use it as a context manager, or call `close`, so that its files are closed.

    Attributes:
        format: name of the format, as in `FORMATS`.
        schema: the fields as the store will hold them; ``schema.metadata`` is ``metadata``.
        episodes: yields the episodes in file order and reads blocks on demand.
        metadata: JSON values: ``env_id``, ``bounds`` (``env:ID`` | ``declared`` | ``inferred``), ``source`` and ``source_attributes``.
        count: number of episodes if it is known beforehand, else None.
        bad: policy for episodes that cannot be used. It holds all of them once ``episodes`` is exhausted.
        messages: one line for everything that was decided or left out; complete when `open_source` returns.
        resources: closed with the source.
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
        name: value of ``--format``.
        summary: one line for lists and errors that describes the format on disk.
        needs: required content, as errors name it.
        detect: returns whether the content at a path looks like this format; never raises on foreign content.
        open: opens a path, given the policy for bad episodes and the options by name. Raises `InvalidInput` with one line for any problem.
        options: name for ``--option`` -> its meaning.
    """

    name: str
    summary: str
    needs: str
    detect: Callable[[Path], bool]
    open: Callable[..., Source]
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


def field_names(keys: Iterable[str], messages: list[str], what: str = "field") -> dict[str, str]:
    """Choose unique names of fields for a format's keys: a dot joins nested keys (``a/b``), ``_`` replaces characters that a store refuses.

    Returns key -> name. A line in ``messages`` reports each key whose name differs by more than the dot.
    """
    names: dict[str, str] = {}
    keys = list(keys)
    for key in sorted(keys, key=lambda key: NAME.match(key.replace("/", ".")) is None or "/" in key):  # valid names are kept
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
    """Parse the keys of an option: a list, or text with commas. Raises `Unknown` for a key that the source does not have."""
    keys = [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else value
    if not isinstance(keys, (list, tuple)) or not all(isinstance(each, str) for each in keys):
        raise InvalidInput(f"{option} is {value!r}", hint=f"pass names: {option}=a,b")
    known = list(known)
    for each in keys:
        if each not in known:
            raise Unknown(f"{file} has no {each!r} to {option}", hint=nearest(each, known) or f"it has: {', '.join(sorted(known)[:20])}")
    return list(keys)


def make_metadata(*, env_id: str | None, bounds: str, format: str, file: str, attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Make the metadata of an imported store.

    ``file`` is a base name, never a path of this machine; ``more`` further describes the source.
    """
    return {
        "env_id": env_id,
        "bounds": bounds,
        "source": {"format": format, "file": file, **more},
        "source_attributes": attributes,
    }
