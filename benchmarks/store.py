"""Time per batch of the store's samplers beside the same memory traffic in plain C: `python -m benchmarks.store`.

The limit copies as many random rows with one memcpy each and nothing else, the row numbers drawn beforehand and none of them twice in a run
(`take` does the same with np.take, where no C compiler is). One thread; medians over rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store import Episode, EpisodeStore, Field, Schema, rng
from offrl_store.kernels import kernels


def vectors(path: Path, transitions: int, episode: int) -> EpisodeStore:
    """Transitions of observation 17 and action 6, float32, in truncated episodes with their final observation."""
    schema = Schema(observation=Field("float32", (17,)), action=Field("float32", (6,), low=-1, high=1))
    store = EpisodeStore.create(path, schema)
    noise = np.random.default_rng(0)
    with store.writer() as writer:
        for _ in range(transitions // episode):
            writer.append(Episode(noise.standard_normal((episode + 1, 17), np.float32), noise.random((episode, 6), np.float32),
                                  noise.random(episode, np.float32)))
    return store


def frames(path: Path, count: int, episode: int) -> EpisodeStore:
    """Frames of 84x84 with 6 discrete actions."""
    store = EpisodeStore.create(path, Schema(observation=Field("uint8", (1, 84, 84)), action=Field("int32", (), low=0, high=5)))
    noise = np.random.default_rng(0)
    with store.writer() as writer:
        for _ in range(count // episode):
            writer.append(Episode(noise.integers(0, 255, (episode + 1, 1, 84, 84), np.uint8), noise.integers(0, 6, episode),
                                  np.zeros(episode, np.float32)))
    return store


def measure(works: dict[str, Callable[[int], object]], batches: int, rounds: int) -> dict[str, float]:
    """Median microseconds per call of each; the works take turns, so that a noisy moment hits all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            for k in range(turn * batches, (turn + 1) * batches):
                work(k)
            times[name].append((time.perf_counter() - start) / batches * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


LIMIT = """
#include <stdint.h>
#include <string.h>
void copy(const int64_t *rows, long n, long parts, const char **source, char **out, const long *width, const long *count) {
    for (long p = 0; p < parts; p++)
        for (long i = 0; i < n; i++)
            memcpy(out[p] + i * width[p] * count[p], source[p] + rows[i] * width[p], width[p] * count[p]);
}
"""


def compile_limit(folder: Path) -> Any:
    """The C function above; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    (folder / "limit.c").write_text(LIMIT)
    subprocess.run([compiler, "-O3", "-shared", "-fPIC", "-o", folder / "limit.so", folder / "limit.c"], check=True)
    return ctypes.CDLL(str(folder / "limit.so")).copy


class Limit:
    """Copies of random rows: call k copies rows[k] of each (column, rows taken, rows on from the row drawn)."""

    def __init__(self, copy: Any, rows: np.ndarray, parts: list[tuple[np.ndarray, int, int]]) -> None:
        self._copy, self._rows, self._parts = copy, rows, [(column[shift:], count) for column, count, shift in parts]
        size, n = rows.shape[1], len(parts)
        self._outs = [np.zeros((size, count, *column.shape[1:]), column.dtype) for column, count in self._parts]
        pointers, numbers = ctypes.c_void_p * n, ctypes.c_long * n
        self._arguments = (ctypes.c_long(size), ctypes.c_long(n), pointers(*[column.ctypes.data for column, _ in self._parts]),
                           pointers(*[out.ctypes.data for out in self._outs]), numbers(*[column[0].nbytes for column, _ in self._parts]),
                           numbers(*[count for _, count in self._parts]))
        self._start, self._stride = rows.ctypes.data, rows.strides[0]

    def __call__(self, k: int) -> None:
        if self._copy is not None:
            self._copy(ctypes.c_void_p(self._start + k * self._stride), *self._arguments)
            return
        for (column, count), out in zip(self._parts, self._outs, strict=True):
            for j in range(count):
                np.take(column, self._rows[k] + j, axis=0, out=out[:, j], mode="clip")


def columns(store: EpisodeStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return store.column("observation"), store.column("action"), store.column("reward")


def rows_of(store: EpisodeStore, batches: int, size: int, margin: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, len(store.column("reward")) - margin, (batches, size))


def compare(store: EpisodeStore, size: int, batches: int, rounds: int, copy: Any, n_steps: int = 1, stack: int = 1,
            **options: Any) -> dict[str, float]:
    """Ours against copies of as many rows. Stacks: the frames of observation and next observation together, as ours does."""
    sampler = store.transitions(size, seed=0, n_steps=n_steps, frame_stack=stack, **options)
    observation, action, reward = columns(store)
    frames = stack + 1 if stack > 1 else 1
    parts = [(observation, frames, 0), (action, 1, 0)] + [(reward, 1, i) for i in range(n_steps)]
    if stack == 1:
        parts.append((observation, 1, n_steps))  # the next observation
    limit = Limit(copy, rows_of(store, batches * rounds, size, frames + n_steps), parts)
    return measure({"ours": lambda _: sampler.sample(), "limit": limit}, batches, rounds)


def compare_windows(store: EpisodeStore, size: int, length: int, batches: int, rounds: int, copy: Any) -> dict[str, float]:
    """Windows against copies of the same rows of observation, action and reward."""
    sampler = store.windows(size, length, seed=0)
    limit = Limit(copy, rows_of(store, batches * rounds, size, length), [(column, length, 0) for column in columns(store)])
    return measure({"ours": lambda _: sampler.sample(), "limit": limit}, batches, rounds)


def compare_prioritized(store: EpisodeStore, size: int, batches: int, rounds: int, copy: Any) -> dict[str, float]:
    """Sampling and updating all of a batch, against the copies of the transitions alone."""
    sampler = store.prioritized(size, seed=0)
    observation, action, reward = columns(store)
    noise = np.random.default_rng(0)
    sampler.update(np.arange(sampler.transition_count), noise.random(sampler.transition_count), numbers=True)
    priorities = noise.random((16, size)).astype(np.float32)

    def ours(k: int) -> None:
        sampler.update(sampler.sample().index, priorities[k % 16])

    parts = [(observation, 1, 0), (action, 1, 0), (reward, 1, 0), (observation, 1, 1)]
    limit = Limit(copy, rows_of(store, batches * rounds, size, 2), parts)
    return measure({"ours": ours, "limit": limit}, batches, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller stores and fewer rounds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peers", metavar="PYTHON", help="the Python of an environment with d3rlpy, cpprb, stable-baselines3, torchrl")
    arguments = parser.parse_args()
    transitions, count, rounds = (100_000, 5_000, 5) if arguments.quick else (1_000_000, 100_000, 21)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = vectors(Path(folder) / "vectors", transitions, 1000)
        results[f"write {transitions} transitions, synced (ms)"] = {"ours": (time.perf_counter() - start) * 1e3}
        opened = [0.0] * 9
        for i in range(len(opened)):
            start = time.perf_counter()
            EpisodeStore.open(store.path)
            opened[i] = (time.perf_counter() - start) * 1e6
        results[f"open {transitions} transitions"] = {"ours": statistics.median(opened)}
        for name in ("observation", "action", "reward"):  # every page mapped before the clock starts
            np.add.reduce(store.column(name), axis=None)
        copy = compile_limit(Path(folder))
        results["256 transitions"] = compare(store, 256, 300, rounds, copy)
        results["256 transitions, n = 3"] = compare(store, 256, 300, rounds, copy, n_steps=3)
        results["4096 transitions"] = compare(store, 4096, 30, rounds, copy)
        results["256 transitions in epochs"] = compare(store, 256, 300, rounds, copy, replacement=False)
        results["256 transitions with returns"] = compare(store, 256, 300, rounds, copy, returns=True)
        results["64 windows of 20"] = compare_windows(store, 64, 20, 300, rounds, copy)
        results["prioritized 256: sample + update"] = compare_prioritized(store, 256, 300, rounds, copy)
        store = frames(Path(folder) / "frames", count, 500)
        store.column("observation")[:].max()
        results["32 stacks of 4 of 84x84, with next"] = compare(store, 32, 100, rounds, copy, stack=4)
    noise = np.empty(1536, np.float32)
    results["1536 normal numbers"] = measure({"ours": lambda k: rng.normal(0, k, 1, noise)}, 300, rounds)
    if arguments.peers:
        script = Path(__file__).parent / "peers" / "store_peers.py"
        answer = subprocess.run([arguments.peers, script, str(transitions)], check=True, stdout=subprocess.PIPE, text=True).stdout
        for peer, works in json.loads(answer.splitlines()[-1]).items():
            for name, value in works.items():
                results[name][peer] = value
    if arguments.json:
        print(json.dumps({"kernels": kernels().NAME, "results": results}))
        return
    print(f"kernels: {kernels().NAME}; median us per batch; limit: the same rows by memcpy")
    for name, values in results.items():
        beside = f"   limit {values['limit']:9.1f}   ratio {values['ours'] / values['limit']:.2f}" if "limit" in values else ""
        peers = "".join(f"   {peer} {value:.0f}" for peer, value in values.items() if peer not in ("ours", "limit"))
        print(f"{name:45s} ours {values['ours']:9.1f}{beside}{peers}")


if __name__ == "__main__":
    main()
