"""Clients under whose feet the service is killed: each a thread with a connection of its own, noting what was acknowledged to it.

An actor asks until it gets an answer, as a robot would; every reply stands in the `Ledger` from then on, and is compared with
the service when the storm is over. What breaks a promise at once (a byte less than was acknowledged, a hole in the events) is a problem
at once.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
import traceback
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workload import Kind, source

from offrl import wire
from offrl.connection import Connection
from offrl.errors import Conflict, NoDaemon, Unknown
from offrl.job import ImportSpec

BASE, STREAM = "base", "stream"  # datasets: what jobs train on, what is appended to
CHUNK = 256  # bytes: small, so that many uploads are under way when the daemon dies
ENDLESS = 10**9  # updates of jobs that end by being cancelled only
KILLED = {"worker_killed"}  # codes of errors that a killed worker leaves; "conflict" besides, where a job waited for such a one


@dataclass
class Ledger:
    """What was acknowledged. Threads share it; each entry is written once, by one of them."""

    jobs: dict[str, tuple[str, Kind]] = field(default_factory=dict)  # key -> job, what it computes
    repeated: int = 0  # submissions under a key that was there
    imports: dict[str, str] = field(default_factory=dict)  # key -> job
    datasets: dict[str, int] = field(default_factory=dict)  # name -> number of its source
    appended: dict[int, str] = field(default_factory=dict)  # number of the source -> job that has succeeded
    append_asked: set[int] = field(default_factory=set)  # finished uploads whose append may or may not be done
    cancelled: dict[str, int] = field(default_factory=dict)  # job -> attempt when that was acknowledged
    removed_jobs: set[str] = field(default_factory=set)
    removed_datasets: set[str] = field(default_factory=set)
    seen: dict[str, list[wire.Event]] = field(default_factory=dict)  # job -> events that a follower was given
    resumed_uploads: int = 0  # that went on in the middle
    retried: int = 0  # jobs queued again by hand after their worker was killed
    problems: list[str] = field(default_factory=list)


class Storm:
    """What the actors share: where the daemon is, when they are to stop, the ledger."""

    def __init__(self, url: str, folder: Path, seed: int, kinds: tuple[Kind, ...], outstanding: int = 4) -> None:
        self.url, self.folder, self.seed, self.kinds, self.outstanding = url, folder, seed, kinds, outstanding
        self.over, self.ledger, self.lock = threading.Event(), Ledger(), threading.Lock()
        self.numbers = itertools.count(1000 * (seed + 1))


class Actor(threading.Thread):
    """``act`` again and again until the storm is over; what is begun is brought to its end."""

    def __init__(self, storm: Storm, number: int = 0) -> None:
        super().__init__(name=f"{type(self).__name__}-{number}", daemon=True)
        self.storm, self.ledger = storm, storm.ledger
        self.random = random.Random(f"{storm.seed} {self.name}")
        self.connection: Connection | None = None

    def run(self) -> None:
        try:
            while not self.storm.over.is_set():
                self.act()
        except Exception:
            self.problem(traceback.format_exc(limit=-4))
        finally:
            if self.connection is not None:
                self.connection.close()

    def act(self) -> None:
        raise NotImplementedError

    def problem(self, text: str) -> None:
        self.ledger.problems.append(f"{self.name}: {text}")

    def ask(self, request: wire.Request) -> Any:
        """Return the daemon's answer or error; repeat the request while the daemon is unavailable."""
        while True:
            try:
                return self.once(request)
            except NoDaemon:
                time.sleep(0.02)

    def once(self, request: wire.Request) -> Any:
        """Send one request; raise `NoDaemon` if the daemon is unavailable or disappears."""
        if self.connection is None:
            self.connection = Connection(self.storm.url, timeout=60.0, patience=0.0)
        return self.connection.request(request, again=False)

    def pause(self, seconds: float) -> None:
        self.storm.over.wait(seconds)


class Trainer(Actor):
    """Submits jobs whose weights are known, some of them twice under one key, and follows one of them to see every event once."""

    def act(self) -> None:
        unfinished = sum(1 for info in self.ask(wire.ListJobs(kind="train")).jobs if not info.state.ended and info.steps < ENDLESS)
        if unfinished >= self.storm.outstanding:
            self.pause(0.1)
            return
        kind = self.random.choice(self.storm.kinds)
        key = f"{self.name}-{next(self.storm.numbers)}"
        request = wire.Submit(spec=kind.spec(BASE), key=key, priority=self.random.choice((0, 0, 1)))
        job = self.ask(request).job
        with self.storm.lock:
            self.ledger.jobs[key] = (job, kind)
        if self.random.random() < 0.3:
            again = self.ask(request)
            self.ledger.repeated += 1
            if (again.job, again.created) != (job, False):
                self.problem(f"the key {key} gave job {job}, and then {again}")


class Follower(Actor):
    """Follow the newest train job across every crash of the daemon."""

    def act(self) -> None:
        with self.storm.lock:
            waiting = [job for job, _ in self.ledger.jobs.values() if job not in self.ledger.seen]
        if not waiting:
            self.pause(0.1)
            return
        job, cursor = waiting[-1], 0
        events = self.ledger.seen.setdefault(job, [])
        while not self.storm.over.is_set():
            part = self.ask(wire.GetEvents(job=job, cursor=cursor, wait_s=1.0))
            for event in part.events:
                if event.n != cursor + 1:
                    self.problem(f"job {job}: event {event.n} came after {cursor}")
                cursor = event.n
            events += part.events
            if part.ended:
                return


class Canceller(Actor):
    """Submit jobs that would never end, and cancel each at a random moment."""

    def act(self) -> None:
        kind = self.random.choice(self.storm.kinds)
        key = f"{self.name}-{next(self.storm.numbers)}"
        job = self.ask(wire.Submit(spec=kind.spec(BASE, ENDLESS), key=key, priority=self.random.choice((0, 5)))).job
        if self.random.random() < 0.5:
            self.wait_until_it_runs(job)
        self.pause(self.random.uniform(0.0, 2.0))
        info = self.ask(wire.ControlJob(job=job, action="cancel"))
        self.ledger.cancelled[job] = info.attempt
        self.pause(self.random.uniform(0.0, 3.0))

    def wait_until_it_runs(self, job: str) -> None:
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline and not self.storm.over.is_set() and self.ask(wire.GetJob(job=job)).step == 0:
            self.pause(0.1)


class Uploader(Actor):
    """Upload sources in small chunks and import or append them; after a break, continue from the daemon's offset."""

    def act(self) -> None:
        number = next(self.storm.numbers)
        append = self.random.random() < 0.5
        name = STREAM if append else f"data-{number}"
        path = source(self.storm.folder, number, 2 if append else 8)
        upload = f"up-{self.storm.seed}-{number}"
        self.send(upload, path)
        if append:
            self.ledger.append_asked.add(number)
        request = wire.Submit(spec=ImportSpec(dataset=name, upload=upload, append=append), key=f"import-{number}")
        job = self.ask(request).job
        self.ledger.imports[f"import-{number}"] = job
        if self.ended(job) != "succeeded":
            self.problem(f"import {job}: {self.ask(wire.GetJob(job=job)).reason}")
            return
        if append:
            self.ledger.appended[number] = job
        else:
            self.ask(wire.GetDataset(name=name))
            with self.storm.lock:
                self.ledger.datasets[name] = number

    def send(self, upload: str, path: Path) -> None:
        data = path.read_bytes()
        entry = wire.FileEntry(path=path.name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        acknowledged = 0
        while True:
            try:
                received = self.once(wire.OpenUpload(upload=upload, files=[entry])).received[path.name]
                if received < acknowledged:
                    self.problem(f"upload {upload}: {acknowledged} bytes were acknowledged, {received} are there")
                if acknowledged:
                    self.ledger.resumed_uploads += 1
                offset = received
                while offset < len(data):
                    part = data[offset : offset + CHUNK]
                    request = wire.WriteChunk(upload=upload, path=path.name, offset=offset, data=part, crc32=zlib.crc32(part))
                    acknowledged = offset = self.once(request).received
                    self.pause(0.005)
                self.once(wire.FinishUpload(upload=upload))
                return
            except NoDaemon:
                time.sleep(0.02)

    def ended(self, job: str) -> str:
        """Wait for the end; one whose worker was killed does not count, somebody queues it again."""
        while True:
            info = self.ask(wire.GetJob(job=job))
            if info.state.ended and (info.error or {}).get("code") not in KILLED:
                return info.state
            time.sleep(0.05)


class Remover(Actor):
    """Remove unused datasets and cancelled jobs."""

    def act(self) -> None:
        self.pause(self.random.uniform(0.5, 3.0))
        with self.storm.lock:
            names = [name for name in self.ledger.datasets if name not in self.ledger.removed_datasets]
        if names and self.random.random() < 0.5:
            name = self.random.choice(names)
            self.ledger.removed_datasets.add(name)  # before it is asked: an answer may be lost
            self.gone(wire.RemoveDataset(name=name), wire.GetDataset(name=name))
        jobs = [job for job in list(self.ledger.cancelled) if job not in self.ledger.removed_jobs]
        if jobs:
            job = self.random.choice(jobs)
            self.ledger.removed_jobs.add(job)
            self.gone(wire.ControlJob(job=job, action="remove"), wire.GetJob(job=job))

    def gone(self, remove: wire.Request, look: wire.Request) -> None:
        """Ask until it is acknowledged; then it must not be there."""
        while True:
            try:
                self.once(remove)
                break
            except NoDaemon:
                time.sleep(0.02)
            except Unknown:  # an answer was lost, and it is gone
                break
            except Conflict:  # a cancelled job whose worker has not ended yet
                time.sleep(0.05)
        try:
            found = self.ask(look)
        except Unknown:
            return
        self.problem(f"{remove} was acknowledged, but there is {found}")


class Shepherd(Actor):
    """Queues jobs again whose worker was killed (unless somebody cancelled them), and reports all others that failed."""

    def act(self) -> None:
        for info in self.ask(wire.ListJobs(kind="all")).jobs:
            if info.state != "failed" or info.job in self.ledger.cancelled:
                continue
            code = (info.error or {}).get("code")
            if code in KILLED:
                self.retry(info.job)
            else:
                self.problem(f"job {info.job} ({info.kind}): {info.reason}; {(info.error or {}).get('log', '')[-1500:]}")
                self.storm.over.set()
        self.pause(0.2)

    def retry(self, job: str) -> None:
        try:
            self.ask(wire.ControlJob(job=job, action="retry"))
            self.ledger.retried += 1
        except Conflict:  # the answer to the same question was lost, or somebody cancelled it
            pass
        except Unknown:
            if job not in self.ledger.removed_jobs:
                raise
