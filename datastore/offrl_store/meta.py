"""Metadata of single episodes: `episodes.meta`, one line of JSON per episode that has any.

Now and then a bounded store removes the lines of evicted episodes: it writes a new file that replaces the old one.

A line is the CRC-32 of what follows in eight hex digits, a space, the episode's number, a space, a JSON object, a line feed. Lines are
synced before the records of their episodes; lines of episodes that have no record are an unfinished write.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from offrl_store.disk import sync_folder, write_all
from offrl_store.errors import InvalidInput, StoreCorrupt

META_FILE, NEW_FILE = "episodes.meta", "episodes.meta.new"
COMPACT_BYTES = 64 << 10  # a smaller file is never rewritten
ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))  # json.dumps makes an encoder per call, which takes longer than encoding


def checked(metadata: Mapping[str, Any] | None) -> str | None:
    """Encode the metadata of an episode as JSON; None stays None. Raises InvalidInput."""
    if metadata is None:
        return None
    try:
        return ENCODER.encode(dict(metadata))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"metadata is not a JSON object: {error}") from error
    except RecursionError:
        raise InvalidInput("metadata is nested too deeply", hint="pass JSON with fewer levels") from None


def dump_line(number: int, text: str) -> bytes:
    body = f"{number} {text}".encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def scan(raw: bytes) -> Iterator[tuple[int, int | None, bytes]]:
    """Yield end of the line, episode number and JSON of each line. The number is None if the checksum is wrong."""
    at = 0
    while at < len(raw):
        end = raw.find(b"\n", at) + 1 or len(raw)
        crc, _, body = raw[at:end].rstrip(b"\n").partition(b" ")
        number, _, text = body.partition(b" ")
        whole = raw[end - 1 : end] == b"\n" and crc == b"%08x" % zlib.crc32(body) and number.isdigit()
        yield end, int(number) if whole else None, text
        at = end


class MetaReader:
    """The metadata of a store's episodes. The file is read again when there are more episodes than at the last reading."""

    def __init__(self, path: Path) -> None:
        self._file, self._count = path / META_FILE, 0
        self._lines: dict[int, bytes] = {}
        self._damaged: list[tuple[int, int, int]] = []  # line, and the numbers of the whole lines around it

    def get(self, number: int, count: int) -> dict[str, Any]:
        """Return the metadata of episode ``number`` of ``count`` committed ones. Raises StoreCorrupt if a damaged line may be its line."""
        if count > self._count:  # lines of committed episodes never change; other lines may belong to an unfinished write
            self._read(count)
        if number not in self._lines:
            for line, low, high in self._damaged:
                if low < number < high:
                    raise StoreCorrupt(
                        f"{self._file}, line {line} is damaged; it may be that of episode {number}", hint="restore the file from a copy"
                    )
        return json.loads(self._lines.get(number, b"{}"))

    def _read(self, count: int) -> None:
        try:
            raw = self._file.read_bytes()
        except FileNotFoundError:
            raw = b""
        self._lines, self._damaged, self._count = {}, [], count
        open_lines, before = [], -1
        for line, (_, number, text) in enumerate(scan(raw), 1):
            if number is None:
                open_lines.append(line)
            elif number < count:
                self._damaged += [(damaged, before, number) for damaged in open_lines]
                open_lines, before, self._lines[number] = [], number, text


class MetaWriter:
    """Appends lines. Lines whose episode has no record are cut off."""

    def __init__(self, path: Path, committed: int) -> None:
        self._file, self._descriptor, self._end = path / META_FILE, -1, 0
        self._waiting: list[tuple[int, str]] = []
        self._compact_at = COMPACT_BYTES  # size of the file from which a search for lines to remove is worth its cost
        self._new, self._new_name = path / NEW_FILE, False
        self._new.unlink(missing_ok=True)  # left by a writer that died
        if self._file.exists():
            raw = self._file.read_bytes()
            self._end = max((end for end, number, _ in scan(raw) if number is not None and number < committed), default=0)
            if len(raw) > self._end:
                self._open()
                os.ftruncate(self._descriptor, self._end)

    def add(self, number: int, text: str | None) -> None:
        if text is not None:
            self._waiting.append((number, text))

    def write(self) -> int:
        """Make the waiting lines durable. Returns the new end of the file, for ``done``."""
        if not self._waiting:
            return self._end
        self._new_name |= not self._file.exists()
        self._open()
        raw = b"".join(dump_line(*line) for line in self._waiting)
        write_all(self._descriptor, raw, self._end)
        os.fdatasync(self._descriptor)
        self._sync_name()
        return self._end + len(raw)

    def done(self, end: int) -> None:
        self._end, self._waiting = end, []

    def compact(self, first: int) -> None:
        """Remove the lines of episodes before ``first`` if the file has doubled since the last time. Raises OSError."""
        if self._end < self._compact_at:
            return
        self._open()
        raw = self._file.read_bytes()[: self._end]
        raw = raw[max((end for end, number, _ in scan(raw) if number is not None and number < first), default=0) :]
        descriptor = os.open(self._new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_all(descriptor, raw, 0)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self.close()  # the next write opens the new file
        self._new_name = True
        os.replace(self._new, self._file)
        self._end, self._compact_at = len(raw), max(COMPACT_BYTES, 2 * len(raw))
        self._sync_name()

    def _sync_name(self) -> None:
        """Make the name of a new file durable, before any line in it counts as durable."""
        if self._new_name:
            sync_folder(self._file.parent)
            self._new_name = False

    def drop(self) -> None:
        """Drop the waiting lines, written or not."""
        self._waiting = []
        if self._descriptor >= 0:
            self._open()
            os.ftruncate(self._descriptor, self._end)

    def _open(self) -> None:
        if self._descriptor < 0:
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._end = min(self._end, os.fstat(self._descriptor).st_size)  # shorter if a compaction was interrupted after its last step

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
