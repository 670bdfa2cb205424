"""Background loops that survive a failed pass: the error is logged, and reported while it lasts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from offrl_store.errors import OffrlError

AGAIN_S = 60.0  # between two log lines about a loop that keeps failing
log = logging.getLogger("offrld.passes")


class Passes:
    """The background loops that fail now. ``failing``: name of the loop -> (since when, how often, why)."""

    def __init__(self) -> None:
        self.failing: dict[str, tuple[float, int, str]] = {}
        self._logged: dict[str, float] = {}

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """Run one pass of the loop ``name``: an error ends the pass and nothing else."""
        try:
            yield
        except Exception as error:
            since, count, _ = self.failing.get(name, (time.time(), 0, ""))
            why = str(error) or type(error).__name__
            self.failing[name] = (since, count + 1, why)
            now = time.monotonic()
            if count == 0 or now - self._logged.get(name, -AGAIN_S) >= AGAIN_S:
                self._logged[name] = now
                expected = isinstance(error, OffrlError | OSError)  # disk or database: a traceback would not help
                log.error("%s failed (%d times in a row): %s", name, count + 1, why, exc_info=None if expected else error)
        else:
            if self.failing.pop(name, None) is not None:
                log.info("%s works again", name)

    def report(self) -> list[str]:
        """Return one line for each loop that failed more than once in a row: a single failure may be over in a moment."""
        return [f"{name}: {count} times in a row, {why}" for name, (_, count, why) in sorted(self.failing.items()) if count > 1]


async def forever(passes: Passes, name: str, work: Callable[[], Any], pause_s: float, retry_s: float | None = None) -> None:
    """Await ``work()`` again and again, ``pause_s`` after each pass, or ``retry_s`` after a failed one."""
    while True:
        with passes.one(name):
            await work()
        await asyncio.sleep(retry_s if retry_s is not None and name in passes.failing else pause_s)
