"""The guard with which a reader of a bounded store notices evicted episodes."""

from __future__ import annotations

import os
from pathlib import Path

from offrl_store import format as layout
from offrl_store.errors import StoreCorrupt


class Guard:
    """Reads the number of the oldest episode that is kept. Each check costs one system call."""

    def __init__(self, file: Path) -> None:
        self._file, self._seen, self._first = file, b"", 0
        try:
            self._descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise StoreCorrupt(f"{file} is missing", hint="restore the file from a copy") from error

    def first(self) -> int:
        raw = os.pread(self._descriptor, layout.SIZE, 0)
        if raw != self._seen:
            self._first, self._seen = layout.read_first(self._descriptor, self._file), raw
        return self._first

    def __del__(self) -> None:
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)
