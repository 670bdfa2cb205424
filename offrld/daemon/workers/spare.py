"""Spare workers, started ahead: they have loaded torch and the algorithms, and wait on their stdin for the next train job.

A spare worker is not a job: it counts nowhere, holds no card and sleeps until it gets a job. It ends when the daemon's end of its pipe
closes, however the daemon ends.
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

THREADS = 1  # of the jobs that a spare worker can take: its libraries have already read their number of threads
REFILL_S = 5.0  # longest wait before a taken spare is replaced: loading the next one must not slow down the start of the job
FAILED_S = 60.0  # pause after a spare worker has ended by itself
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
    """Up to ``count`` spare workers. `fill` starts the missing ones, `take` gives one away."""

    def __init__(self, executor: LocalExecutor, state: StateFolder, count: int, idle_s: float) -> None:
        """``idle_s``: a spare that is idle for this long is ended; the next job that starts brings it back. 0: never."""
        self._executor, self._state, self._count, self._idle_s = executor, state, count, idle_s
        self._spares: list[_Spare] = []
        self._watching: set[asyncio.Task[None]] = set()
        self._refill: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        self._closed = False
        self._filling = False

    @staticmethod
    def suits(kind: str, spec: Mapping[str, Any]) -> bool:
        """Whether a spare worker can do this job as well as a worker started for it."""
        return kind in TRAINS and int(spec.get("threads") or 1) == THREADS

    @property
    def pids(self) -> list[int]:
        """Process ids of the spare workers."""
        return [spare.worker.pid for spare in self._spares]

    @property
    def state(self) -> str | None:
        """ready: one has loaded everything; starting: one is loading; None: there is none."""
        if not self._spares:
            return None
        return "ready" if any(spare.ready for spare in self._spares) else "starting"

    async def fill(self) -> None:
        """Start the missing spare workers. If one fails, log it and try again later."""
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
        """Call `fill` after ``seconds``."""
        if self._refill is not None:
            self._refill.cancel()
        if not self._closed and self._count:
            # In a new context: log lines about the next spare worker must not name the job that took the last one.
            context = contextvars.Context()
            self._refill = asyncio.get_running_loop().call_later(seconds, lambda: self._spawn(self.fill()), context=context)

    def take(self) -> LocalWorker | None:
        """Give away a spare worker, a loaded one if possible; None if there is none. The caller owns it from now on."""
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
        """End all spare workers."""
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
        if self._closed:  # while it started
            worker.kill()

    async def _watch(self, spare: _Spare) -> None:
        status = await spare.worker.wait()
        if spare in self._spares:  # neither given away nor stopped
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
