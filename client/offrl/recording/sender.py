"""Sending a spool: one segment after the other, each in one import job of the daemon, exactly once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offrl import upload, wire
from offrl.client import Client
from offrl.errors import Conflict, InternalError, NotAllowed, OffrlError, Unknown
from offrl.job import ImportSpec, JobState
from offrl.jobs import own_error
from offrl.recording.spool import Spool

POLL_S = 0.2
LEAST_S, MOST_S = 1.0, 30.0  # between two attempts; each failure doubles the pause
PATIENCE_S = 2.0  # of a connection with a daemon that goes away; the spool can wait longer


class Sender:
    """Sends the complete segments of a spool.

    Args:
        connect: makes a client; raises `OffrlError` if no daemon answers.
        stop: ends the sending when set; unsent segments stay in the spool.
    """

    def __init__(self, spool: Spool, connect: Callable[[], Client], stop: threading.Event) -> None:
        self._spool, self._connect, self._stop = spool, connect, stop
        self._client: Client | None = None
        self.problem: OffrlError | None = None  # of the last attempt; None if it succeeded
        self.sent = 0  # segments
        self.failed = 0  # attempts
        self.hurry = threading.Event()  # set: the next attempt starts at once

    def send_ready(self) -> None:
        """Send all complete segments in order. Raises the `OffrlError` of the first one that cannot be sent."""
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
        """Send whenever ``wake`` is set, and again after a failure, until ``stop`` is set."""
        pause = LEAST_S
        while not self._stop.is_set():
            try:
                self.send_ready()
                pause = LEAST_S
                wake.wait()
                wake.clear()
            except _Stopped:
                break
            except OffrlError:  # of any kind: a later attempt may succeed
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
        client = self._client
        attempt = self._spool.sending
        if attempt is None or attempt["segment"] != number:
            attempt = {"segment": number, "try": 0, "upload": None, "begun": None, "append": False, "once": True}
        if attempt["upload"] is None:
            attempt = self._uploaded(client, attempt, path)
        spec = ImportSpec(
            dataset=self._spool.dataset,
            upload=attempt["upload"],
            format="store",
            append=attempt["append"],
            once=attempt.get("once", False),  # missing in the notes of an older version, whose job may exist without it
        )
        key = f"spool-{self._spool.id}-{number}-{attempt['try']}"
        try:
            job = client.request(wire.Submit(spec=spec, key=key)).job
        except OffrlError as error:
            if error.exit_status == 2:  # no job was made: the dataset was created or removed meanwhile, or the upload is gone
                self._spool.note_sending({**attempt, "upload": None, "begun": None, "try": attempt["try"] + 1, "once": True})
            raise
        info = self._wait(client, job)
        if info.state != JobState.SUCCEEDED:  # the dataset holds nothing of it: the next attempt is another job
            self._spool.note_sending({**attempt, "upload": None, "begun": None, "try": attempt["try"] + 1})
            raise own_error(info)
        self._spool.note_sent(number)
        self.sent += 1

    def _uploaded(self, client: Client, attempt: dict[str, Any], path: Path) -> dict[str, Any]:
        """Upload a segment; returns the attempt with its upload, which the spool has noted."""
        try:
            client.datasets.show(self._spool.dataset)
            append = True
        except Unknown:
            append = False
        files = upload.scan(path)
        begun = attempt.get("begun")
        if begun is None:  # noted before it starts, so that an interrupted attempt continues this upload and leaves no other one behind
            attempt = {**attempt, "begun": (begun := upload.new_id())}
            self._spool.note_sending(attempt)
        connection = client.connect()
        try:
            upload.send(connection, files, self._progress, upload=begun)
        except (Conflict, NotAllowed):  # the upload belongs to somebody else by now, or was used: the next attempt makes a new one
            self._spool.note_sending({**attempt, "begun": None})
            raise
        finally:
            connection.close()
        attempt = {**attempt, "upload": begun, "begun": None, "append": append}
        self._spool.note_sending(attempt)
        return attempt

    def _progress(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _Stopped("sending was stopped")

    def _wait(self, client: Client, job: str) -> wire.JobInfo:
        while not (info := client.request(wire.GetJob(job=job))).state.ended:
            if self._stop.wait(POLL_S):
                raise _Stopped("sending was stopped")
        return info


class _Stopped(OffrlError):
    """The sending was stopped within a segment; the next sender continues it."""


def push(folder: str | os.PathLike[str], client: Client) -> tuple[str, int]:
    """Send the segments left in a spool; returns its dataset and the number of segments sent.

    Raises the `OffrlError` of the first segment that cannot be sent.
    """
    with Spool(folder) as spool:
        sender = Sender(spool, client.again, threading.Event())
        sender.send_ready()
        return spool.dataset, sender.sent
