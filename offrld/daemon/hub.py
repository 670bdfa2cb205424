"""Wakes those who wait for a job's next event, so that nobody asks the database in a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Hub:
    """Watchers by job. A watcher registers before it looks, so nothing that happens in between is missed."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watch(self, job: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something new is known of ``job``; clear it before each look."""
        event = asyncio.Event()
        self._watchers.setdefault(job, set()).add(event)
        try:
            yield event
        finally:
            watchers = self._watchers[job]
            watchers.discard(event)
            if not watchers:
                del self._watchers[job]

    def wake(self, jobs: Iterable[str]) -> None:
        """Something new is known of these jobs."""
        for job in jobs:
            for event in self._watchers.get(job, ()):
                event.set()


async def wait(event: asyncio.Event, seconds: float) -> bool:
    """Wait for ``event`` at most so long; whether it came."""
    try:
        await asyncio.wait_for(event.wait(), max(seconds, 0.0))
    except TimeoutError:
        return False
    return True
