"""The recorder: takes the steps of a control loop, keeps them on disk, and sends whole episodes to the daemon.

The loop's thread only checks a step and copies it into memory: no file, no network. A second thread writes the steps into the spool and
syncs them every half second; a third one sends. A killed process or a power failure therefore loses only what was recorded since the last
sync; the episode up to there is kept as a truncated one.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offrl.client import Client
from offrl.errors import DiskFull, InvalidInput, OffrlError
from offrl.job import NAME_PATTERN
from offrl.printable import counted
from offrl.recording.fields import ActionField, Fields, first_observation, flag
from offrl.recording.segments import OWN_NOTES, TAKE_S, SegmentWriter
from offrl.recording.sender import PATIENCE_S, Sender
from offrl.recording.spool import Spool
from offrl_store import Schema, meta

MOST_WAITING = 200_000  # steps in memory while the disk does not keep up
CLOSE_S = 10.0  # close() waits this long for a daemon that answers
LEAVE_S = 5.0  # for a request under way when the sending must end


class RecordingWarning(UserWarning):
    """Episodes are lost, or wait in the spool of a closed recorder."""


@dataclass(frozen=True)
class Status:
    """The state of a recorder.

    Attributes:
        episodes: whole episodes recorded.
        open_steps: steps of the open episode.
        segments_sent, segments_waiting: stores that have arrived at the daemon, and that wait.
        bytes: size of the spool.
        dropped: episodes lost because the spool's limit was reached or the disk was full.
        problem: the reason why nothing is sent or written at the moment; "" if all is well.
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
        client: a `Client`, or the daemon's address, which need not answer yet. None: nothing is sent (`offrl spool push` does it later).
        dataset: created by the first episodes; appended to if it exists.
        schema: the fields, or an environment whose spaces declare them. None: the fields of the first step. The dtypes that NumPy chooses
            by itself (float64 and int64, also for Python numbers) become float64; any other dtype is kept. A value that a field does not
            hold exactly is refused; only Python floats and rewards are rounded to a narrower float field.
        action_low, action_high: without a schema, bounds of the action: numbers, or one per dimension of the vector.
        action_size: without a schema, number of choices of a discrete action, 0 to ``action_size - 1``.
        spool: folder; default ``$OFFRL_SPOOL/DATASET``, else ``~/.local/share/offrl/spool/DATASET``. Episodes that an earlier process left
            there are sent too.
        limit_bytes: of the spool. At the limit new episodes are not recorded (``status().dropped`` counts them) or, with ``drop_oldest``,
            the oldest unsent ones are deleted.
        sync_s: seconds between two syncs: what a kill or a power failure may cost.
        send_every_s: seconds for which episodes are collected before they are sent together.
        key: the key file, if ``client`` is an address.

    Raises:
        InvalidInput: an invalid name or number.
        StoreLocked: another process records into the spool.
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
            raise InvalidInput(
                f"{dataset!r} is not a valid dataset name", hint="use letters, digits, dots and dashes; start with a letter or digit"
            )
        for name, value in (("limit_bytes", limit_bytes), ("sync_s", sync_s), ("send_every_s", send_every_s)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise InvalidInput(f"{name} is {value!r}", hint="pass a number above 0")
        if not (client is None or isinstance(client, str | Client)):
            raise InvalidInput(f"client is a {type(client).__name__}", hint="pass an offrl.Client, the daemon's address, or None")
        action = ActionField(action_low, action_high, action_size)
        if schema is not None and action.declared:
            raise InvalidInput("both schema= and the action's bounds or choices were given", hint="declare them in the schema")
        self._fields = Fields(action)
        self._first: Any = None  # observation of an episode that began before the fields were known, and when
        self._began_at = 0.0
        self._open = False
        self._steps = self._begun = 0
        self._warned = ""
        self._arrived = False
        self._process = os.getpid()
        self._stop, self._wake, self._closing = threading.Event(), threading.Event(), threading.Event()
        if schema is not None:
            self.use(schema)
        self.spool = Spool(default_spool(dataset) if spool is None else spool, dataset)
        self._segments = SegmentWriter(
            self.spool,
            self._fields,
            limit=limit_bytes,
            drop_oldest=drop_oldest,
            sync_s=sync_s,
            seal_s=send_every_s,
            wake=self._wake,
        )
        self._waiting = self._segments.waiting
        self._sender = None if client is None else Sender(self.spool, _connector(client, key), self._stop)
        self._threads = [threading.Thread(target=self._segments.run, args=(self._closing,), name="offrl-record", daemon=True)]
        if self._sender is not None:
            self._wake.set()
            self._threads.append(threading.Thread(target=self._sender.run, args=(self._wake,), name="offrl-send", daemon=True))
        for thread in self._threads:
            thread.start()
        atexit.register(self._at_exit)

    def use(self, schema: Schema | Any) -> None:
        """Take the fields of a `Schema` or of an environment, unless the fields are known already."""
        self._fields.use(schema)

    # ---------------------------------------------------------------------------------------------------------- the loop's thread
    def begin(self, observation: Any) -> None:
        """Begin an episode; an open one ends as truncated.

        Raises `InvalidInput` for an observation of another form or with values that are not finite; no episode is open then.
        """
        self._check_process()
        self._end(False)
        self._report_losses()
        number = self._begun + 1
        try:
            first = first_observation(observation) if self._fields.schema is None else self._fields.cast("observation", observation)
        except OffrlError as error:
            raise _located(error, f"episode {number}, the first observation") from None
        self._begun, self._open, self._steps, self._first, self._began_at = number, True, 0, first, time.time()
        if self._fields.schema is not None:
            self._waiting.append(("begin", number, first, self._began_at))

    def step(
        self,
        action: Any,
        reward: Any,
        observation: Any,
        terminated: bool = False,
        truncated: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Record one step, with the observation after it; either flag ends the episode.

        Raises:
            InvalidInput: no episode is open; or a value has another form, is not finite, is out of bounds, or changes in the dtype of its
                field. The episode then ends before this step, as truncated, because the next step would not follow the recorded ones:
                call `begin` again.
            DiskFull: too many steps wait in memory for the disk; the episode ends likewise.
            OffrlError: this episode could not be written and is lost; call `begin` again.
        """
        self._check_process()
        self._report_losses()
        if not self._open:
            raise InvalidInput("no episode is open", hint="call begin(observation) first")
        try:
            ended, cut = flag("terminated", terminated), flag("truncated", truncated)
            if extra is not None and not isinstance(extra, Mapping):
                raise InvalidInput(f"extra is a {type(extra).__name__}", hint="pass a dict of the values by name")
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
        """End the open episode, as truncated unless ``terminated``. An episode without a step is dropped. Does nothing if none is open.

        Args:
            metadata: a JSON object to keep with the episode.

        Raises:
            InvalidInput: the metadata cannot be kept; the episode is kept without it.
            OffrlError: the episode could not be written and is lost.
        """
        self._check_process()
        self._report_losses()
        ended = flag("terminated", terminated)
        try:
            entries = dict(metadata or {})
            if own := [name for name in OWN_NOTES if name in entries]:
                raise InvalidInput(f"metadata holds {own[0]!r}, which the recorder fills in", hint="use another name")
            meta.checked(entries)
        except (OffrlError, TypeError, ValueError) as error:
            self._end(ended)
            reason = error.message if isinstance(error, OffrlError) else f"metadata is a {type(metadata).__name__}, not a JSON object"
            raise InvalidInput(f"episode {self._begun}: {reason}", hint="the episode is kept without it") from None
        self._end(ended, entries)

    def _end(self, terminated: bool, metadata: dict[str, Any] | None = None) -> None:
        if self._open:
            self._open = False
            if self._fields.schema is not None:
                self._waiting.append(("end", terminated, metadata or {}))

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise InvalidInput(
                f"this recorder belongs to process {self._process}, which this process was forked from",
                hint="make a Recorder in this process",
            )

    def __reduce__(self) -> Any:
        raise InvalidInput("a recorder cannot be sent to another process", hint="make a Recorder in that process, with a spool of its own")

    def _report_losses(self) -> None:
        """Report what was lost since the last call: an unforeseen loss of the open episode as an error, any other loss as a warning.

        The loop may ignore a warning: later episodes are kept.
        """
        losses = self._segments.losses
        while losses:
            loss = losses.popleft()
            if self._open and loss.number == self._begun and not loss.foreseen:
                self._open = False
                raise loss.as_error() from None
            if loss.error.code != self._warned:  # one warning for a disk that stays full
                warnings.warn(str(loss.as_error()), RecordingWarning, stacklevel=3)
                self._warned = loss.error.code if loss.foreseen else ""

    def _values(self, action: Any, reward: Any, observation: Any, extra: Any) -> tuple[Any, Any, Any, Any]:
        """The values of a step as the store holds them. The first valid step also declares the fields."""
        fields = self._fields
        if fields.schema is not None:
            return fields.step(action, reward, observation, extra)
        fields.infer(self._first, action, observation, extra or {})
        try:
            first = fields.cast("observation", self._first)
            values = fields.step(action, reward, observation, extra)
        except OffrlError:
            fields.forget()
            raise
        self._waiting.append(("begin", self._begun, first, self._began_at))
        return values

    # ------------------------------------------------------------------------------------------------------------------ the rest
    def status(self) -> Status:
        """How much is recorded, how much has arrived, and the current problem."""
        problem = self._segments.problem or (self._sender.problem if self._sender is not None else None)
        return Status(
            episodes=self._segments.episodes,
            open_steps=self._steps if self._open else 0,
            segments_sent=self._sender.sent if self._sender else 0,
            segments_waiting=len(self.spool.ready()),
            bytes=self.spool.size(),
            dropped=self._segments.dropped,
            problem=str(problem or ""),
        )

    def close(self, wait_s: float | None = None) -> bool:
        """End the open episode as truncated and write everything into the spool. Returns whether all of it has arrived at the daemon.

        Args:
            wait_s: seconds to wait for the daemon; 0: do not wait. The default waits up to 10 seconds, but stops at the first attempt that
                fails.

        If episodes remain in the spool, a `RecordingWarning` says so; the next recorder sends them, or `offrl spool push`.

        Raises:
            OffrlError: an episode could not be written and is lost, and no call has reported it yet. The recorder is closed nevertheless.
        """
        if not self._threads or os.getpid() != self._process:  # a forked process: threads, spool and lock belong to its parent
            return self._arrived
        atexit.unregister(self._at_exit)
        self._end(False)
        self._closing.set()
        self._threads[0].join()
        if self._sender is not None:
            self._wait_until_sent(self._sender, wait_s)
        self._stop.set()
        self._wake.set()
        if self._sender is not None:
            self._sender.hurry.set()
        for thread in self._threads[1:]:
            thread.join(LEAVE_S)
        if not any(thread.is_alive() for thread in self._threads):
            self.spool.close()  # else a silent daemon blocks the sender, and the lock goes with this process
        self._threads = []
        left = len(self.spool.ready())
        self._arrived = not left
        if left and self._sender is not None and wait_s is None:
            why = f"; {self._sender.problem.message}" if self._sender.problem is not None else ""
            warnings.warn(
                f"unsent episodes remain in the spool {self.spool.folder} ({counted(left, 'segment')}{why}); "
                f"the next recorder on it sends them, or `offrl spool push {self.spool.folder}`",
                RecordingWarning,
                stacklevel=2,
            )
        losses = list(self._segments.losses)
        self._segments.losses.clear()
        for loss in losses:
            if not loss.foreseen:
                raise loss.as_error()
        if losses:
            warnings.warn(f"{self._segments.dropped} episodes are lost: {losses[-1].error}", RecordingWarning, stacklevel=2)
        return self._arrived

    def _wait_until_sent(self, sender: Sender, wait_s: float | None) -> None:
        deadline = time.monotonic() + (CLOSE_S if wait_s is None else wait_s)
        failed = sender.failed
        self._wake.set()
        sender.hurry.set()
        while self.spool.ready() and time.monotonic() < deadline and (wait_s is not None or sender.failed == failed):
            time.sleep(TAKE_S)

    def _at_exit(self) -> None:
        """The program ends without closing the recorder: its last steps go into the spool."""
        try:
            self.close(wait_s=0.0)
        except OffrlError as error:
            warnings.warn(str(error), RecordingWarning, stacklevel=1)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except OffrlError as loss:
            if error is None:
                raise
            warnings.warn(str(loss), RecordingWarning, stacklevel=2)  # the exception that left the block says more

    def __repr__(self) -> str:
        status = self.status()
        return f"Recorder({self.spool.dataset!r}, episodes={status.episodes}, dropped={status.dropped}, waiting={status.segments_waiting})"


def _located(error: OffrlError, where: str) -> OffrlError:
    return type(error)(f"{where}: {error.message}", hint=error.hint)


def _connector(client: Client | str, key: Any) -> Callable[[], Client]:
    """Make the sending thread's own connections, which wait only briefly for a daemon that is gone."""
    if isinstance(client, Client):
        return lambda: client.again(PATIENCE_S)
    return lambda: Client(client, patience=PATIENCE_S, key=key)


def default_spool(dataset: str) -> Path:
    """The spool folder of a recorder of this dataset."""
    root = os.environ.get("OFFRL_SPOOL")
    try:
        return (Path(root) if root else Path.home() / ".local" / "share" / "offrl" / "spool") / dataset
    except RuntimeError:  # no HOME, and no entry in the list of users
        raise InvalidInput("this user has no home folder for a spool", hint="pass spool=, or set OFFRL_SPOOL") from None
