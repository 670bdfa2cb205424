"""`Job`: a job of the daemon that is followed, controlled, and whose files are downloaded."""

from __future__ import annotations

import codecs
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from offrl import download, outfile, wire
from offrl.errors import InvalidInput, JobFailed, OffrlError, from_wire
from offrl.explained import build
from offrl.job import Spec
from offrl.session import Session

LONG_POLL_S = 10.0  # how long the daemon may hold a request until the next event
EXPORTS = 5  # in a row, for one download: the newest step of a running job moves on while its policy is made
FETCH_KINDS = ("onnx", "torchscript", "checkpoint", "metrics")


class Job:
    """A job of the daemon: its ``id``, and in ``last`` the most recent `JobInfo` (None before the first)."""

    def __init__(self, session: Session, id: str, last: wire.JobInfo | None = None) -> None:
        self._session, self.id, self.last = session, id, last

    # ---------------------------------------------------------------------------------------------------------------- looking
    def info(self) -> wire.JobInfo:
        """Get everything that `offrl status JOB --json` shows."""
        self.last = self._session.request(build(wire.GetJob, job=self.id))
        _by_seed(self.last)
        return self.last

    @property
    def state(self) -> str:
        """The current state: queued, running, paused, succeeded, failed or cancelled."""
        return self.info().state

    def metrics(self) -> dict[str, dict[int, float]]:
        """Get the latest value of every metric as {name: {seed: value}}.

        Events and `info` have the same values with seeds as text; all of them accept both 0 and "0" as a key.
        """
        return {name: BySeed((int(seed), value) for seed, value in by_seed.items()) for name, by_seed in self.info().metrics.items()}

    def follow(self, cursor: int = 0) -> Iterator[wire.Event]:
        """Iterate over the job's events after number ``cursor``, then over new ones until the job has ended.

        No event is lost or repeated, even if the daemon restarts. Following a paused job waits until it resumes.
        """
        for events in self._follow(cursor, None):
            yield from events

    def wait(self, timeout: float | None = None, *, check: bool = True) -> wire.JobInfo:
        """Wait until the job has ended and return its last info.

        Raises:
            JobFailed: it failed or was cancelled (not with ``check=False``); the message gives the reason, ``error.info`` the job's info.
            TimeoutError: it has not ended within ``timeout`` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        info = self.info()
        if not info.state.ended:
            for _ in self._follow(0, end):
                pass
            info = self.info()
        if check and info.state != "succeeded":
            raise failure(info)
        return info

    def log(self, *, follow: bool = False) -> Any:
        """Get the job's log as text, or with ``follow`` as an iterator of pieces of text that ends with the job."""
        pieces = self._log(follow)
        return pieces if follow else "".join(pieces)

    # --------------------------------------------------------------------------------------------------------------- steering
    def cancel(self) -> wire.JobInfo:
        """End the job (`retry` queues it again). Raises `Conflict` if it has ended."""
        return self._control("cancel")

    def pause(self) -> wire.JobInfo:
        """Checkpoint the job and end its worker; `resume` continues it."""
        return self._control("pause")

    def resume(self, steps: int | None = None) -> wire.JobInfo:
        """Queue a paused job again; it continues from its checkpoint.

        Args:
            steps: new total number of updates; a job that has succeeded continues to it from its last checkpoint.

        Raises:
            Conflict: it runs, has failed or was cancelled, or has already made that many updates.
        """
        return self._control("resume", steps)

    def retry(self) -> wire.JobInfo:
        """Queue a failed or cancelled job again; it continues from its checkpoint if it has one.

        A job that waits for its next attempt after a crash starts that attempt now.
        """
        return self._control("retry")

    def start(self) -> wire.JobInfo:
        """Start a queued or paused job as soon as a slot is free: before all other jobs, before its start time, and while the queue is
        paused."""
        return self._control("start")

    def pin(self) -> wire.JobInfo:
        """Keep the job: until `unpin`, retention skips it and `rm` refuses to delete it."""
        return self._control("pin")

    def unpin(self) -> wire.JobInfo:
        """Undo `pin`."""
        return self._control("unpin")

    def rm(self) -> wire.JobInfo:
        """Delete an ended job with all its files and return its last info."""
        return self._control("remove")

    # --------------------------------------------------------------------------------------------------------------- fetching
    def fetch(
        self,
        path: str | os.PathLike[str] | None = None,
        kind: str = "onnx",
        *,
        seed: int | None = None,
        best: bool = False,
        step: int | None = None,
        force: bool = False,
    ) -> Path:
        """Download a file of the job, which may be running, paused or failed. Returns the file's path.

        Args:
            path: target file, or an existing folder for the file under its own name. By default ``policy.onnx``, or the own name of
                another kind. Links are followed; a pipe or a device such as ``/dev/stdout`` is written into (`offrl.outfile`).
            kind: ``onnx`` (the policy), ``torchscript`` (the policy for libtorch, ``policy.pt``), ``checkpoint`` (safetensors) or
                ``metrics`` (a zip of ``seed-S/NAME.csv``).
            seed: a trained seed; by default the first.
            best: take the step with the highest mean return among the kept evaluations.
            step: a step that has a checkpoint; by default the newest.
            force: replace a file that has different content.

        Raises:
            InvalidInput, Unknown: unknown kind, seed or step; ``path`` cannot be written.
            Conflict: the job has no checkpoint yet; ``path`` has different content and ``force`` is off.
            CheckFailed: the exported policy differs from the network it came from.
        """
        return self.fetch_artifact(path, kind, seed=seed, best=best, step=step, force=force)[0]

    def fetch_artifact(
        self,
        path: str | os.PathLike[str] | None = None,
        kind: str = "onnx",
        *,
        seed: int | None = None,
        best: bool = False,
        step: int | None = None,
        force: bool = False,
    ) -> tuple[Path, wire.Artifact]:
        """Do what `fetch` does and return the path together with the file's name, size and sha256."""
        if kind not in FETCH_KINDS:
            raise InvalidInput(f"unknown kind of file {kind!r}", hint=f"kinds: {', '.join(FETCH_KINDS)}")
        if best and step is not None:
            raise InvalidInput(f"both best and step={step} were given", hint="pass one of them")
        return self.download(build(wire.OpenArtifact, job=self.id, kind=kind, seed=seed, best=best, step=step), path, force=force)

    def download(
        self, request: wire.OpenArtifact, path: str | os.PathLike[str] | None = None, *, force: bool = False
    ) -> tuple[Path, wire.Artifact]:
        """Do what `fetch_artifact` does, for any `OpenArtifact`."""
        if path is not None and not os.path.isdir(path):
            outfile.place(path)  # before the daemon makes a policy
        artifact = self._session.request(request)
        for _ in range(EXPORTS):
            if artifact.ready:
                break
            made = Job(self._session, artifact.job)  # an export job makes the policy first
            if (info := made.wait(check=False)).state != "succeeded":
                raise own_error(info)
            artifact = self._session.request(request)
        if not artifact.ready:
            raise OffrlError(
                f"{EXPORTS} exports of job {self.id} succeeded, but the file is still missing", hint="see `offrl logs` of both jobs"
            )
        target = Path(path) if path is not None else Path(artifact.name)
        if target.is_dir():
            target = target / artifact.name
        connection = self._session.connect()  # a separate one: other threads may use the client meanwhile
        try:
            return download.receive(connection, artifact, target, force=force), artifact
        finally:
            connection.close()

    # ---------------------------------------------------------------------------------------------------------------- plumbing
    def _control(self, action: str, steps: int | None = None) -> wire.JobInfo:
        self.last = self._session.request(build(wire.ControlJob, job=self.id, action=action, steps=steps))
        return self.last

    def _follow(self, cursor: int, end: float | None) -> Iterator[list[wire.Event]]:
        """Iterate over lists of events, possibly empty, until the job has ended or the time is ``end``."""
        first = build(wire.GetEvents, job=self.id, cursor=cursor)
        connection = self._session.connect()  # a separate one: other threads may use the client meanwhile
        try:
            while True:
                left = LONG_POLL_S if end is None else max(0.0, min(LONG_POLL_S, end - time.monotonic()))
                request = wire.GetEvents(job=first.job, cursor=cursor, wait_s=left)
                part = connection.request(request, timeout=connection.timeout + left)
                cursor = part.cursor
                for event in part.events:
                    _by_seed(event)
                yield part.events
                if part.ended:
                    return
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"job {self.id} has not ended in time")
        finally:
            connection.close()

    def _log(self, follow: bool) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        offset, wait_s = 0, LONG_POLL_S if follow else 0.0
        connection = self._session.connect() if follow else self._session.connection
        try:
            while True:
                request = build(wire.ReadLog, job=self.id, offset=offset, wait_s=wait_s)
                part = connection.request(request, timeout=connection.timeout + wait_s)
                done = part.ended if follow else not part.data
                offset = part.offset
                if text := decoder.decode(part.data, final=done):
                    yield text
                if done:
                    return
        finally:
            if follow:
                connection.close()

    def __repr__(self) -> str:
        if self.last is None:
            return f"Job({self.id!r})"
        info = self.last
        parts = [info.kind if info.algorithm is None else info.algorithm, *([info.dataset] if info.dataset else []), info.state.value]
        done = f", {info.step:,} of {info.steps:,}" if info.steps else ""
        return f"Job({self.id!r}, {' '.join(parts)}{done})"


class BySeed(dict):
    """A metric's values by seed; 0 and "0" are the same key."""

    def __missing__(self, seed: Any) -> Any:
        for other in self:
            if str(other) == str(seed):
                return self[other]
        raise KeyError(seed)


def _by_seed(reply: wire.JobInfo | wire.Event) -> None:
    for name, values in reply.metrics.items():
        reply.metrics[name] = BySeed(values)


def enqueue(
    session: Session, spec: Spec, *, priority: int = 0, after: str | Job | Sequence[str | Job] = (), key: str | None = None, **when: Any
) -> Job:
    """Submit a job. ``when``: start_at or start_in_s, see `offrl.wire.Submit`."""
    needs = [job_id(needed) for needed in ([after] if isinstance(after, str | Job) else after)]
    request = build(wire.Submit, spec=spec, priority=priority, after=needs, key=key or own_key(), **when)
    return Job(session, session.request(request).job)


def own_key() -> str:
    """Make a submission key for one call, so that a lost reply does not lead to a second job."""
    return f"auto-{uuid.uuid4().hex}"


def job_id(job: str | Job) -> str:
    """Return the id of a job that is given by its id or as a `Job`."""
    return job.id if isinstance(job, Job) else job


def own_error(info: wire.JobInfo) -> OffrlError:
    """Return the error that ended a job as an instance of its class (a bad file: `InvalidInput`)."""
    if info.error:
        return from_wire(info.error.get("code", "internal"), info.error.get("message", info.reason), info.error.get("hint", ""))
    return failure(info)


def failure(info: wire.JobInfo) -> JobFailed:
    """Return the `JobFailed` of a job that did not succeed. Its exit status is 2 if the reason was bad input, as for any bad input."""
    error = info.error or {}
    why = error.get("message") or info.reason
    said = f"job {info.job} {info.state.value}" + (f": {why}" if why and why != info.state else "")
    failed = JobFailed(said, hint=error.get("hint") or f"see `offrl logs {info.job}`")
    failed.info = info
    if info.error:
        failed.exit_status = own_error(info).exit_status
    return failed
