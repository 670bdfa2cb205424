"""Imports: the time from a D4RL file of a million transitions to a durable store, and the memory of the import of an Atari epoch.

``python -m benchmarks.import_speed [--frames N] [--folder F]`` (``make bench-import``). The speed is compared with that of h5py alone,
which reads the same arrays into memory as the import does, and with a raw write and sync of the store's bytes. Files are gzipped, as in
D4RL, and plain. "cold": the file is not in the page cache, as after a download. Times are wall clock, the best of several runs, and
processor time, which does not depend on the disk. The memory is the peak of a real import worker, as the kernel counts it for the ended
process.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offrl_store import EpisodeStore
from offrld.importers import import_into

ROWS, REPEATS = 1_000_000, 5
FRAMES = 1_000_000
LIMIT_MB = 500


def write_d4rl(path: Path, compression: str | None) -> None:
    """Write a file like HalfCheetah's: 17 observations, 6 actions, float32, episodes of 1,000 steps."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        arrays = {
            "observations": np.cumsum(rng.normal(size=(ROWS, 17)).astype(np.float32) * 0.01, 0, dtype=np.float32),
            "actions": rng.uniform(-1, 1, (ROWS, 6)).astype(np.float32),
            "rewards": rng.normal(size=ROWS).astype(np.float32),
            "terminals": np.zeros(ROWS, bool),
            "timeouts": np.arange(ROWS) % 1000 == 999,
        }
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression=compression)


def write_epoch(folder: Path, frames: int) -> None:
    """Write an epoch like the replay data: 84x84 frames that compress like a game's, episodes of about 1,500 steps."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    ground = np.repeat(rng.integers(0, 255, (84, 12), np.uint8), 7, 1)
    with gzip.open(folder / "observation.gz", "wb", compresslevel=1) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (frames, 84, 84)})
        for start in range(0, frames, 1000):
            block = np.repeat(ground[None], min(1000, frames - start), 0)
            for t, (y, x) in enumerate(rng.integers(0, 76, (len(block), 2))):
                block[t, y : y + 8, x : x + 8] = 255
            file.write(block.data)
    columns = {
        "action": rng.integers(0, 6, frames).astype(np.int32),
        "reward": rng.integers(0, 2, frames).astype(np.float32),
        "terminal": (np.arange(frames) % 1500 == 1499).astype(np.uint8),
    }
    for name, array in columns.items():
        with gzip.open(folder / f"{name}.gz", "wb", compresslevel=1) as file:
            np.lib.format.write_array(file, array)


def read_all(path: Path) -> None:
    """Read every array of a file with h5py alone."""
    with h5py.File(path, "r") as file:
        for key in file:
            file[key][:]


def best(work: Callable[[], object], path: Path, cold: bool, before: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Return wall clock and processor time of the fastest of several runs, in seconds. ``before`` runs first and is not measured."""
    times = []
    for _ in range(REPEATS):
        before()
        if cold:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(times)


def raw_write(path: Path, size: int) -> None:
    """Write and sync ``size`` bytes in pieces of 4 MiB: the minimum for durable data."""
    piece = np.random.default_rng(0).integers(0, 256, 4 << 20, np.uint8).data
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    try:
        for start in range(0, size, len(piece)):
            os.pwrite(descriptor, piece[: size - start], start)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
        path.unlink()


def speed(folder: Path) -> dict[str, Any]:
    """Print the table of the D4RL file. Returns its figures."""
    figures: dict[str, Any] = {}
    store = folder / "store"
    print(f"D4RL file, {ROWS:,} transitions, 17 observations and 6 actions, float32: seconds (processor seconds)")
    print(f"{'':18}{'h5py reads':>18}{'import':>18}{'raw write':>18}{'of h5py':>9}{'by cpu':>8}{'of raw':>8}")
    for name, compression in (("gzip", "gzip"), ("uncompressed", None)):
        path = folder / f"{name}.hdf5"
        write_d4rl(path, compression)

        for cold in (False, True):
            read = best(partial(read_all, path), path, cold)
            imported = best(partial(import_into, path, store), path, cold, lambda: shutil.rmtree(store, ignore_errors=True))
            raw = best(lambda: raw_write(folder / "raw", EpisodeStore.open(store).nbytes), folder, False)
            label = f"{name}{', cold' if cold else ''}"
            ratios = read[0] / imported[0], read[1] / imported[1], raw[0] / imported[0]
            figures[label] = {"h5py_s": read[0], "import_s": imported[0], "raw_write_s": raw[0], "speed": ratios[0], "cpu_speed": ratios[1]}
            columns = "".join(f"{f'{each[0]:.3f} ({each[1]:.3f})':>18}" for each in (read, imported, raw))
            print(f"{label:18}{columns}{ratios[0]:>9.2f}{ratios[1]:>8.2f}{ratios[2]:>8.2f}", flush=True)
        assert EpisodeStore.open(store).transition_count >= ROWS - 1000
        path.unlink()
    return figures


def memory(folder: Path, frames: int) -> dict[str, Any]:
    """Import an epoch of the Atari replay data in a worker and print its peak memory. Returns the figures."""
    epoch = folder / "epoch"
    write_epoch(epoch, frames)
    state = folder / "state"
    (state / "jobs" / "job-1").mkdir(parents=True)
    spec = {"kind": "import", "dataset": "atari", "path": str(epoch), "format": "atari"}
    first = {"type": "start", "job": "job-1", "attempt": 1, "state_dir": str(state), "spec": spec, "import_roots": [str(folder)]}
    started = time.perf_counter()
    with open(state / "log.txt", "wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "offrld.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=Path.cwd()
        )
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps(first).encode() + b"\n")
        worker.stdin.flush()
        end = [json.loads(line) for line in worker.stdout][-1]
        worker.stdin.close()
        _, _, usage = os.wait4(worker.pid, 0)
        worker.returncode = 0
    if end.get("state") != "succeeded":
        raise SystemExit(f"the import failed: {end}")
    seconds, peak = time.perf_counter() - started, usage.ru_maxrss / 1024
    store = EpisodeStore.open(state / "datasets" / "atari")
    print(
        f"\nAtari epoch, {frames:,} frames of 84x84 ({frames * 84 * 84 / 1e9:.1f} GB): {seconds:.0f} s, "
        f"{frames / seconds:,.0f} frames/s, peak memory of the worker {peak:.0f} MB (limit {LIMIT_MB})"
    )
    if store.step_count != frames or peak > LIMIT_MB:
        raise SystemExit(f"{store.step_count} frames were imported with {peak:.0f} MB; expected {frames} with at most {LIMIT_MB} MB")
    return {"frames": frames, "seconds": seconds, "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames of the Atari epoch; 0 skips it")
    parser.add_argument("--folder", help="folder of the files; a million frames take 8 GB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="offrl-import-", dir=arguments.folder) as folder:
        speed(Path(folder))
        if arguments.frames:
            memory(Path(folder), arguments.frames)


if __name__ == "__main__":
    main()
