"""Workers that are started ahead: they have torch and the algorithms loaded and wait for the next train job on their stdin.

A spare worker is not a job: it counts nowhere, holds no card and sleeps until it gets a job. It ends with the daemon's end of its pipe,
whatever becomes of the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offrl.job import TRAINS
from offrld.executors.local import LocalExecutor, LocalWorker
from offrld.state.folder import StateFolder

THREADS = 1  # of the jobs that a spare worker can take: its libraries have read their number of threads already
REFILL_S = 5.0  # after a spare was taken, at the latest: loading the next one must not slow down the start of the job
FAILED_S = 60.0  # before the next attempt, where a spare worker has ended by itself
CLOSE_S = 2.0
LOG_BYTES = 1 << 20
log = logging.getLogger("offrld.spare")


@dataclass
class _Spare:
    worker: LocalWorker
    ready: bool = False
    expiry: asyncio.TimerHandle | None = None

    def line(self, line: bytes) -> None:
        self.ready = self.ready or b'"ready"' in line


class Spares:
    """Up to ``count`` workers. `fill` starts those that are missing, `take` gives one away."""

    def __init__(self, executor: LocalExecutor, state: StateFolder, count: int, idle_s: float) -> None:
        """``idle_s``: one that nobody took for so long is ended and comes back when the next job has started; 0: never."""
        self._executor, self._state, self._count, self._idle_s = executor, state, count, idle_s
        self._spares: list[_Spare] = []
        self._watching: set[asyncio.Task[None]] = set()
        self._refill: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        self._closed = False
        self._filling = False

    @staticmethod
    def suits(kind: str, spec: Mapping[str, Any]) -> bool:
        """Whether a spare worker can do the job as one that was started for it would."""
        return kind in TRAINS and int(spec.get("threads") or 1) == THREADS

    @property
    def pids(self) -> list[int]:
        """Of those that wait now."""
        return [spare.worker.pid for spare in self._spares]

    @property
    def state(self) -> str | None:
        """ready: a job that comes now finds one loaded; starting: one is being loaded; None: there is none."""
        if not self._spares:
            return None
        return "ready" if any(spare.ready for spare in self._spares) else "starting"

    async def fill(self) -> None:
        """Start the missing spare workers. A failure is logged and tried again later."""
        if self._filling:
            return
        self._filling = True
        try:
            while len(self._spares) < self._count and not self._closed:
                wait = self._not_before - asyncio.get_running_loop().time()
                if wait > 0:
                    self.refill(wait)
                    return
                await self._start()
        finally:
            self._filling = False

    def refill(self, seconds: float = 0.0) -> None:
        """Call `fill` so much later."""
        if self._refill is not None:
            self._refill.cancel()
        if not self._closed and self._count:
            # In a context of its own: what becomes of the next spare worker is not about the job that took the last one.
            again = contextvars.Context()
            self._refill = asyncio.get_running_loop().call_later(seconds, lambda: self._spawn(self.fill()), context=again)

    def take(self) -> LocalWorker | None:
        """The one that has been waiting longest, or None. It is the caller's from now on."""
        self._spares.sort(key=lambda spare: not spare.ready)
        while self._spares:
            spare = self._spares.pop(0)
            if spare.expiry is not None:
                spare.expiry.cancel()
            if not spare.worker.ended:
                self.refill(REFILL_S)
                return spare.worker
        self.refill(REFILL_S)
        return None

    async def close(self) -> None:
        """End all."""
        self._closed = True
        if self._refill is not None:
            self._refill.cancel()
        spares, self._spares = self._spares, []
        for spare in spares:
            spare.worker.close_stdin()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(spare.worker.wait() for spare in spares)), CLOSE_S)
        for spare in spares:
            spare.worker.kill()
        await asyncio.gather(*(spare.worker.wait() for spare in spares))
        for task in list(self._watching):
            task.cancel()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        file = self._state.cache / "spare.log"
        spare: _Spare | None = None
        try:
            await asyncio.to_thread(_shorten, file)
            worker = await self._executor.start_spare(
                self._state.root, folder=self._state.cache, log=file, on_line=lambda line: spare.line(line) if spare is not None else None
            )
        except OSError as error:
            log.warning("a spare worker cannot be started: %s", error)
            self._not_before = loop.time() + FAILED_S
            return
        spare = _Spare(worker)
        if self._idle_s:
            spare.expiry = loop.call_later(self._idle_s, self._expire, spare)
        self._spares.append(spare)
        self._spawn(self._watch(spare))
        if self._closed:  # meanwhile
            worker.kill()

    async def _watch(self, spare: _Spare) -> None:
        status = await spare.worker.wait()
        if spare in self._spares:  # not assigned, and not stopped
            self._spares.remove(spare)
            self._not_before = asyncio.get_running_loop().time() + FAILED_S
            log.warning("a spare worker ended with status %d; see %s", status, self._state.cache / "spare.log")
            self.refill(FAILED_S)

    def _expire(self, spare: _Spare) -> None:
        if spare in self._spares:
            self._spares.remove(spare)
            spare.worker.close_stdin()
            spare.expiry = asyncio.get_running_loop().call_later(CLOSE_S, spare.worker.kill)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)


def _shorten(file: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if file.stat().st_size > LOG_BYTES:
            file.write_bytes(b"")
