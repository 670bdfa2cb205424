"""The recorder: takes the steps of a control loop, keeps them on the disk, and sends whole episodes to the daemon.

The loop's thread checks and copies a step into memory, and does nothing else: no file, no network. A second thread writes the steps into
the spool and syncs them every half second, a third one sends. So a process that is killed, or a machine that loses its power, loses what
was recorded since the last sync; the episode so far is kept as a truncated one.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offrl.client import Client
from offrl.errors import DiskFull, InternalError, InvalidInput, OffrlError
from offrl.job import NAME_PATTERN
from offrl.spaces import flat, schema_of
from offrl_store import EpisodeStore, Field, Schema, Writer
from offrl_store.schema import Column

from .sender import PATIENCE_S, Sender
from .spool import Spool, size

TAKE_S = 0.05  # between two looks at what has come
SEGMENT_BYTES = 64 << 20  # of a store that is sent as one
MOST_WAITING = 200_000  # steps in memory, where the disk does not keep up
RETRY_S = 5.0  # between two attempts to begin a segment on a disk that was full


@dataclass(frozen=True)
class Status:
    """Where a recorder stands.

    Attributes:
        episodes: recorded in whole. open_steps: of the one under way.
        segments_sent, segments_waiting: stores that have arrived, and that wait.
        bytes: of the spool.
        dropped: episodes that are lost: the spool's limit was reached, or the disk was full.
        problem: why nothing is being sent or written just now; "" while all is well.
    """

    episodes: int
    open_steps: int
    segments_sent: int
    segments_waiting: int
    bytes: int
    dropped: int
    problem: str


class Recorder:
    """Records episodes into a dataset of the daemon. Close it, or use it as a context manager.

        recorder = offrl.Recorder(client, "arm")
        recorder.begin(observation)
        while True:
            recorder.step(action, reward, observation, terminated, truncated)

    Args:
        client: a `Client`, or the daemon's address, which need not answer now; None: nothing is sent (`offrl spool push` does later).
        dataset: made by the first episodes, appended to where it exists.
        schema: the fields; or an environment, whose spaces say them. None: those of the first step, where its action is a vector (of a
            discrete one the number of choices is not known then).
        spool: folder; default ``$OFFRL_SPOOL/DATASET``, else ``~/.local/share/offrl/spool/DATASET``. What an earlier process left there is
            sent as well.
        limit_bytes: of the spool. Where it is reached new episodes are not recorded (``status().dropped`` counts them), or with
            ``drop_oldest`` the oldest that have not been sent are deleted.
        sync_s: seconds between two syncs: what a kill or a loss of power may cost.
        send_every_s: episodes are gathered so long before they are sent together.
        key: the key file, where ``client`` is an address.

    Raises:
        InvalidInput: a name or number that cannot be. StoreLocked: another process records into the spool.
    """

    def __init__(
        self,
        client: Client | str | None,
        dataset: str,
        *,
        schema: Schema | Any = None,
        spool: str | os.PathLike[str] | None = None,
        limit_bytes: int = 10 << 30,
        drop_oldest: bool = False,
        sync_s: float = 0.5,
        send_every_s: float = 30.0,
        key: str | os.PathLike[str] | None = None,
    ) -> None:
        if re.fullmatch(NAME_PATTERN, dataset) is None:
            raise InvalidInput(f"{dataset!r} is no name of a dataset", hint="letters, digits, dots, dashes; a letter or digit first")
        for name, value in (("limit_bytes", limit_bytes), ("sync_s", sync_s), ("send_every_s", send_every_s)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise InvalidInput(f"{name} is {value!r}", hint="give a number above 0")
        self._limit, self._drop_oldest, self._sync_s, self._send_every_s = limit_bytes, drop_oldest, sync_s, send_every_s
        self._schema: Schema | None = None
        self._casts: dict[str, list[_Cast]] = {}
        self._first: Any = None  # observation of an episode that began before the fields were known
        self._open = False
        self._steps = self._number = self._dropped = 0
        self._problem: OffrlError | None = None
        self._failed: Exception | None = None
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._stop, self._wake, self._closing = threading.Event(), threading.Event(), threading.Event()
        if schema is not None:
            self.use(schema)
        self.spool = Spool(default_spool(dataset) if spool is None else spool, dataset)
        self._sender = None if client is None else Sender(self.spool, _connector(client, key), self._stop)
        self._threads = [threading.Thread(target=self._write, name="offrl-record", daemon=True)]
        if self._sender is not None:
            self._wake.set()
            self._threads.append(threading.Thread(target=self._sender.run, args=(self._wake,), name="offrl-send", daemon=True))
        for thread in self._threads:
            thread.start()

    def use(self, schema: Schema | Any) -> None:
        """Takes the fields of a `Schema` or of an environment, where none are known yet."""
        if self._schema is None:
            self._schema = schema if isinstance(schema, Schema) else schema_of(schema, format="recorded")
            for column in self._schema.columns:
                self._casts.setdefault(column.role, []).append(_Cast(column))

    # ---------------------------------------------------------------------------------------------------------- the loop's thread
    def begin(self, observation: Any) -> None:
        """An episode begins. One that is still open ends as truncated. Raises `InvalidInput` for an observation of another form."""
        if self._open:
            self.end()
        self._first = self._cast("observation", observation) if self._schema is not None else observation
        self._open, self._steps = True, 0
        if self._schema is not None:
            self._put(("begin", self._first, time.time()))

    def step(
        self, action: Any, reward: float, observation: Any, terminated: bool = False, truncated: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """One step, with the observation after it; either flag ends the episode.

        Raises:
            InvalidInput: no episode is open, or a value has another form, is not finite, or out of bounds. The episode then ends before
                this step, as truncated, because what follows would not follow on what is recorded: call `begin` again.
            DiskFull: more steps wait in memory than the disk takes; the same holds.
        """
        if not self._open:
            raise InvalidInput("no episode is open", hint="call begin(observation) first")
        try:
            if self._schema is None:
                self._infer(action, reward, observation, extra)
            step = (
                self._cast("action", action), self._cast("reward", reward), self._cast("observation", observation),
                self._cast("extra", extra or {}) if "extra" in self._casts or extra else None,
            )  # fmt: skip
            if len(self._waiting) > MOST_WAITING:
                raise DiskFull(f"{MOST_WAITING} steps wait for the disk of {self.spool.folder}", hint="it is too slow, or it hangs")
        except OffrlError:
            self.end()
            raise
        self._steps += 1
        self._put(("step", *step))
        if terminated or truncated:
            self.end(terminated=bool(terminated))

    def end(self, terminated: bool = False, metadata: Mapping[str, Any] | None = None) -> None:
        """The open episode ends, as truncated unless ``terminated``; ``metadata``: a JSON object to keep with it. Without a step it is
        forgotten. Does nothing where none is open."""
        if self._open:
            self._open = False
            if self._schema is not None:
                self._put(("end", terminated, dict(metadata or {})))

    def _put(self, item: tuple[Any, ...]) -> None:
        if self._failed is not None:
            raise InternalError(f"the thread that writes has ended: {type(self._failed).__name__}: {self._failed}") from self._failed
        self._waiting.append(item)

    def _cast(self, role: str, value: Any) -> Any:
        casts = self._casts.get(role, [])
        if len(casts) == 1 and casts[0].column.key is None:
            return casts[0](value)
        due = {each.column.key: each for each in casts}
        given = flat(value) if isinstance(value, Mapping) else None
        if given is None or given.keys() != due.keys():
            had = f"a {type(value).__name__}" if given is None else ", ".join(given) or "nothing"
            raise InvalidInput(f"{role} is {had}, due are the fields {', '.join(map(str, due)) or '(none)'}")
        return {key: cast(given[key]) for key, cast in due.items()}

    def _infer(self, action: Any, reward: float, observation: Any, extra: Mapping[str, Any] | None) -> None:
        """The fields of the first step, and then the episode's first observation, which has waited for them."""
        array = np.asarray(action)
        if array.dtype.kind in "iub" and not array.shape:
            raise InvalidInput("the number of choices of a discrete action is not known", hint="give schema=, or an environment")
        metadata = {"env_id": None, "bounds": "inferred", "source": {"format": "recorded"}, "source_attributes": {}}
        self.use(Schema(_fields(observation), _fields(action), Field("float32"), _fields(extra or {}), metadata))
        self._put(("begin", self._cast("observation", self._first), time.time()))

    # ------------------------------------------------------------------------------------------------------- the writing thread
    def _write(self) -> None:
        segment = _Segment(self)
        try:
            self._write_all(segment)
        except Exception as error:
            self._failed = error  # the loop's next step raises it
            segment.leave()       # with the episodes that are whole
            raise

    def _write_all(self, segment: _Segment) -> None:
        synced = time.monotonic()
        while True:
            closing = self._closing.wait(TAKE_S)
            while self._waiting:
                segment.take(self._waiting.popleft())
            now = time.monotonic()
            if now - synced >= self._sync_s or closing:
                segment.sync()
                synced = now
            segment.seal_if_due(closing)
            if closing:
                break

    # ------------------------------------------------------------------------------------------------------------------ the rest
    def status(self) -> Status:
        """How much is recorded, how much has arrived, and what is wrong."""
        problem = self._problem or (self._sender.problem if self._sender is not None else None)
        return Status(
            episodes=self._number, open_steps=self._steps if self._open else 0, segments_sent=self._sender.sent if self._sender else 0,
            segments_waiting=len(self.spool.ready()), bytes=self.spool.size(), dropped=self._dropped,
            problem=str(problem) if problem else "",
        )  # fmt: skip

    def close(self, wait_s: float = 0.0) -> bool:
        """Ends the open episode as truncated and writes everything into the spool; whether all of it has arrived.

        ``wait_s``: how long to wait for that. What has not stays in the spool: the next recorder sends it, or `offrl spool push`.
        """
        if self._threads:
            try:
                self.end()
            finally:
                self._closing.set()
                self._threads[0].join()
                self._wake.set()
                deadline = time.monotonic() + wait_s
                while self._sender is not None and self.spool.ready() and time.monotonic() < deadline:
                    time.sleep(TAKE_S)
                self._stop.set()
                self._wake.set()
                for thread in self._threads[1:]:
                    thread.join()
                self._threads = []
                self._arrived = not self.spool.ready()
                self.spool.close()
        return self._arrived

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Segment:
    """The store that the writing thread fills; one after the other."""

    def __init__(self, recorder: Recorder) -> None:
        self._of = recorder
        self._writer: Writer | None = None
        self._number, self._began, self._episodes, self._bytes, self._began_at = 0, 0.0, 0, 0, 0.0
        self._lost = False  # the open episode is one that cannot be kept
        self._blocked_until = 0.0

    def take(self, item: tuple[Any, ...]) -> None:
        """A begin, a step or an end. Whatever the disk does, the loop goes on; what is lost is counted."""
        kind = item[0]
        try:
            if kind == "begin":
                self._lost = not self._there()
                self._began_at = item[2]
                if self._writer is not None and not self._lost:
                    self._writer.begin(item[1])
            elif self._lost:
                self._of._dropped += kind == "end"
            elif kind == "step":
                self._writer.step(item[1], item[2], item[3], extra=item[4])
            elif self._writer.open_episodes.get(0):
                self._end(item[1], item[2])
            else:
                self._writer.discard(0)
        except OffrlError as error:
            self._give_up(error, counted=kind == "end")

    def _end(self, terminated: bool, metadata: dict[str, Any]) -> None:
        recorder = self._of
        own = {"recorder": recorder.spool.id, "segment": self._number, "episode": recorder._number, "recorded_at": self._began_at}
        metadata = {**metadata, **own}
        self._writer.end(terminated, metadata=metadata)
        self._writer.commit()
        recorder._number += 1
        recorder._problem = None
        self._episodes += 1
        self.seal_if_due(False)

    def _there(self) -> bool:
        """Whether an episode can be written: there is a store, and room in the spool."""
        recorder = self._of
        if time.monotonic() < self._blocked_until:
            return False
        while (held := recorder.spool.size()) >= recorder._limit:
            dropped = recorder.spool.drop_oldest() if recorder._drop_oldest else 0
            recorder._dropped += dropped
            if not dropped:
                recorder._problem = DiskFull(f"the spool holds {held} bytes, its limit is {recorder._limit}",
                                             hint="let the daemon take it, or give a higher limit_bytes")  # fmt: skip
                return False
        if self._writer is None:
            self._number, path = recorder.spool.begin_segment()
            self._writer = EpisodeStore.create(path, recorder._schema).writer()
            self._began, self._episodes = time.monotonic(), 0
        return True

    def _give_up(self, error: OffrlError, *, counted: bool) -> None:
        """The open episode cannot be kept (a full disk): what is whole is sealed, and a new store is begun with a later episode."""
        recorder = self._of
        recorder._problem, self._lost = error, True
        recorder._dropped += counted
        if isinstance(error, DiskFull):
            self._blocked_until = time.monotonic() + RETRY_S
        self.leave()

    def leave(self) -> None:
        """Closes the store and hands it over, where one is open."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
                self._of.spool.seal(self._number)
                self._of._wake.set()
            except OffrlError as error:  # the disk is full: the next recorder on this spool takes the store in
                self._of._problem = error

    def sync(self) -> None:
        """What has come so far is durable."""
        if self._writer is not None and self._writer.open_episodes:
            try:
                self._writer.sync()
            except OffrlError as error:
                self._give_up(error, counted=False)

    def seal_if_due(self, closing: bool) -> None:
        """Hands the store over to the sender, between two episodes: when it is old or large enough, or the last one."""
        if self._writer is None or self._writer.open_episodes:
            return
        old = time.monotonic() - self._began >= self._of._send_every_s
        if closing or (self._episodes and (old or size(self._of.spool.folder / f"active-{self._number:08d}") >= SEGMENT_BYTES)):
            self.leave()


class _Cast:
    """The values of one column, as the store takes them: a copy of the right dtype and shape, all finite."""

    def __init__(self, column: Column) -> None:
        self.column, self._dtype, self._shape = column, column.field.dtype, column.field.shape
        self._floats = self._dtype.kind == "f"
        self._low, self._high = (getattr(column.field, each) if column.role == "action" else None for each in ("low", "high"))

    def __call__(self, value: Any) -> np.ndarray:
        try:
            array = np.array(value, self._dtype)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{self.column.name} is no {self._dtype.name}: {error}") from None
        if array.shape != self._shape:
            raise InvalidInput(f"{self.column.name} has shape {array.shape}, due is {self._shape}")
        # The sum is finite where all values are (but for huge doubles): a third of the time of looking at each.
        if self._floats and not math.isfinite(np.add.reduce(array, axis=None, dtype=np.float64)) and not np.isfinite(array).all():
            raise InvalidInput(f"{self.column.name} holds a value that is not finite", hint="the episode ends before it: begin a new one")
        if (self._low is not None and (array < self._low).any()) or (self._high is not None and (array > self._high).any()):
            raise InvalidInput(f"{self.column.name} {array.tolist()} is outside [{self._low}, {self._high}]", hint="clip it")
        return array


def _fields(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _fields(each) for name, each in flat(value).items()}
    array = np.asarray(value)
    return Field("float32" if array.dtype == np.float64 else array.dtype.name, array.shape)


def _connector(client: Client | str, key: Any) -> Callable[[], Client]:
    """Gives connections of the sending thread's own, which wait but shortly for a daemon that is gone."""
    if isinstance(client, Client):
        return lambda: client.again(PATIENCE_S)
    return lambda: Client(client, patience=PATIENCE_S, key=key)


def default_spool(dataset: str) -> Path:
    """Where a recorder of this dataset keeps its episodes."""
    root = os.environ.get("OFFRL_SPOOL")
    return (Path(root) if root else Path.home() / ".local" / "share" / "offrl" / "spool") / dataset
