"""The time per batch as a store grows to 10^8 rows, and the cost of a cold page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.store_data import EPISODE
from benchmarks.store_limits import Rows
from benchmarks.store_works import SCHEMA, Size, drawn, sample, touch, transition_parts
from offrl_store import EpisodeStore
from offrl_store import format as layout


def sparse_store(path: Path, episodes: int) -> EpisodeStore:
    """Make a valid store of truncated 1,000-step episodes of zeros whose columns are holes, with the format's own functions."""
    EpisodeStore.create(path, SCHEMA)
    checksum, chain, records = 0, layout.chain_start(SCHEMA), []
    for column in SCHEMA.columns:
        checksum = zlib.crc32(bytes((EPISODE + 1) * column.field.row_bytes), checksum)
        os.truncate(layout.column_path(path, column.name), episodes * (EPISODE + 1) * column.field.row_bytes)
    for number in range(episodes):
        record, chain = layout.dump_record(number * (EPISODE + 1), EPISODE, 0.0, 0, checksum, chain)
        records.append(record)
    with open(path / layout.LOG_FILE, "r+b") as log:
        log.seek(layout.SIZE)
        log.write(b"".join(records))
        for slot in (0, 1):
            log.seek(layout.slot_offset(slot))
            log.write(layout.dump_slot(episodes))
    return EpisodeStore.open(path)


def memory_available() -> int:
    """Return the kernel's estimate of the available memory in bytes."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def growth(folder: Path, library: Any, size: Size, largest: int) -> list[tuple[int, dict[str, float] | None]]:
    """Measure (transitions, microseconds per 256) for 10^5, 10^6 ... ``largest``; None if the rows do not fit into memory."""
    sizes: list[tuple[int, dict[str, float] | None]] = []
    transitions = 100_000
    while transitions <= largest:
        figures, path = None, folder / "sparse"
        if transitions * SCHEMA.row_bytes < 0.8 * memory_available():
            store = sparse_store(path, transitions // EPISODE)
            touch(store)
            figures = sample(store, library, size, 256)
            del store
            shutil.rmtree(path)
        sizes.append((transitions, figures))
        transitions *= 10
    return sizes


# --- A cold cache -----------------------------------------------------------------------------------------------------------------


def forget(path: Path) -> None:
    """Drop the columns' pages from the kernel's cache. It keeps pages that are not synced or that a process has mapped."""
    for file in (path / layout.COLUMN_FOLDER).iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident(path: Path) -> float:
    """Return the share of the columns' pages in the cache, by mincore."""
    libc = ctypes.CDLL(None, use_errno=True)
    held = pages = 0
    for file in (path / layout.COLUMN_FOLDER).iterdir():
        with open(file, "rb") as handle:
            memory = mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ)
        flags = np.zeros(-(-len(memory) // mmap.PAGESIZE), np.uint8)
        start = np.frombuffer(memory, np.uint8)
        if libc.mincore(ctypes.c_void_p(start.ctypes.data), ctypes.c_size_t(len(memory)), ctypes.c_void_p(flags.ctypes.data)):
            raise OSError(ctypes.get_errno(), "mincore failed")
        held, pages = held + int((flags & 1).sum()), pages + len(flags)
    return held / pages


def cold(path: Path, library: Any, batch: int, stack: int, rounds: int, batches: int = 10) -> dict[str, float]:
    """Measure milliseconds of the first batch, and per batch over the first ``batches``, with an empty cache; medians of rounds.

    ``limit``: plain copies of as many random rows, equally cold. ``resident``: the largest share of pages left in the cache before a round.
    """
    times: dict[str, list[float]] = {name: [] for name in ("ours", "ours first", "limit", "limit first")}
    left = 0.0
    for turn in range(rounds):
        for name in ("ours", "limit"):
            forget(path)
            left = max(left, resident(path))
            first, mean = cold_once(path, library, batch, stack, turn, batches, name == "ours")
            times[name + " first"].append(first)
            times[name].append(mean)
    return {**{name: statistics.median(values) * 1e3 for name, values in times.items()}, "resident": left}


def cold_once(path: Path, library: Any, batch: int, stack: int, seed: int, batches: int, ours: bool) -> tuple[float, float]:
    """Open a store and measure seconds of the first batch, and per batch. On return none of it is mapped any more."""
    store = EpisodeStore.open(path)
    if ours:
        sampler = store.transitions(batch, seed=seed, frame_stack=stack)
        work: Callable[[int], object] = lambda _: sampler.sample()  # noqa: E731
    else:
        work = Rows(library, drawn(store, batches, batch, stack + 2), transition_parts(store, stack=stack))
    start = time.perf_counter()
    work(0)
    first = time.perf_counter() - start
    for k in range(1, batches):
        work(k)
    return first, (time.perf_counter() - start) / batches
