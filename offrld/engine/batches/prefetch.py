"""Batches made ahead: a thread fills them on the host and sends them to the device while the device computes.

The thread fills a small ring of blocks in pinned memory. Each block goes to the device in one copy on a separate stream; events order the
copy after the last use of its target and before the next. On the CPU nothing is copied: the consumer reads the blocks themselves.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

from offrl_store import EpisodeStore
from offrld.engine.batches.source import Block, HostBlock, Request, Samples

DEPTH = 3  # blocks: one in use, one on its way, one being filled


class PrefetchSource:
    """Makes the batches of updates ``k + 1``, ``k + 2``, ... while update ``k`` runs. A jump to another ``k`` starts over there.

    An exception in the thread is raised by the call of ``samples`` for the update at which it happened. The thread ends with `close`, with
    the source, and before the interpreter does. For use by one thread.

    Args:
        depth: blocks in the ring, at least 2.
        lane: how blocks reach the device; None: chosen by the device.
    """

    def __init__(
        self, store: EpisodeStore, request: Request, device: torch.device, *, depth: int = DEPTH, lane: Lane | None = None
    ) -> None:
        if lane is None:
            lane = CudaLane(device) if device.type == "cuda" else HostLane()
        self._ring = _Ring([_Slot(store, request, lane) for _ in range(depth)], lane)
        self._held: _Slot | None = None
        lane.begin()
        thread = threading.Thread(target=self._ring.run, name="offrl-prefetch", daemon=True)
        # Not by __del__: this runs before the interpreter stops its threads, so that no copy is cut.
        self._finish = weakref.finalize(self, _finish, self._ring, thread)
        thread.start()

    def samples(self, k: int) -> Samples:
        if self._held is not None:
            self._ring.give_back(self._held)
            self._held = None
        slot = self._held = self._ring.take(k)
        return slot.ready()

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._finish()


def _finish(ring: _Ring, thread: threading.Thread) -> None:
    ring.stop()
    if thread is not threading.current_thread():  # the garbage collector may run in the thread itself
        thread.join()
    ring.lane.settle()


# --- The ring ---------------------------------------------------------------------------------------------------------------------


class _Ring:
    """What the two threads share. Slots go around: free, filled by the thread, read and returned by the consumer."""

    def __init__(self, slots: list[_Slot], lane: Lane) -> None:
        self.lane = lane
        self._changed = threading.Condition()
        self._free = list(slots)
        self._filled: dict[int, _Slot | BaseException] = {}  # by update
        self._next: int | None = None  # the update that the thread fills next; None: nothing to fill
        self._wanted: int | None = None  # the update that the consumer should read next
        self._course = 0  # counts jumps: a slot that was started before a jump is dropped
        self._stopped = False

    # The consumer's side

    def take(self, k: int) -> _Slot:
        """Wait for the slot with update ``k`` and return it. Raises the exception that the thread met there."""
        with self._changed:
            if self._stopped:
                raise RuntimeError("the source of batches is closed")
            if k != self._wanted:
                self._turn(k)
            while k not in self._filled:
                self._changed.wait()
            slot = self._filled.pop(k)
            if isinstance(slot, BaseException):
                self._wanted = self._next = None
                raise slot
            self._wanted = k + 1
            return slot

    def give_back(self, slot: _Slot) -> None:
        slot.release()
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _turn(self, k: int) -> None:
        """Start over at ``k``."""
        self._free += [slot for slot in self._filled.values() if isinstance(slot, _Slot)]
        self._filled.clear()
        self._next, self._course = k, self._course + 1
        self._changed.notify_all()

    # The thread's side

    def run(self) -> None:
        """Fill slots until stopped."""
        while (task := self._next_task()) is not None:
            slot, k, course = task
            try:
                slot.fill(k)
            except BaseException as error:  # the consumer raises it, whatever it is
                self._done(slot, k, course, error)
            else:
                self._done(slot, k, course, None)

    def _next_task(self) -> tuple[_Slot, int, int] | None:
        """Wait for a free slot; it, its update and the course. None: stopped."""
        with self._changed:
            while not self._stopped:
                if self._next is not None and self._free:
                    k, self._next = self._next, self._next + 1
                    return self._free.pop(0), k, self._course
                self._changed.wait()
            return None

    def _done(self, slot: _Slot, k: int, course: int, error: BaseException | None) -> None:
        with self._changed:
            if course != self._course:
                self._free.append(slot)
            elif error is not None:
                self._free.append(slot)
                self._filled[k] = error
                self._next = None
            else:
                self._filled[k] = slot
            self._changed.notify_all()


class _Slot:
    """One block on the host, its twin on the device, and the samplers that fill it."""

    def __init__(self, store: EpisodeStore, request: Request, lane: Lane) -> None:
        self._lane, self._host = lane, HostBlock(store, request, lane.staging)
        self._target = lane.twin(self._host)
        self._copied, self._used = lane.event(), lane.event()
        self._count = 0  # samples per seed in the block

    def fill(self, k: int) -> None:
        """In the thread: fill the block with update ``k`` and start its copy."""
        self._lane.wait_until_done(self._copied)  # the last copy out of this block
        self._count = self._host.fill(k)
        self._lane.send(self._host.bytes, self._target.bytes, after=self._used, then=self._copied)

    def ready(self) -> Samples:
        """In the consumer: the samples; what it computes next waits for the copy."""
        self._lane.wait_for(self._copied)
        return self._target.first(self._count)

    def release(self) -> None:
        """In the consumer: every operation that reads the samples has been issued."""
        self._lane.mark(self._used)


# --- To the device ----------------------------------------------------------------------------------------------------------------


class Lane(Protocol):
    """How blocks reach the device. An event marks the place in a stream where it was last recorded; an unrecorded event has passed."""

    def staging(self, size: int) -> Tensor:
        """Bytes on the host that can be copied from."""
        ...

    def twin(self, host: Block) -> Block:
        """The block on the device that ``host`` is copied to."""
        ...

    def event(self) -> Any: ...

    def begin(self) -> None:
        """Order all copies after the work issued so far: the blocks' memory may have had another use just before."""
        ...

    def wait_until_done(self, event: Any) -> None:
        """Block the calling thread until the device has passed the event."""
        ...

    def send(self, host: Tensor, target: Tensor, *, after: Any, then: Any) -> None:
        """Start a copy that waits for the event ``after``, and record ``then`` behind it."""
        ...

    def wait_for(self, event: Any) -> None:
        """Make all later work wait for the event."""
        ...

    def mark(self, event: Any) -> None:
        """Record the event behind all work issued so far."""
        ...

    def settle(self) -> None:
        """Block the calling thread until all copies are done."""
        ...


class HostLane:
    """The consumer reads the memory that the thread fills: nothing to copy, nothing to wait for."""

    def staging(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8)

    def twin(self, host: Block) -> Block:
        return host

    def event(self) -> None:
        return None

    def begin(self) -> None: ...

    def wait_until_done(self, event: None) -> None: ...

    def send(self, host: Tensor, target: Tensor, *, after: None, then: None) -> None: ...

    def wait_for(self, event: None) -> None: ...

    def mark(self, event: None) -> None: ...

    def settle(self) -> None: ...


class CudaLane:
    """Copies from pinned memory on a separate stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def staging(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8, pin_memory=True)

    def twin(self, host: Block) -> Block:
        return host.twin(lambda size: torch.zeros(size, dtype=torch.uint8, device=self._device))

    def begin(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event()

    def wait_until_done(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def send(self, host: Tensor, target: Tensor, *, after: torch.cuda.Event, then: torch.cuda.Event) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(after)
            target.copy_(host, non_blocking=True)
            then.record(self._stream)

    def wait_for(self, event: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(event)

    def mark(self, event: torch.cuda.Event) -> None:
        event.record(torch.cuda.current_stream(self._device))

    def settle(self) -> None:
        self._stream.synchronize()
