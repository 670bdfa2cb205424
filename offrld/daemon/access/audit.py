"""The audit log: one line of JSON for every act that changes something, synced before the act is acknowledged, rotated by size.

``{"n", "time", "caller", "role", "address", "action", ...names..., "outcome"}``; ``n`` continues over files and restarts, ``outcome`` is
"ok" or the error's code. A thread writes, many lines with one sync; the event loop never waits for the disk. If the log cannot be
written, the line goes to the daemon's own log, and the service continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offrl_store.disk import sync_folder
from offrld.daemon.access.caller import Caller

REFUSALS = 30  # error lines of one caller in a minute; more are only counted, so that nobody can flood the log
TEXT = 200  # characters of one value
PART_BYTES = 1 << 19  # of lines in one reply
log = logging.getLogger("offrld.audit")


class Audit:
    """The log of one state folder. Call `record` from the event loop, and `close` at the end."""

    def __init__(self, path: Path, *, max_bytes: int, keep: int) -> None:
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        self._n = _last_number(path)
        self._refused: dict[str, tuple[float, int]] = {}  # caller -> start of its minute, error lines in it
        self._queue: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def record(self, caller: Caller, action: str, *, outcome: str = "ok", **what: Any) -> asyncio.Future[None]:
        """Record an act, in order; the future is done when the line is on disk (or, with a log line, could not be written)."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if outcome != "ok":
            began, count = self._refused.get(caller.name, (0.0, 0))
            now = time.monotonic()
            if now - began >= 60.0:
                if count > REFUSALS:
                    what["not_logged"] = count - REFUSALS
                began, count = now, 0
            self._refused[caller.name] = (began, count + 1)
            if count >= REFUSALS:
                done.set_result(None)
                return done
        self._n += 1
        entry = {
            "n": self._n,
            "time": round(time.time(), 3),
            "caller": caller.name,
            "role": caller.role,
            "address": caller.address,
            "action": action,
            **{name: _short(value) for name, value in what.items() if value is not None},
            "outcome": outcome,
        }
        self._queue.put((json.dumps(entry).encode() + b"\n", done))
        return done

    def settled(self) -> asyncio.Future[None]:
        """Return a future that is done when every act recorded so far is on disk (or could not be written)."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put((b"", done))
        return done

    def close(self) -> None:
        """Write the remaining lines and end the thread."""
        self._queue.put(None)
        self._thread.join()

    # ---------------------------------------------------------------------------------------------------------------- thread
    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < 1000:
                    batch.append(self._queue.get_nowait())
            ended = None in batch
            waiting = [item for item in batch if item is not None]
            if not waiting:
                continue
            try:
                if lines := b"".join(line for line, _ in waiting):
                    self._write(lines)
            except Exception as error:  # of any kind: all who wait for a line wait for this thread
                log.error("%s cannot be written (%s); its lines follow", self._path, getattr(error, "strerror", None) or error)
                for line in lines.splitlines():
                    log.error("audit %s", line.decode())
            for _, done in waiting:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                    done.get_loop().call_soon_threadsafe(_finish, done)

    def _write(self, data: bytes) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a power cut has torn the last line
                data = b"\n" + data
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
            if size + len(data) >= self._max_bytes:
                self._rotate()
            elif size == 0:
                sync_folder(self._path.parent)
        finally:
            os.close(descriptor)

    def _rotate(self) -> None:
        """Rename audit.log to audit.log.1, that to audit.log.2, and delete the oldest."""
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.replace(self._path, f"{self._path}.1")
        for name in _rotated(self._path):
            if int(name.suffix[1:]) > self._keep:
                name.unlink(missing_ok=True)
        sync_folder(self._path.parent)


def entries(path: Path, since: float, after: int, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """Return up to ``limit`` entries since the time ``since`` with a number above ``after``, oldest first; and whether more may follow.

    Reads files: call it in a thread.
    """
    part: list[dict[str, Any]] = []
    size = 0
    for file in [*sorted(_rotated(path), key=lambda name: -int(name.suffix[1:])), path]:
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime < since:
                continue
            for line in _lines(file, after):
                entry = _entry(line)
                if entry is None or entry["n"] <= after or entry["time"] < since:
                    continue
                after = entry["n"]  # no entry twice, even if the files rotate in the meantime
                size += len(line)
                if len(part) == limit or size > PART_BYTES:
                    return part, True
                part.append(entry)
    return part, False


def _lines(file: Path, after: int) -> Iterator[bytes]:
    """Yield the lines from shortly before number ``after`` on, found by bisection: numbers grow."""
    with file.open("rb") as opened:
        low, high = 0, os.fstat(opened.fileno()).st_size
        while high - low > 1 << 16:
            middle = (low + high) // 2
            opened.seek(middle)
            opened.readline()
            entry = _entry(opened.readline())
            if entry is not None and entry["n"] <= after:
                low = middle
            else:
                high = middle
        opened.seek(low)
        if low:
            opened.readline()
        yield from opened


def _entry(line: bytes) -> dict[str, Any] | None:
    """Parse the entry of a line; None for a torn line."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("n"), int) and isinstance(entry.get("time"), int | float) else None


def _rotated(path: Path) -> list[Path]:
    return [name for name in path.parent.glob(f"{path.name}.*") if re.fullmatch(r"\.[1-9][0-9]{0,5}", name.suffix)]


def _last_number(path: Path) -> int:
    """Return the number of the newest whole line."""
    for file in [path, *sorted(_rotated(path), key=lambda name: int(name.suffix[1:]))]:
        with contextlib.suppress(OSError), file.open("rb") as opened:  # an unreadable file is reported when it is written
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - (1 << 16)))
            for line in reversed(opened.read().splitlines()):
                if (entry := _entry(line)) is not None:
                    return int(entry["n"])
    return 0


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:TEXT]
    if isinstance(value, list | tuple):
        return [_short(item) for item in value[:100]]
    return value


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
