"""Time per batch of the store's samplers beside the same memory traffic in plain NumPy: `python -m benchmarks.store`.

The limit is what reading as many random rows costs with nothing else: `np.take` of the same columns into kept arrays (its inner loop is a
memcpy per row), with the row numbers already drawn. One thread; medians over rounds that alternate ours and the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
            writer.append(Episode(observation=noise.standard_normal((episode + 1, 17), np.float32), reward=noise.random(episode, np.float32),
                                  action=noise.random((episode, 6), np.float32)))
    return store


def frames(path: Path, count: int, episode: int) -> EpisodeStore:
    """Frames of 84x84 with 6 discrete actions."""
    store = EpisodeStore.create(path, Schema(observation=Field("uint8", (1, 84, 84)), action=Field("int32", (), low=0, high=5)))
    noise = np.random.default_rng(0)
    with store.writer() as writer:
        for _ in range(count // episode):
            writer.append(Episode(observation=noise.integers(0, 255, (episode + 1, 1, 84, 84), np.uint8), reward=np.zeros(episode, np.float32),
                                  action=noise.integers(0, 6, episode)))
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


def take_vectors(store: EpisodeStore, size: int, batches: int, rounds: int, n_steps: int = 1) -> dict[str, float]:
    sampler = store.transitions(size, seed=0, n_steps=n_steps)
    columns = [store.column(name) for name in ("observation", "observation", "action")]
    outs = [np.zeros((size, column.shape[1]), column.dtype) for column in columns]
    rewards, reward_out = store.column("reward"), np.zeros(size, np.float32)
    rows = [np.random.default_rng(k).integers(0, len(rewards) - n_steps - 1, size) for k in range(batches * rounds)]  # never one twice

    def limit(k: int) -> None:
        at = rows[k]
        for column, out in zip(columns, outs, strict=True):
            np.take(column, at, axis=0, out=out, mode="clip")
        for _ in range(n_steps):
            np.take(rewards, at, out=reward_out, mode="clip")

    return measure({"ours": lambda _: sampler.sample(), "take": limit}, batches, rounds)


def take_frames(store: EpisodeStore, size: int, batches: int, rounds: int) -> dict[str, float]:
    sampler = store.transitions(size, seed=0, frame_stack=4)
    pixels = store.column("observation").reshape(-1, 84 * 84)
    block = np.zeros((size, 5, 84 * 84), np.uint8)
    rows = [np.random.default_rng(k).integers(0, len(pixels) - 5, size) for k in range(batches * rounds)]

    def limit(k: int) -> None:
        for i, row in enumerate(rows[k]):
            block[i] = pixels[row:row + 5]

    return measure({"ours": lambda _: sampler.sample(), "take": limit}, batches, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller stores and fewer rounds")
    parser.add_argument("--json", action="store_true")
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
        results["256 transitions"] = take_vectors(store, 256, 300, rounds)
        results["256 transitions, n = 3"] = take_vectors(store, 256, 300, rounds, 3)
        results["4096 transitions"] = take_vectors(store, 4096, 30, rounds)
        store = frames(Path(folder) / "frames", count, 500)
        store.column("observation")[:].max()
        results["32 stacks of 4 of 84x84, with next"] = take_frames(store, 32, 100, rounds)
    noise = np.empty(1536, np.float32)
    results["1536 normal numbers"] = measure({"ours": lambda k: rng.normal(0, k, 1, noise)}, 300, rounds)
    if arguments.json:
        print(json.dumps({"kernels": kernels().NAME, "results": results}))
        return
    print(f"kernels: {kernels().NAME}; median us per batch; 'take': the same rows by NumPy, nothing else")
    for name, values in results.items():
        print(f"{name:45s} ours {values['ours']:9.1f}" + (f"   take {values['take']:9.1f}" if "take" in values else ""))


if __name__ == "__main__":
    main()
