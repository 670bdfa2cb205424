"""The recorder: takes the steps of a control loop, keeps them on the disk, and sends whole episodes to the daemon.

The loop's thread checks and copies a step into memory, and does nothing else: no file, no network. A second thread writes the steps into
the spool and syncs them every half second, a third one sends. So a process that is killed, or a machine that loses its power, loses what
was recorded since the last sync; the episode so far is kept as a truncated one.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offrl.client import Client
from offrl.errors import DiskFull, InternalError, InvalidInput, OffrlError
from offrl.job import NAME_PATTERN
from offrl.recording.sender import PATIENCE_S, Sender
from offrl.recording.spool import Spool, size
from offrl.spaces import flat, schema_of
from offrl_store import EpisodeStore, Field, Schema, Writer, meta
from offrl_store.exact_numbers import Changed, exact, numbers, untyped
from offrl_store.schema import Column

TAKE_S = 0.05  # between two looks at what has come
SEGMENT_BYTES = 64 << 20  # of a store that is sent as one
MOST_WAITING = 200_000  # steps in memory, where the disk does not keep up
RETRY_S = 5.0  # between two attempts to begin a segment on a disk that was full
CLOSE_S = 10.0  # for which close() waits by itself for a daemon that answers
LEAVE_S = 5.0  # for a request under way when the sending is to end
OWN_NOTES = ("recorder", "segment", "episode", "recorded_at")  # of an episode's metadata, filled in by the recorder


class RecordingWarning(UserWarning):
    """Episodes that were given and are lost, or that wait in the spool of a recorder that was closed."""


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
        schema: the fields; or an environment, whose spaces say them. None: those of the first step. A dtype that NumPy takes by itself
            (of Python numbers, float64 and int64 arrays) becomes float64, any other one is kept. What a field does not hold exactly is
            refused; only Python floats, and rewards, are rounded to a float field that is narrower.
        action_low, action_high: bounds of the action where there is no schema: numbers, or one for each place of the vector.
        action_size: the number of choices of a discrete action, 0 to ``action_size - 1``, where there is no schema.
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
        action_low: Any = None,
        action_high: Any = None,
        action_size: int | None = None,
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
        if not (client is None or isinstance(client, str | Client)):
            raise InvalidInput(f"client is a {type(client).__name__}", hint="give an offrl.Client, the daemon's address, or None")
        self._action = _ActionField(action_low, action_high, action_size)
        if schema is not None and self._action.declared:
            raise InvalidInput("both schema= and the action's bounds or choices were given", hint="declare them in the schema")
        self._limit, self._drop_oldest, self._sync_s, self._send_every_s = limit_bytes, drop_oldest, sync_s, send_every_s
        self._schema: Schema | None = None
        self._casts: dict[str, list[_Cast]] = {}
        self._first: Any = None  # observation of an episode that began before the fields were known, and when
        self._began_at = 0.0
        self._open = False
        self._steps = self._begun = self._number = self._dropped = 0
        self._problem: OffrlError | None = None
        self._losses: deque[_Loss] = deque()  # that the loop has not been told of
        self._warned = ""
        self._process = os.getpid()
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
        atexit.register(self._at_exit)

    def use(self, schema: Schema | Any) -> None:
        """Takes the fields of a `Schema` or of an environment, where none are known yet."""
        if self._schema is None:
            schema = schema if isinstance(schema, Schema) else schema_of(schema, format="recorded")
            casts: dict[str, list[_Cast]] = {}
            for column in schema.columns:
                casts.setdefault(column.role, []).append(_Cast(column))
            self._schema, self._casts = schema, casts

    # ---------------------------------------------------------------------------------------------------------- the loop's thread
    def begin(self, observation: Any) -> None:
        """An episode begins. One that is still open ends as truncated. Raises `InvalidInput` for an observation of another form, or one
        that is not finite: no episode is open then."""
        self._check_process()
        self._end(False)
        self._tell()
        number = self._begun + 1
        try:
            first = _first_arrays(observation) if self._schema is None else self._cast("observation", observation)
        except OffrlError as error:
            raise _located(error, f"episode {number}, the first observation") from None
        self._begun, self._open, self._steps, self._first, self._began_at = number, True, 0, first, time.time()
        if self._schema is not None:
            self._waiting.append(("begin", number, first, self._began_at))

    def step(
        self,
        action: Any,
        reward: float,
        observation: Any,
        terminated: bool = False,
        truncated: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """One step, with the observation after it; either flag ends the episode.

        Raises:
            InvalidInput: no episode is open, or a value has another form, is not finite, out of bounds, or another one in the dtype of its
                field. The episode then ends before this step, as truncated, because what follows would not follow on what is recorded:
                call `begin` again.
            DiskFull: more steps wait in memory than the disk takes; the same holds.
            OffrlError: this episode could not be written and is lost; call `begin` again.
        """
        self._check_process()
        self._tell()
        if not self._open:
            raise InvalidInput("no episode is open", hint="call begin(observation) first")
        try:
            ended, cut = _flag("terminated", terminated), _flag("truncated", truncated)
            values = self._values(action, reward, observation, extra)
            if len(self._waiting) > MOST_WAITING:
                raise DiskFull(f"{MOST_WAITING} steps wait for the disk of {self.spool.folder}", hint="it is too slow, or it hangs")
        except OffrlError as error:
            self._end(False)
            raise _located(error, f"episode {self._begun}, step {self._steps}") from None
        self._steps += 1
        self._waiting.append(("step", *values))
        if ended or cut:
            self._end(ended)

    def end(self, terminated: bool = False, metadata: Mapping[str, Any] | None = None) -> None:
        """The open episode ends, as truncated unless ``terminated``; ``metadata``: a JSON object to keep with it. Without a step it is
        forgotten. Does nothing where none is open.

        Raises:
            InvalidInput: the metadata cannot be kept; the episode is, without it.
            OffrlError: the episode could not be written and is lost.
        """
        self._check_process()
        self._tell()
        ended = _flag("terminated", terminated)
        try:
            given = dict(metadata or {})
            if own := [name for name in OWN_NOTES if name in given]:
                raise InvalidInput(f"metadata holds {own[0]!r}, which the recorder fills in", hint="take another name")
            meta.checked(given)
        except (OffrlError, TypeError, ValueError) as error:
            self._end(ended)
            said = error.message if isinstance(error, OffrlError) else f"metadata is no JSON object: {metadata!r:.60}"
            raise InvalidInput(f"episode {self._begun}: {said}", hint="the episode is kept without it") from None
        self._end(ended, given)

    def _end(self, terminated: bool, metadata: dict[str, Any] | None = None) -> None:
        if self._open:
            self._open = False
            if self._schema is not None:
                self._waiting.append(("end", terminated, metadata or {}))

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise InvalidInput(
                f"this recorder belongs to process {self._process}, of which this one was forked", hint="make a Recorder in this process"
            )

    def __reduce__(self) -> Any:
        raise InvalidInput("a recorder cannot be sent to another process", hint="make a Recorder in that process, with a spool of its own")

    def _tell(self) -> None:
        """Says what was lost since the last call: as an error, once, where it is the open episode that something unforeseen has ended; as
        a warning where it is an earlier one, or the spool has no room. The loop need not mind a warning: later episodes are kept."""
        while self._losses:
            loss = self._losses.popleft()
            if self._open and loss.number == self._begun and not loss.foreseen:
                self._open = False
                raise loss.told() from None
            if loss.error.code != self._warned:  # once for a disk that stays full
                warnings.warn(str(loss.told()), RecordingWarning, stacklevel=3)
                self._warned = loss.error.code if loss.foreseen else ""

    def _values(self, action: Any, reward: Any, observation: Any, extra: Any) -> tuple[Any, Any, Any, Any]:
        """The values of a step as the store takes them. The first one that is good also tells the fields."""
        if self._schema is not None:
            return (
                self._cast("action", action),
                self._cast("reward", reward),
                self._cast("observation", observation),
                self._cast("extra", extra or {}) if "extra" in self._casts or extra else None,
            )
        self.use(self._inferred(action, observation, extra or {}))
        try:
            first = self._cast("observation", self._first)
            values = self._values(action, reward, observation, extra)
        except OffrlError:
            self._schema, self._casts = None, {}
            raise
        self._waiting.append(("begin", self._begun, first, self._began_at))
        return values

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

    def _inferred(self, action: Any, observation: Any, extra: Mapping[str, Any]) -> Schema:
        """The fields that the first step shows; those of the observation have to hold the one before it as well."""
        before, after = self._first, _arrays("observation", observation)
        if isinstance(before, dict) != isinstance(after, dict) or (isinstance(before, dict) and before.keys() != after.keys()):
            raise InvalidInput(
                f"observation is {_named(after)}, the first one was {_named(before)}", hint="give each observation the same fields"
            )
        if isinstance(after, dict):
            observed: Any = {name: _field(before[name], after[name]) for name in after}
        else:
            observed = _field(before, after)
        acted = self._action.field(_arrays("action", action))
        extras = _arrays("extra", dict(extra))
        metadata = {
            "env_id": None,
            "bounds": "declared" if self._action.declared else "inferred",
            "source": {"format": "recorded"},
            "source_attributes": {},
        }
        return Schema(observed, acted, Field("float64"), {name: _field(each) for name, each in extras.items()}, metadata)

    # ------------------------------------------------------------------------------------------------------- the writing thread
    def _write(self) -> None:
        segment = _Segment(self)
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
            episodes=self._number,
            open_steps=self._steps if self._open else 0,
            segments_sent=self._sender.sent if self._sender else 0,
            segments_waiting=len(self.spool.ready()),
            bytes=self.spool.size(),
            dropped=self._dropped,
            problem=str(problem or ""),
        )

    def close(self, wait_s: float | None = None) -> bool:
        """Ends the open episode as truncated and writes everything into the spool; whether all of it has arrived.

        Args:
            wait_s: seconds to wait for the daemon to have it. By default up to 10, but no longer than an attempt takes that fails: where
                nobody answers there is nothing to wait for. 0: not at all.

        What has not arrived stays in the spool, and a `RecordingWarning` says so: the next recorder sends it, or `offrl spool push`.

        Raises:
            OffrlError: an episode could not be written and is lost, and no call has said so before. The recorder is closed all the same.
        """
        if not self._threads or os.getpid() != self._process:  # a forked process: the threads, the spool and its lock are the other's
            return self._arrived
        atexit.unregister(self._at_exit)
        self._end(False)
        self._closing.set()
        self._threads[0].join()
        if self._sender is not None:
            self._wait_until_sent(wait_s)
        self._stop.set()
        self._wake.set()
        if self._sender is not None:
            self._sender.hurry.set()
        for thread in self._threads[1:]:
            thread.join(LEAVE_S)
        if not any(thread.is_alive() for thread in self._threads):
            self.spool.close()  # else a daemon that says nothing holds it: its lock goes with this process
        self._threads = []
        left = len(self.spool.ready())
        self._arrived = not left
        if left and self._sender is not None and wait_s is None:
            why = f" ({self._sender.problem.message})" if self._sender.problem is not None else ""
            warnings.warn(
                f"{left} segment{'s' * (left > 1)} of episodes wait in the spool {self.spool.folder}{why}; the next recorder on it sends "
                f"them, or `offrl spool push {self.spool.folder}`",
                RecordingWarning,
                stacklevel=2,
            )
        losses, self._losses = list(self._losses), deque()
        for loss in losses:
            if not loss.foreseen:
                raise loss.told()
        if losses:
            warnings.warn(f"{self._dropped} episodes are lost: {losses[-1].error}", RecordingWarning, stacklevel=2)
        return self._arrived

    _arrived = False

    def _wait_until_sent(self, wait_s: float | None) -> None:
        deadline = time.monotonic() + (CLOSE_S if wait_s is None else wait_s)
        failed = self._sender.failed
        self._wake.set()
        self._sender.hurry.set()
        while self.spool.ready() and time.monotonic() < deadline and (wait_s is not None or self._sender.failed == failed):
            time.sleep(TAKE_S)

    def _at_exit(self) -> None:
        """The program ends without having closed the recorder: what it has given goes into the spool."""
        try:
            self.close(wait_s=0.0)
        except OffrlError as error:
            warnings.warn(str(error), RecordingWarning, stacklevel=1)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except OffrlError as lost:
            if error is None:
                raise
            warnings.warn(str(lost), RecordingWarning, stacklevel=2)  # what has left the block says more

    def __repr__(self) -> str:
        status = self.status()
        return f"Recorder({self.spool.dataset!r}, episodes={status.episodes}, dropped={status.dropped}, waiting={status.segments_waiting})"


@dataclass(frozen=True)
class _Loss:
    """An episode that could not be kept. ``foreseen``: the disk or the spool has no room, which a loop goes on over."""

    number: int
    error: OffrlError
    foreseen: bool

    def told(self) -> OffrlError:
        return type(self.error)(f"episode {self.number} is lost: {self.error.message}", hint=self.error.hint)


class _Segment:
    """The store that the writing thread fills; one after the other. Nothing that goes wrong with an episode ends the thread."""

    def __init__(self, recorder: Recorder) -> None:
        self._of = recorder
        self._writer: Writer | None = None
        self._number, self._began, self._episodes, self._began_at = 0, 0.0, 0, 0.0
        self._episode = 0  # as the loop counts them
        self._lost = False  # it cannot be kept
        self._blocked: DiskFull | None = None
        self._blocked_until = 0.0

    def take(self, item: tuple[Any, ...]) -> None:
        """A begin, a step or an end. Whatever the disk does, the loop goes on; what is lost is counted and told."""
        kind = item[0]
        try:
            if kind == "begin":
                self._lost = False
                _, self._episode, observation, self._began_at = item
                self._make_room()
                self._writer.begin(observation)
            elif self._lost:
                pass
            elif kind == "step":
                self._writer.step(item[1], item[2], item[3], extra=item[4])
            elif self._writer.open_episodes.get(0):
                self._end(item[1], item[2])
            else:
                self._writer.discard(0)
        except Exception as error:
            self._give_up(error)

    def _end(self, terminated: bool, metadata: dict[str, Any]) -> None:
        recorder = self._of
        own = dict(zip(OWN_NOTES, (recorder.spool.id, self._number, recorder._number, self._began_at), strict=True))
        self._writer.end(terminated, metadata={**metadata, **own})
        self._writer.commit()
        recorder._number += 1
        recorder._problem = None
        self._episodes += 1
        self.seal_if_due(False)

    def _make_room(self) -> None:
        """There is a store, and room in the spool; `DiskFull` where there is none."""
        recorder = self._of
        if time.monotonic() < self._blocked_until:
            raise self._blocked
        while (held := recorder.spool.size()) >= recorder._limit:
            dropped = recorder.spool.drop_oldest() if recorder._drop_oldest else 0
            recorder._dropped += dropped
            if not dropped:
                raise _NoRoom(
                    f"the spool holds {held} bytes, its limit is {recorder._limit}",
                    hint="let the daemon take it, or give a higher limit_bytes",
                )
        if self._writer is None:
            self._number, path = recorder.spool.begin_segment()
            self._writer = EpisodeStore.create(path, recorder._schema).writer()
            self._began, self._episodes = time.monotonic(), 0

    def _give_up(self, error: Exception) -> None:
        """The open episode cannot be kept: what is whole is sealed, and a new store is begun with a later episode."""
        recorder, told = self._of, self._as_told(error)
        recorder._problem, self._lost = told, True
        recorder._dropped += 1
        recorder._losses.append(_Loss(self._episode, told, isinstance(told, DiskFull)))
        if isinstance(told, _NoRoom):
            return  # the disk is well, and so is the store
        if isinstance(told, DiskFull):
            self._blocked, self._blocked_until = told, time.monotonic() + RETRY_S
        self.leave()

    def _as_told(self, error: Exception) -> OffrlError:
        if isinstance(error, OffrlError):
            return error
        if isinstance(error, OSError):
            return OffrlError(f"the spool {self._of.spool.folder} cannot be written: {error.strerror or error}", hint="see to its folder")
        return InternalError(f"writing failed with {type(error).__name__}: {error}", hint="a defect in offrl: please report it")

    def leave(self) -> None:
        """Closes the store and hands it over, where one is open."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
            self._of.spool.seal(self._number)
            self._of._wake.set()
        except Exception as error:
            self._of._problem = self._as_told(error)
            if self._episodes and not os.path.isdir(writer.store.path):
                self._of._dropped += self._episodes  # somebody has removed it; a store that is there is taken in by the next recorder
                self._of._losses.append(_Loss(self._episode, self._of._problem, False))

    def sync(self) -> None:
        """What has come so far is durable."""
        if self._writer is not None and not self._lost and self._writer.open_episodes:
            try:
                self._writer.sync()
            except Exception as error:
                self._give_up(error)

    def seal_if_due(self, closing: bool) -> None:
        """Hands the store over to the sender, between two episodes: when it is old or large enough, or the last one."""
        if self._writer is None or self._writer.open_episodes:
            return
        old = time.monotonic() - self._began >= self._of._send_every_s
        if closing or (self._episodes and (old or size(self._writer.store.path) >= SEGMENT_BYTES)):
            self.leave()


class _NoRoom(DiskFull):
    """The spool's own limit is reached."""


class _Cast:
    """The values of one column, as the store takes them: a copy of the right dtype and shape, all finite, and none of them another one."""

    def __init__(self, column: Column) -> None:
        self.column, self._dtype, self._shape = column, column.field.dtype, column.field.shape
        self._finite = self._dtype.kind == "f" and column.role != "extra"
        self._bounds = (column.field.low, column.field.high) if column.role == "action" else (None, None)

    def __call__(self, value: Any) -> np.ndarray:
        array = value if value.__class__ is np.ndarray else numbers(value, self.column.name)
        if array.shape != self._shape:
            raise InvalidInput(f"{self.column.name} has shape {array.shape}, due is {self._shape}")
        array = array.copy() if array.dtype == self._dtype else self._converted(value, numbers(array, self.column.name))
        # The sum is finite where all values are (but for huge doubles): a third of the time of looking at each.
        if self._finite and not math.isfinite(np.add.reduce(array, axis=None, dtype=np.float64)):
            self._refuse_first(~np.isfinite(array), array, "which is not finite", "the episode ends before it: begin a new one")
        low, high = self._bounds
        if (low is not None and (array < low).any()) or (high is not None and (array > high).any()):
            outside = (array < (-np.inf if low is None else low)) | (array > (np.inf if high is None else high))
            self._refuse_first(outside, array, f"outside its bounds [{low}, {high}]", "clip it, or declare wider bounds")
        return array

    def _converted(self, value: Any, array: np.ndarray) -> np.ndarray:
        try:
            return np.array(exact(array, self._dtype, rounded=untyped(value) or self.column.role == "reward"))
        except Changed as error:
            name = f"{self.column.name}{list(error.at) or ''}"
            raise InvalidInput(
                f"{name} is {error.value}, which {self._dtype.name} does not hold",
                hint=f"give it as {self._dtype.name}, or declare a wider field with Recorder(schema=...)",
            ) from None

    def _refuse_first(self, bad: np.ndarray, array: np.ndarray, why: str, hint: str) -> None:
        if bad.any():
            at = np.argwhere(bad)[0].tolist()
            raise InvalidInput(f"{self.column.name}{at or ''} is {array[bad][0].item()}, {why}", hint=hint)


class _ActionField:
    """What the user declares of the action, where the first step has to tell the rest."""

    def __init__(self, low: Any, high: Any, size: int | None) -> None:
        self._size = size
        self._low = None if low is None else numbers(low, "action_low")
        self._high = None if high is None else numbers(high, "action_high")
        bounded = low is not None or high is not None
        self.declared = bounded or size is not None
        if size is not None and (bounded or isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1):
            said = "action_size goes without bounds" if bounded else f"action_size is {size!r}"
            raise InvalidInput(said, hint="action_size=N: choices 0 to N-1; action_low=, action_high=: a vector")

    def field(self, action: Any) -> Field | dict[str, Field]:
        """Of an action like this one."""
        if isinstance(action, dict):
            if self.declared:
                raise InvalidInput(f"action is {_named(action)}", hint="declare the bounds of several fields with schema=")
            return {name: _field(each) for name, each in action.items()}
        if self._size is not None:
            return Field("int64", (), low=0, high=int(self._size) - 1)
        if action.dtype.kind in "iub" and not action.shape:
            raise InvalidInput(
                "the number of choices of a discrete action is not known", hint="give action_size=N, schema=, or an environment"
            )
        plain = _field(action)
        return Field(plain.dtype, plain.shape, low=self._low, high=self._high)


def _field(*arrays: np.ndarray) -> Field:
    """The field for values like these. What NumPy takes by itself says nothing about them, and float64 holds both exactly."""
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise InvalidInput(f"observation has shape {arrays[-1].shape}, the first one has {arrays[0].shape}")
    dtype = np.result_type(*arrays)
    return Field("float64" if dtype == np.int64 else dtype, arrays[0].shape)


def _arrays(role: str, value: Any) -> Any:
    """A value, or each of a dict, as an array."""
    if isinstance(value, Mapping):
        return {name: numbers(each, f"{role}.{name}") for name, each in flat(value).items()}
    return numbers(value, role)


def _first_arrays(observation: Any) -> Any:
    """Copies of an observation whose fields are not known yet."""
    found = _arrays("observation", observation)
    for name, array in found.items() if isinstance(found, dict) else (("", found),):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            at = np.argwhere(~np.isfinite(array))[0].tolist()
            where = f"observation{'.' * bool(name)}{name}{at or ''}"
            raise InvalidInput(f"{where} is {array[tuple(at)].item()}, which is not finite", hint="begin when the sensors are ready")
    return {name: array.copy() for name, array in found.items()} if isinstance(found, dict) else found.copy()


def _named(value: Any) -> str:
    return f"the fields {', '.join(map(str, value)) or '(none)'}" if isinstance(value, dict) else "one array"


def _flag(name: str, value: Any) -> bool:
    """True or False, whatever type an environment gives it in."""
    if value is True or value is False:
        return value
    array = numbers(value, name)
    if array.size != 1 or array.reshape(()) not in (0, 1):
        raise InvalidInput(f"{name} is {value!r:.60}", hint="give True or False")
    return bool(array.reshape(()))


def _located(error: OffrlError, where: str) -> OffrlError:
    return type(error)(f"{where}: {error.message}", hint=error.hint)


def _connector(client: Client | str, key: Any) -> Callable[[], Client]:
    """Gives connections of the sending thread's own, which wait but shortly for a daemon that is gone."""
    if isinstance(client, Client):
        return lambda: client.again(PATIENCE_S)
    return lambda: Client(client, patience=PATIENCE_S, key=key)


def default_spool(dataset: str) -> Path:
    """Where a recorder of this dataset keeps its episodes."""
    root = os.environ.get("OFFRL_SPOOL")
    return (Path(root) if root else Path.home() / ".local" / "share" / "offrl" / "spool") / dataset
