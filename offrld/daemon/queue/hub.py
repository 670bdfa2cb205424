"""Wakes those who wait for a job's next event: nobody polls the database, and a hundred watchers share one read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class Hub:
    """Watchers by job. A watcher registers before it looks, so nothing that happens in between is missed."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._news = 0  # counts all news
        self._newest: dict[str, int] = {}  # watched job -> count at its last news
        self._reads: dict[Hashable, asyncio.Future[Any]] = {}

    @contextmanager
    def watch(self, job: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever there is news of ``job``; clear it before each look."""
        event = asyncio.Event()
        self._watchers.setdefault(job, set()).add(event)
        if job not in self._newest:
            self._newest[job] = self._news = self._news + 1
        try:
            yield event
        finally:
            watchers = self._watchers[job]
            watchers.discard(event)
            if not watchers:
                del self._watchers[job], self._newest[job]

    def wake(self, jobs: Iterable[str]) -> None:
        """Wake those who watch these jobs."""
        for job in jobs:
            if job in self._newest:
                self._newest[job] = self._news = self._news + 1
            for event in self._watchers.get(job, ()):
                event.set()

    async def read(self, job: str, what: Hashable, read: Callable[[], Awaitable[Any]]) -> Any:
        """Return the result of ``read``, or join the same read for another watcher if it started after the last news of ``job``.

        A joined read sees everything that a new one would: anything that it misses triggers another wake-up.
        """
        key = (job, what, self._newest[job])
        if (shared := self._reads.get(key)) is None:
            shared = self._reads[key] = asyncio.ensure_future(read())
            shared.add_done_callback(lambda _: self._reads.pop(key, None))
        return await asyncio.shield(shared)


async def wait(event: asyncio.Event, seconds: float) -> bool:
    """Wait for ``event`` at most ``seconds``; return whether it came."""
    try:
        async with asyncio.timeout(max(seconds, 0.0)):  # `wait_for` would create a task
            await event.wait()
    except TimeoutError:
        return False
    return True
