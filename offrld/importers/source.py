"""What an importer gives: a source of episodes with its schema, and what a format says about itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offrl_store import Episode, Schema


@dataclass
class Source:
    """An opened source. Use it as a context manager, or call `close`, so that its files are closed.

    Attributes:
        format: name of the format, as in `FORMATS`.
        schema: the fields as they will be stored; ``schema.metadata`` is ``metadata``.
        episodes: the episodes in file order, read in blocks while they are asked for; can be gone through once.
        metadata: JSON values: ``env_id``, ``bounds`` (``env:ID`` | ``declared`` | ``inferred``), ``source`` and ``source_attributes``.
        count: number of episodes where it is known beforehand, else None.
        messages: one line for everything that was decided or left out; complete when `open_source` returns.
    """

    format: str
    schema: Schema
    episodes: Iterator[Episode]
    metadata: dict[str, Any]
    count: int | None = None
    messages: list[str] = field(default_factory=list)
    resources: ExitStack = field(default_factory=ExitStack, repr=False)

    def close(self) -> None:
        """Closes the files behind the source; the episodes cannot be gone through afterwards."""
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
    """One format: how to tell it and how to open it.

    Attributes:
        name: what stands after ``--format``.
        summary: one line for lists and errors: what it looks like on disk.
        needs: what its content must hold, as errors name it.
        detect: whether the content at a path looks like this format; never raises on foreign content.
        open: opens a path; raises `InvalidInput` with one line on anything that is wrong.
    """

    name: str
    summary: str
    needs: str
    detect: Callable[[Path], bool]
    open: Callable[[Path], Source]


def make_metadata(*, env_id: str | None, bounds: str, format: str, file: str, attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The metadata that every imported store carries; ``file`` is a base name, never a path of the machine that read it."""
    return {
        "env_id": env_id,
        "bounds": bounds,
        "source": {"format": format, "file": file, **more},
        "source_attributes": attributes,
    }
