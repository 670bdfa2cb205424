"""The recorder's writing thread: steps go into a store in the spool, one store (a segment) after the other."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from offrl.errors import DiskFull, InternalError, OffrlError
from offrl.recording.fields import Fields
from offrl.recording.spool import Spool, size
from offrl_store import EpisodeStore, Writer

TAKE_S = 0.05  # between two looks for new steps
SEGMENT_BYTES = 64 << 20  # a segment is complete from this size on
RETRY_S = 5.0  # from a full disk to the next attempt to create a segment
OWN_NOTES = ("recorder", "segment", "episode", "recorded_at")  # keys of an episode's metadata that the recorder fills in


@dataclass(frozen=True)
class Loss:
    """An episode that could not be kept.

    Attributes:
        number: its number, as the control loop counts.
        error: the reason.
        foreseen: the disk or the spool has no room, so that the loop may go on.
    """

    number: int
    error: OffrlError
    foreseen: bool

    def as_error(self) -> OffrlError:
        return type(self.error)(f"episode {self.number} is lost: {self.error.message}", hint=self.error.hint)


class SegmentWriter:
    """Writes the steps that the control loop puts into ``waiting``. No error in an episode ends the thread.

    Args:
        fields: known before the first item waits.
        limit: bytes of the spool; at the limit new episodes are lost or, with ``drop_oldest``, the oldest unsent segments are deleted.
        sync_s: seconds between two syncs.
        seal_s: age in seconds at which a segment is complete.
        wake: set when a segment is complete.

    Attributes:
        waiting: items of the loop: ("begin", number, observation, time), ("step", action, reward, observation, extra) or
            ("end", terminated, metadata).
        episodes: episodes recorded.
        dropped: episodes lost.
        losses: the losses that the loop has not reported yet.
        problem: the last error; None if the last episode was written.
    """

    def __init__(
        self, spool: Spool, fields: Fields, *, limit: float, drop_oldest: bool, sync_s: float, seal_s: float, wake: threading.Event
    ) -> None:
        self._spool, self._fields, self._limit, self._drop_oldest = spool, fields, limit, drop_oldest
        self._sync_s, self._seal_s, self._wake = sync_s, seal_s, wake
        self.waiting: deque[tuple[Any, ...]] = deque()
        self.episodes = self.dropped = 0
        self.losses: deque[Loss] = deque()
        self.problem: OffrlError | None = None
        self._writer: Writer | None = None
        self._number, self._created, self._whole = 0, 0.0, 0  # of the segment: its number, when it was made, its whole episodes
        self._episode, self._began_at = 0, 0.0  # of the open episode
        self._lost = False  # the open episode cannot be kept
        self._disk_error: DiskFull | None = None
        self._retry_at = 0.0

    def run(self, closing: threading.Event) -> None:
        """Write until ``closing`` is set and nothing waits."""
        synced = time.monotonic()
        while True:
            last = closing.wait(TAKE_S)
            while self.waiting:
                self._take(self.waiting.popleft())
            now = time.monotonic()
            if now - synced >= self._sync_s or last:
                self._sync()
                synced = now
            self._seal_if_complete(last)
            if last:
                break

    def _take(self, item: tuple[Any, ...]) -> None:
        """Write one item. A failing disk never stops the loop: the loss is counted and reported."""
        kind = item[0]
        try:
            if kind == "begin":
                self._lost = False
                _, self._episode, observation, self._began_at = item
                self._open_segment().begin(observation)
            elif self._lost or self._writer is None:
                pass
            elif kind == "step":
                self._writer.step(item[1], item[2], item[3], extra=item[4])
            elif self._writer.open_episodes.get(0):
                self._end(self._writer, item[1], item[2])
            else:
                self._writer.discard(0)
        except Exception as error:
            self._give_up(error)

    def _end(self, writer: Writer, terminated: bool, metadata: dict[str, Any]) -> None:
        own = dict(zip(OWN_NOTES, (self._spool.id, self._number, self.episodes, self._began_at), strict=True))
        writer.end(terminated, metadata={**metadata, **own})
        writer.commit()
        self.episodes += 1
        self.problem = None
        self._whole += 1
        self._seal_if_complete(False)

    def _open_segment(self) -> Writer:
        """The segment's writer, in a spool with room for more. Raises `DiskFull`."""
        if self._disk_error is not None and time.monotonic() < self._retry_at:
            raise self._disk_error
        while (held := self._spool.size()) >= self._limit:
            dropped = self._spool.drop_oldest() if self._drop_oldest else 0
            self.dropped += dropped
            if not dropped:
                raise _SpoolFull(
                    f"the spool holds {held} bytes, its limit is {self._limit}",
                    hint="start the daemon so that it can take them, or pass a higher limit_bytes",
                )
        if self._writer is None:
            if self._fields.schema is None:
                raise RuntimeError("an episode waits before its fields are known")
            self._number, path = self._spool.begin_segment()
            self._writer = EpisodeStore.create(path, self._fields.schema).writer()
            self._created, self._whole = time.monotonic(), 0
        return self._writer

    def _give_up(self, error: Exception) -> None:
        """Lose the open episode. The segment's whole episodes are kept, and a later episode starts a new segment."""
        reason = self._as_error(error)
        self.problem, self._lost = reason, True
        self.dropped += 1
        self.losses.append(Loss(self._episode, reason, isinstance(reason, DiskFull)))
        if isinstance(reason, _SpoolFull):
            return  # the disk and the segment are in order
        if isinstance(reason, DiskFull):
            self._disk_error, self._retry_at = reason, time.monotonic() + RETRY_S
        self._seal()

    def _as_error(self, error: Exception) -> OffrlError:
        if isinstance(error, OffrlError):
            return error
        if isinstance(error, OSError):
            return OffrlError(f"the spool {self._spool.folder} cannot be written: {error.strerror or error}", hint="check its folder")
        return InternalError(f"writing failed with {type(error).__name__}: {error}", hint="a defect in offrl: please report it")

    def _seal(self) -> None:
        """Close the segment, if there is one, and hand it to the sender."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
            self._spool.seal(self._number)
            self._wake.set()
        except Exception as error:
            self.problem = self._as_error(error)
            if self._whole and not os.path.isdir(writer.store.path):
                self.dropped += self._whole  # somebody removed it; the next recorder takes in a store that still exists
                self.losses.append(Loss(self._episode, self.problem, False))

    def _sync(self) -> None:
        """Make everything written so far durable."""
        if self._writer is not None and not self._lost and self._writer.open_episodes:
            try:
                self._writer.sync()
            except Exception as error:
                self._give_up(error)

    def _seal_if_complete(self, closing: bool) -> None:
        """Between two episodes, seal a segment that is old or large enough, or the last one."""
        if self._writer is None or self._writer.open_episodes:
            return
        old = time.monotonic() - self._created >= self._seal_s
        if closing or (self._whole and (old or size(self._writer.store.path) >= SEGMENT_BYTES)):
            self._seal()


class _SpoolFull(DiskFull):
    """The spool has reached its own limit."""
