"""Closes all connections when what ZeroMQ keeps for them has filled too much memory; clients connect again and go on.

ZeroMQ hands over whole messages only, and bounds a frame but not how many of them a message has: who never sends the last one could fill
the memory, and nothing shows which connection uses it. Unread answers wait there as well. Closing the connections frees both.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
from collections.abc import Callable
from functools import cache

LOOK_S = 0.5
SETTLE_S = 1.0  # for ZeroMQ to give back what was in the connections
M_ARENA_MAX = -8  # of malloc.h
log = logging.getLogger("offrld.memory")


class MemoryGuard:
    """Watches how far this process has grown. ``disconnect()`` closes the connections and returns their number."""

    def __init__(self, limit_bytes: int, disconnect: Callable[[], int]) -> None:
        self._limit, self._disconnect = limit_bytes, disconnect

    async def run(self) -> None:
        """Watch for ever."""
        base = resident()
        while True:
            await asyncio.sleep(LOOK_S)
            grown = resident() - base
            if grown <= self._limit:
                continue
            count = self._disconnect()
            await asyncio.sleep(SETTLE_S)
            trim()
            now = resident()
            back = base + grown - now
            log.warning("memory had grown by %d MB: %d connections were closed, %d MB came back", grown >> 20, count, back >> 20)
            base = max(base, now)  # what stays is the daemon's own, and no reason to close them again


def settle() -> None:
    """For a process that runs for a year. Call it when everything is loaded and no thread has started yet.

    Two arenas of the C library are enough where one thread at a time runs Python; else every thread has one, with gaps of its own. What is
    there now is there for good: the collector of cycles looks at it no more, which took 20 ms each time, with everybody waiting.
    """
    with contextlib.suppress(AttributeError):  # musl has none
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
    gc.collect()
    gc.freeze()


def trim() -> None:
    """Give free memory back to the system, where the C library can."""
    with contextlib.suppress(AttributeError):  # musl cannot
        ctypes.CDLL(None).malloc_trim(0)


@cache
def _statm() -> int:
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def resident() -> int:
    """Bytes of this process in memory; after the first look without a new descriptor."""
    return int(os.pread(_statm(), 100, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")
