"""A disk that dies, fills up or loses writes at the n-th write, under the real store: system calls of `os` are counted and cut short."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Collection
from types import TracebackType
from typing import Any

import pytest

from offrl_store import disk

REAL = {name: getattr(os, name) for name in ("pwrite", "pwritev", "fdatasync", "ftruncate", "replace", "fsync")} | {"punch": disk.punch}


class PowerLoss(BaseException):
    """The process dies here: later system calls have no effect."""


class Disk:
    """Within the block, call number ``at`` of those in REAL (or of those in ``names``) goes wrong.

    failure "kill": half of a write happens, then the process is dead; what it wrote before stays. "power": the same, and any of
    the writes since a file's last fdatasync may be lost, and names replaced since the last fsync; a hole lasts at once. "full": the
    call fails with ENOSPC (half of a write happens), as does every
    other write until the block ends; "once": only that call fails.
    """

    def __init__(self, at: int, failure: str, seed: int = 0, names: Collection[str] = tuple(REAL)) -> None:
        self.names = names
        self.at, self.failure, self.calls, self.dead = at, failure, 0, False
        self.random = random.Random(seed)
        self.synced: dict[str, bytes] = {}  # files with unsynced writes: what they held at the last sync
        self.writes: dict[str, list[tuple[int, bytes]]] = {}  # and what was written since
        self.replaced: dict[str, bytes] = {}  # files that took the place of others: what those held
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> Disk:
        for name in REAL:
            self.patch.setattr(disk if name == "punch" else os, name, lambda *arguments, name=name: self.call(name, *arguments))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.patch.undo()
        if self.failure == "power":
            self.lose()
        return isinstance(error, PowerLoss)

    @property
    def reached(self) -> bool:
        """Return whether call number ``at`` happened."""
        return self.calls >= self.at

    def call(self, name: str, descriptor: Any, *arguments: Any) -> Any:
        if self.dead:
            raise PowerLoss
        self.calls += name in self.names
        failing = (self.calls == self.at and name in self.names) or (self.failure == "full" and self.reached and name.startswith("pwrite"))
        path = str(arguments[0]) if name == "replace" else os.readlink(f"/proc/self/fd/{descriptor}")
        if name.startswith("pwrite"):
            data = arguments[0] if name == "pwrite" else b"".join(arguments[0])
            if failing:
                data = bytes(data)[: len(data) // 2]
            if path not in self.synced:
                with open(path, "rb") as file:
                    self.synced[path] = file.read()
            self.writes.setdefault(path, []).append((arguments[1], bytes(data)))
            done = REAL["pwrite"](descriptor, data, arguments[1])
        elif failing:
            done = None
        elif name == "replace":
            with open(path, "rb") as file:
                self.replaced.setdefault(path, file.read())
            done = REAL[name](descriptor, path)
        elif name == "punch":
            offset, length = arguments
            if path in self.synced:
                lost = self.synced[path][offset : offset + length]
                self.synced[path] = self.synced[path][:offset] + bytes(len(lost)) + self.synced[path][offset + length :]
            done = REAL[name](descriptor, offset, length)
        elif name == "fsync":  # of a folder
            self.replaced.clear()
            done = None
        elif name == "fdatasync":  # the simulated disk needs no real sync
            self.synced.pop(path, None)
            done = self.writes.pop(path, None) and None
        else:
            end = arguments[0]
            if path in self.synced:
                self.synced[path] = self.synced[path][:end]
                self.writes[path] = [(offset, data[: max(0, end - offset)]) for offset, data in self.writes[path]]
            done = REAL[name](descriptor, end)
        if not failing:
            return done
        if self.failure in ("full", "once"):
            raise OSError(errno.ENOSPC, "No space left on device")
        self.dead = True
        raise PowerLoss

    def lose(self) -> None:
        """Leave each file with what was synced and a random choice of the writes after that; gaps read as zeros."""
        for path, content in self.replaced.items():
            if self.random.random() < 0.5:
                with open(path, "wb") as file:
                    file.write(content)
                self.synced.pop(path, None)
        for path, content in self.synced.items():
            kept = bytearray(content)
            for offset, data in self.writes[path]:
                if data and self.random.random() < 0.5:
                    kept.extend(bytes(max(0, offset + len(data) - len(kept))))
                    kept[offset : offset + len(data)] = data
            with open(path, "wb") as file:
                file.write(kept)
