"""Sending a spool: one segment after the other, each in one import job of the daemon, exactly once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from offrl import upload, wire
from offrl.client import Client
from offrl.errors import Conflict, InternalError, NotAllowed, OffrlError, Unknown
from offrl.job import ImportSpec, JobState
from offrl.jobs import own_error
from offrl.recording.spool import Spool

POLL_S = 0.2
LEAST_S, MOST_S = 1.0, 30.0  # between two attempts, doubled from the one to the other
PATIENCE_S = 2.0  # for a daemon that goes away: the spool waits better than a connection does


class Sender:
    """Sends what is ready.

    Args:
        connect: gives a client, or raises `OffrlError` where nobody is there.
        stop: set when the sending is to end; what has not arrived stays in the spool.
    """

    def __init__(self, spool: Spool, connect: Callable[[], Client], stop: threading.Event) -> None:
        self._spool, self._connect, self._stop = spool, connect, stop
        self._client: Client | None = None
        self.problem: OffrlError | None = None  # of the last attempt; None while all is well
        self.sent = 0  # segments
        self.failed = 0  # attempts
        self.hurry = threading.Event()  # set: the next attempt waits for nothing

    def send_ready(self) -> None:
        """Sends all that is ready now, in order. Raises the `OffrlError` of the first that cannot be sent now."""
        try:
            for number, path in self._spool.ready():
                self._send(number, path)
            self.problem = None
        except _Stopped:
            self._disconnect()
            raise
        except OffrlError as error:
            self.problem = error
            self._disconnect()
            raise
        except Exception as error:
            self.problem = InternalError(f"sending failed: {type(error).__name__}: {error}")
            self._disconnect()
            raise self.problem from error

    def run(self, wake: threading.Event) -> None:
        """Sends whenever ``wake`` is set, and again after a failure, until told to stop."""
        pause = LEAST_S
        while not self._stop.is_set():
            try:
                self.send_ready()
                pause = LEAST_S
                wake.wait()
                wake.clear()
            except _Stopped:
                break
            except OffrlError:  # of whatever kind: what cannot be sent now may be later
                self.failed += 1
                self.hurry.wait(pause)
                self.hurry.clear()
                pause = min(MOST_S, 2 * pause)
        self._disconnect()

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _send(self, number: int, path: Path) -> None:
        if self._client is None:
            self._client = self._connect()
        attempt = self._spool.sending
        if attempt is None or attempt["segment"] != number:
            attempt = {"segment": number, "try": 0, "upload": None, "begun": None, "append": False, "once": True}
        if attempt["upload"] is None:
            attempt = self._uploaded(attempt, path)
        spec = ImportSpec(
            dataset=self._spool.dataset,
            upload=attempt["upload"],
            format="store",
            append=attempt["append"],
            once=attempt.get("once", False),  # not in the notes of an older version, whose job may be there without it
        )
        key = f"spool-{self._spool.id}-{number}-{attempt['try']}"
        try:
            job = self._client.request(wire.Submit(spec=spec, key=key)).job
        except OffrlError as error:
            if error.exit_status == 2:  # no job came of it: the dataset was made or removed meanwhile, or the upload has gone
                self._spool.note_sending({**attempt, "upload": None, "begun": None, "try": attempt["try"] + 1, "once": True})
            raise
        info = self._wait(job)
        if info.state != JobState.SUCCEEDED:  # nothing of it is in the dataset: the next attempt is another job
            self._spool.note_sending({**attempt, "upload": None, "begun": None, "try": attempt["try"] + 1})
            raise own_error(info)
        self._spool.note_sent(number)
        self.sent += 1

    def _uploaded(self, attempt: dict, path: Path) -> dict:
        try:
            self._client.datasets.show(self._spool.dataset)
            append = True
        except Unknown:
            append = False
        files = upload.scan(path)
        begun = attempt.get("begun")
        if begun is None:  # noted before it begins: an attempt that is cut off goes on with it, and leaves no other one behind
            attempt = {**attempt, "begun": (begun := upload.new_id())}
            self._spool.note_sending(attempt)
        connection = self._client.connect()
        try:
            upload.send(connection, files, self._progress, upload=begun)
        except (Conflict, NotAllowed):  # it is another's by now, or was used up: the next attempt takes another one
            self._spool.note_sending({**attempt, "begun": None})
            raise
        finally:
            connection.close()
        attempt = {**attempt, "upload": begun, "begun": None, "append": append}
        self._spool.note_sending(attempt)
        return attempt

    def _progress(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _Stopped("told to stop")

    def _wait(self, job: str) -> wire.JobInfo:
        while not (info := self._client.request(wire.GetJob(job=job))).state.ended:
            if self._stop.wait(POLL_S):
                raise _Stopped("told to stop")
        return info


class _Stopped(OffrlError):
    """Told to stop while a segment is under way; the next sender goes on with it."""


def push(folder: str | os.PathLike[str], client: Client) -> tuple[str, int]:
    """Sends what is left in a spool; gives its dataset, and how many segments were sent. Raises the `OffrlError` of one that cannot be."""
    with Spool(folder) as spool:
        sender = Sender(spool, client.again, threading.Event())
        sender.send_ready()
        return spool.dataset, sender.sent
