"""Batches prefetched by a thread equal those drawn on request, in any order, and the thread always ends."""

from __future__ import annotations

import gc
import queue
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from offrl_store import Episode, EpisodeStore, Field, Schema
from offrl_store.errors import SnapshotEvicted
from offrld.engine.batches.prefetch import HostLane, PrefetchSource
from offrld.engine.batches.source import HostSource, Request, Samples, each
from offrld.engine.definition.algorithm import Noise

CPU = torch.device("cpu")
NOISE = {"target": Noise((4, 2)), "mix": Noise((3,), "uniform")}
REQUESTS = {
    "transitions": Request("transitions", {"batch_size": 16, "n_steps": 3}, (7,), NOISE),
    "seeds": Request("transitions", {"batch_size": 5, "next_action": True}, (7, 1, 2**64 - 1), NOISE, stacked=True),
    "windows": Request("windows", {"batch_size": 6, "length": 4}, (7, 8), NOISE, stacked=True),
    "epochs": Request("transitions", {"batch_size": 32, "replacement": False, "drop_last": False}, (7,), NOISE),
    "returns": Request("transitions", {"batch_size": 8, "returns": True}, (0,)),
}
named = pytest.mark.parametrize("request_", list(REQUESTS.values()), ids=list(REQUESTS))


def copy_of(raw: Samples) -> Samples:
    return Samples(each(raw.batch, torch.clone), {name: noise.clone() for name, noise in raw.noise.items()})


def parts(raw: Samples) -> list[torch.Tensor]:
    found = []
    each(raw.batch, found.append)
    return found + list(raw.noise.values())


def assert_same(one: Samples, other: Samples) -> None:
    assert type(one.batch) is type(other.batch)
    for mine, theirs in zip(parts(one), parts(other), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def made_ahead(source: PrefetchSource) -> list[int]:
    """Return the updates that are ready once the thread has filled all free blocks."""
    deadline = time.monotonic() + 60
    while len(source._ring._filled) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    return sorted(source._ring._filled)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "offrl-prefetch"]


@named
def test_batches_made_ahead_are_the_hosts_in_any_order(continuous_store, request_):
    host, ahead = HostSource(continuous_store, request_), PrefetchSource(continuous_store, request_, CPU)
    for k in [*range(20), 20, 20, 3, 4, 5, 2**40, 2**40 + 1, 0, 6, 7]:
        assert_same(ahead.samples(k), host.samples(k))
    ahead.close()


def test_a_batch_is_unchanged_until_the_next_request(continuous_store):
    source = PrefetchSource(continuous_store, REQUESTS["transitions"], CPU)
    for k in range(5):
        raw = source.samples(k)
        before = copy_of(raw)
        assert made_ahead(source) == [k + 1, k + 2]
        assert_same(raw, before)
    source.close()


class GateLane(HostLane):
    """Holds the thread up before it fills a block."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.open.set()

    def wait_until_done(self, event):
        self.reached.set()
        assert self.open.wait(60)


def test_work_started_before_another_update_was_requested_is_dropped(continuous_store):
    lane = GateLane()
    source = PrefetchSource(continuous_store, REQUESTS["transitions"], CPU, lane=lane)
    source.samples(0)
    assert made_ahead(source) == [1, 2]
    lane.open.clear()
    lane.reached.clear()
    source.samples(1)
    assert lane.reached.wait(60)  # the thread has begun update 3
    opening = threading.Timer(0.05, lane.open.set)
    opening.start()
    assert_same(source.samples(50), HostSource(continuous_store, REQUESTS["transitions"]).samples(50))
    assert made_ahead(source) == [51, 52]  # no block is lost to update 3
    source.close()


def test_stacked_frames_share_their_memory_in_the_block(tmp_path):
    """Observation and next observation of a stack of 4 are views of 5 frames: this is what goes to the device."""
    noise = np.random.default_rng(0)
    store = EpisodeStore.create(tmp_path / "store", Schema(observation=Field("uint8", (1, 40, 40)), action=Field("int64", (), 0, 3)))
    with store.writer() as writer:
        for steps in (9, 3, 20):
            writer.append(
                Episode(
                    noise.integers(0, 255, (steps + 1, 1, 40, 40)).astype(np.uint8),
                    noise.integers(0, 4, steps),
                    np.zeros(steps, np.float32),
                    True,
                )
            )
    request = Request("transitions", {"batch_size": 8, "frame_stack": 4}, (1, 2), {}, stacked=True)
    source = PrefetchSource(store, request, CPU)
    for k in range(6):
        for s, seed in enumerate(request.seeds):
            alone = HostSource(store, Request("transitions", request.arguments, (seed,)))
            raw = source.samples(k)
            assert torch.equal(raw.batch.observation[s], alone.samples(k).batch.observation)
            assert torch.equal(raw.batch.next_observation[s], alone.samples(k).batch.next_observation)
    assert raw.batch.observation.untyped_storage().nbytes() < 2 * 8 * (5 * 1600 + 200)
    source.close()


# --- The end of the thread --------------------------------------------------------------------------------------------------------


def evicting(tmp_path):
    """A bounded store, a reader of it, and what makes the reader's episodes go."""
    schema = Schema(observation=Field("float32", (3,)), action=Field("float32", (1,)))
    store = EpisodeStore.create(tmp_path / "store", schema, limit_transitions=30)

    def add(count: int) -> None:
        with store.writer() as writer:
            for _ in range(count):
                writer.append(Episode(np.ones((11, 3), "f4"), np.ones((10, 1), "f4"), np.ones(10, "f4"), False))
                writer.commit()

    add(3)
    return EpisodeStore.open(store.path), add


def test_an_error_in_the_thread_is_raised_unchanged_at_its_update(tmp_path):
    store, add = evicting(tmp_path)
    source = PrefetchSource(store, Request("transitions", {"batch_size": 4}, (0,)), CPU)
    source.samples(0)
    add(4)
    with pytest.raises(SnapshotEvicted, match="were evicted"):
        for k in range(1, 6):  # those made before the episodes went may still come
            source.samples(k)
    with pytest.raises(SnapshotEvicted):
        source.samples(1)  # it can be asked again, and says so again
    source.close()
    assert not threads()


def test_closing_ends_the_thread_and_refuses_more(continuous_store):
    source = PrefetchSource(continuous_store, REQUESTS["transitions"], CPU)
    source.samples(0)
    assert len(threads()) == 1
    source.close()
    source.close()
    assert not threads()
    with pytest.raises(RuntimeError, match="closed"):
        source.samples(1)


def test_an_unreferenced_source_ends_its_thread(continuous_store):
    source = PrefetchSource(continuous_store, REQUESTS["transitions"], CPU)
    source.samples(0)
    del source
    gc.collect()
    assert not threads()


def test_the_interpreter_ends_with_sources_open_and_with_one_in_an_exception(continuous_store):
    program = f"""
import torch
from offrl_store import EpisodeStore
from offrld.engine.batches.prefetch import HostLane, PrefetchSource
from offrld.engine.batches.source import Request
store = EpisodeStore.open({str(continuous_store.path)!r})
sources = [PrefetchSource(store, Request("transitions", {{"batch_size": 4096}}, (seed,)), torch.device("cpu")) for seed in range(3)]
for k in range(5):
    for source in sources:
        source.samples(k)
print("done", flush=True)
raise ValueError("on purpose")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout == "done\n"
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("ValueError: on purpose")


# --- The order of copies, on a device made of threads -----------------------------------------------------------------------------


class Stream:
    """Run functions later and in order, like a stream of a GPU."""

    def __init__(self, delays: np.random.Generator) -> None:
        self._work: queue.Queue = queue.Queue()
        self._delays = delays
        self.errors: list[BaseException] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            time.sleep(float(self._delays.uniform(0, 0.002)))
            try:
                work()
            except BaseException as error:
                self.errors.append(error)

    def do(self, work) -> None:
        self._work.put(work)

    def wait(self, event: Event) -> None:
        place = event.place
        self.do(lambda: place.wait(60))

    def record(self, event: Event) -> None:
        place = event.place = threading.Event()
        self.do(place.set)

    def settle(self) -> None:
        done = threading.Event()
        self.do(done.set)
        assert done.wait(60)


class Event:
    def __init__(self) -> None:
        self.place = threading.Event()
        self.place.set()


class ThreadLane:
    """Copies on one stream, computing on another; ``skip`` leaves out one kind of order."""

    def __init__(self, skip: str = "") -> None:
        self.copies, self.computing = Stream(np.random.default_rng(0)), Stream(np.random.default_rng(1))
        self._skip = skip

    def staging(self, size):
        return torch.zeros(size, dtype=torch.uint8)

    def twin(self, host):
        return host.twin()

    def event(self):
        return Event()

    def begin(self):
        self.computing.settle()

    def wait_until_done(self, event):
        if self._skip != "wait_until_done":
            assert event.place.wait(60)

    def send(self, host, target, *, after, then):
        if self._skip != "after":
            self.copies.wait(after)
        self.copies.do(lambda: target.copy_(host))
        self.copies.record(then)

    def wait_for(self, event):
        if self._skip != "wait_for":
            self.computing.wait(event)

    def mark(self, event):
        self.computing.record(event)

    def settle(self):
        self.copies.settle()


def wrong_updates(store, lane: ThreadLane, updates: int = 60) -> int:
    """Reads each batch on the computing stream only; gives how many were not the host's."""
    request = REQUESTS["seeds"]
    host = HostSource(store, request)
    expected = [copy_of(host.samples(k)) for k in range(updates)]
    source, seen = PrefetchSource(store, request, CPU, lane=lane), {}
    for k in range(updates):
        raw = source.samples(k)
        lane.computing.do(lambda k=k, raw=raw: seen.__setitem__(k, copy_of(raw)))
    lane.computing.settle()
    source.close()
    assert not lane.computing.errors
    assert not lane.copies.errors
    return sum(not all(map(torch.equal, parts(seen[k]), parts(expected[k]))) for k in range(updates))


def test_copies_wait_for_the_last_use_and_uses_for_the_copy(continuous_store):
    assert wrong_updates(continuous_store, ThreadLane()) == 0


@pytest.mark.parametrize("skip", ["wait_until_done", "after", "wait_for"])
def test_each_of_the_orders_is_needed(continuous_store, skip):
    """Without any one of them batches are wrong: the test above would notice."""
    assert wrong_updates(continuous_store, ThreadLane(skip)) > 0
