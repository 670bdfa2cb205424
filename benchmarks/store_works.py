"""Our side of the store's benchmark: each work of the table, in alternation with its limit."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.store_data import ACTION, ACTIONS, ALPHA, BETA, ENVIRONMENTS, GAMMA, OBSERVATION, STEPS, Data, seconds_of
from benchmarks.store_limits import Rows, Tree, open_raw, write_raw
from offrl_store import Episode, EpisodeStore, Field, Schema, rng

SCHEMA = Schema(observation=Field("float32", (OBSERVATION,)), action=Field("float32", (ACTION,), low=-1, high=1))
FRAMES = Schema(observation=Field("uint8", (1, 84, 84)), action=Field("int32", (), low=0, high=ACTIONS - 1))
MEMORY = """
import sys
from offrl_store import EpisodeStore
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
before = resident()
store = EpisodeStore.open(sys.argv[1])
print(resident() - before)
"""


@dataclass(frozen=True)
class Size:
    """The amount of measurement: rounds in which ours and the limit alternate, and batches of 256 transitions per round."""

    rounds: int
    batches: int


def vectors(path: Path, data: Data) -> EpisodeStore:
    store = EpisodeStore.create(path, SCHEMA)
    fill(store, data)
    return store


def fill(store: EpisodeStore, data: Data) -> None:
    """Write whole episodes; they are durable when this returns."""
    with store.writer() as writer:
        for observation, action, reward in zip(data.observation, data.action, data.reward, strict=True):
            writer.append(Episode(observation, action, reward))


def frames(path: Path, data: Data) -> EpisodeStore:
    store = EpisodeStore.create(path, FRAMES)
    with store.writer() as writer:
        for pixels, actions in data.frame_episodes():
            writer.append(Episode(pixels[:, None], actions, np.zeros(len(actions), np.float32)))
    return store


def touch(store: EpisodeStore) -> None:
    """Map every page before a clock starts."""
    for column in store.schema.columns:
        store.column(column.name).reshape(-1).view(np.uint8)[::4096].max()


def turns(works: dict[str, Callable[[int], object]], rounds: int, calls: int) -> dict[str, float]:
    """Return the median seconds per call of each work, and the median of ours / limit. Call k gets k.

    The works alternate, so that a noisy moment affects all. A first round, which maps the pages of a batch's arrays, does not count: k goes
    up to (rounds + 1) x calls.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            for k in range(turn * calls, (turn + 1) * calls):
                work(k)
            if turn:
                times[name].append((time.perf_counter() - start) / calls)
    return medians(times)


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each, and as ``ratio`` the median of ours / limit per round: the machine may slow down between rounds."""
    result = {name: statistics.median(values) for name, values in times.items()}
    if "limit" in times:
        result["ratio"] = statistics.median(ours / limit for ours, limit in zip(times["ours"], times["limit"], strict=True))
    return result


def scaled(figures: dict[str, float], factor: float) -> dict[str, float]:
    return {name: value if name == "ratio" else value * factor for name, value in figures.items()}


def micro(works: dict[str, Callable[[int], object]], rounds: int, calls: int) -> dict[str, float]:
    return scaled(turns(works, rounds, calls), 1e6)


# --- Samplers -----------------------------------------------------------------------------------------------------------------


def drawn(store: EpisodeStore, batches: int, size: int, margin: int) -> np.ndarray:
    """Draw rows for the limit: int64 [batches, size], each followed by at least ``margin`` rows."""
    return np.random.default_rng(0).integers(0, len(store.column("reward")) - margin, (batches, size))


def drawn_for(store: EpisodeStore, size: Size, calls: int, batch: int, margin: int) -> np.ndarray:
    """Draw rows for all calls of `turns`."""
    return drawn(store, (size.rounds + 1) * calls, batch, margin)


def transition_parts(store: EpisodeStore, n_steps: int = 1, stack: int = 1) -> list[tuple[np.ndarray, int, int]]:
    """Return the parts that `Rows` must copy for a transition. With stacks, the frames of both observations together, as ours does."""
    observation, action, reward = (store.column(name) for name in ("observation", "action", "reward"))
    parts = [(observation, stack + 1 if stack > 1 else 1, 0), (action, 1, 0)] + [(reward, 1, i) for i in range(n_steps)]
    return parts if stack > 1 else [*parts, (observation, 1, n_steps)]


def sample(store: EpisodeStore, library: Any, size: Size, batch: int, n_steps: int = 1, stack: int = 1, **options: Any) -> dict[str, float]:
    """Measure microseconds per batch of transitions."""
    sampler = store.transitions(batch, seed=0, n_steps=n_steps, gamma=GAMMA, frame_stack=stack, **options)
    calls = max(10, size.batches * 256 // (batch if stack == 1 else 768))
    limit = Rows(library, drawn_for(store, size, calls, batch, stack + n_steps + 1), transition_parts(store, n_steps, stack))
    return micro({"ours": lambda _: sampler.sample(), "limit": limit}, size.rounds, calls)


def windows(store: EpisodeStore, library: Any, size: Size) -> dict[str, float]:
    """Measure microseconds per batch of 64 windows of 20."""
    sampler = store.windows(64, 20, seed=0)
    parts = [(store.column(name), 20, 0) for name in ("observation", "action", "reward")]
    limit = Rows(library, drawn_for(store, size, size.batches, 64, 20), parts)
    return micro({"ours": lambda _: sampler.sample(), "limit": limit}, size.rounds, size.batches)


def prioritized(store: EpisodeStore, library: Any, size: Size, data: Data) -> dict[str, float]:
    """Measure microseconds to sample and update 256 transitions."""
    sampler = store.prioritized(256, seed=0, alpha=ALPHA, beta=BETA)
    count = sampler.transition_count
    sampler.update(np.arange(count), np.random.default_rng(0).random(count), numbers=True)
    works: dict[str, Callable[[int], object]] = {"ours": lambda _: sampler.update(sampler.sample().index, data.priorities)}
    if library is not None:
        rows = drawn_for(store, size, size.batches, 256, 2)
        copies, tree = Rows(library, rows, transition_parts(store)), Tree(library, rows, len(store.column("reward")), data.priorities)

        def limit(k: int) -> None:
            tree(k)
            copies(k)

        works["limit"] = limit
    return micro(works, size.rounds, size.batches)


def normals(size: Size) -> dict[str, float]:
    noise = np.empty(1536, np.float32)
    return micro({"ours": lambda k: rng.normal(0, k, 1, noise)}, size.rounds, size.batches)


# --- Files --------------------------------------------------------------------------------------------------------------------


def opened(store: EpisodeStore, size: Size) -> dict[str, float]:
    """Measure milliseconds to open a store."""
    works = {"ours": lambda _: EpisodeStore.open(store.path), "limit": lambda _: open_raw(store.path)}
    return scaled(turns(works, size.rounds, 5), 1e3)


def open_memory(store: EpisodeStore) -> dict[str, float]:
    """Measure the MB that the first open of a process adds to its resident memory; median of five processes."""
    kib = [
        int(subprocess.run([sys.executable, "-c", MEMORY, store.path], check=True, capture_output=True, text=True).stdout) for _ in range(5)
    ]
    return {"ours": statistics.median(kib) * 1024 / 1e6}


def column_bytes(data: Data) -> list[np.ndarray]:
    """Return the content of the columns of `vectors`: the row of a final observation has no action and no reward."""
    episodes, rows = data.observation.shape[:2]
    action, reward = np.zeros((episodes, rows, ACTION), np.float32), np.zeros((episodes, rows), np.float32)
    action[:, :-1], reward[:, :-1] = data.action, data.reward
    return [data.observation, action, reward]


def write(folder: Path, data: Data, rounds: int) -> dict[str, float]:
    """Measure rows per second of writing whole episodes, and of plain writes of the same bytes. Creating the files is not measured."""
    arrays = column_bytes(data)
    times: dict[str, list[float]] = {"ours": [], "limit": []}
    for _ in range(rounds):
        store = EpisodeStore.create(folder / "written", SCHEMA)
        os.sync()
        times["ours"].append(seconds_of(partial(fill, store, data)))
        shutil.rmtree(store.path)
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile(buffering=0, dir=folder)) for _ in arrays]
            pairs = [(file.fileno(), array) for file, array in zip(files, arrays, strict=True)]
            os.sync()
            times["limit"].append(seconds_of(partial(write_raw, pairs)))
    return medians({name: [data.transitions / value for value in values] for name, values in times.items()})


# --- Step by step -----------------------------------------------------------------------------------------------------------------


def play(store: EpisodeStore, steps: list[Any]) -> None:
    """Write the steps of one environment; they are durable when this returns."""
    with store.writer() as writer:
        fresh = True
        for observation, action, reward, after, last in steps:
            if fresh:
                writer.begin(observation)
            writer.step(action, reward, after, truncated=last)
            fresh = last


def play_batches(store: EpisodeStore, batches: list[Any]) -> None:
    """Write the steps of eight environments, whose resets come with the last step of an episode."""
    no, yes = np.zeros(ENVIRONMENTS, bool), np.ones(ENVIRONMENTS, bool)
    start = batches[0][0]
    with store.writer() as writer:
        for env in range(ENVIRONMENTS):
            writer.begin(start[env], env)
        for _, action, reward, after, last in batches:
            if last:
                writer.step_batch(action, reward, start, no, yes, final_observations=after)
            else:
                writer.step_batch(action, reward, after, no, no)


def copied(steps: list[Any], shape: tuple[int, ...]) -> None:
    """Do the minimum of a Python loop over the steps: assign their parts to rows of arrays."""
    count = len(steps)
    observations, actions = np.empty((count, *shape, OBSERVATION), np.float32), np.empty((count, *shape, ACTION), np.float32)
    rewards = np.empty((count, *shape), np.float32)
    for i, (_, action, reward, after, _) in enumerate(steps):
        observations[i], actions[i], rewards[i] = after, action, reward


def stepped(folder: Path, data: Data, rounds: int, batch: bool) -> dict[str, float]:
    """Measure steps per second, durable at the end."""
    count = min(STEPS, data.transitions)
    steps: list[Any] = data.batches(count) if batch else data.steps(count)
    times: dict[str, list[float]] = {"ours": [], "limit": []}
    for _ in range(rounds):
        store = EpisodeStore.create(folder / "played", SCHEMA)
        os.sync()
        times["ours"].append(seconds_of(partial(play_batches if batch else play, store, steps)))
        shutil.rmtree(store.path)
        times["limit"].append(seconds_of(lambda: copied(steps, (ENVIRONMENTS,) if batch else ())))
    return medians({name: [count / value for value in values] for name, values in times.items()})
