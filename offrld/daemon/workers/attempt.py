"""One attempt at a job: starts its worker, gives it the job, watches it, and ends it if it must.

The worker's record is its events.jsonl. Its stdout only announces that the record has new lines, and that the worker is alive.
A cancel, a pause, a stop of the daemon and a hang all end in `LocalWorker.kill`, which kills the worker's process group.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from offrl.job import MAKES_STEPS
from offrl_store.errors import OffrlError
from offrld.daemon import queue
from offrld.daemon.config import Grace, Settings
from offrld.daemon.passes import Passes
from offrld.daemon.queue import datasets
from offrld.daemon.queue.database import Database
from offrld.daemon.queue.job_record import Job, find
from offrld.daemon.queue.observer import Observer
from offrld.daemon.queue.outcome import Exit, log_tail
from offrld.daemon.workers.liveness import Liveness
from offrld.daemon.workers.placement import Place, Pool
from offrld.daemon.workers.spare import Spares
from offrld.executors.local import LocalExecutor, LocalWorker, assign, unassign
from offrld.executors.oom import OomCounter
from offrld.state.folder import StateFolder

GATHER_S = 0.05  # lines that arrive within this time are recorded in one transaction
RETRY_S = 2.0  # pause after a failed write to the queue (full disk)
LOOK_S = 5.0  # between two looks at a running worker: does it live, and has the OOM killer ended one of its processes?
OOM_S = 1.0  # longest time between the kernel's OOM count and the end of the process that it counted
STACKS_S = 1.0  # time for a hung worker to write its stacks into its log
log = logging.getLogger("offrld.supervisor")


@dataclass
class Attempt:
    """One attempt at a job that runs now."""

    job: Job
    grace: Grace
    liveness: Liveness
    place: Place | None = None
    lost: bool = False  # the daemon stops, so the end of the worker says nothing about the job
    worker: LocalWorker | None = None
    oom: OomCounter | None = None
    oom_at: float = -math.inf  # monotonic time at which the kernel's OOM count was last seen to grow
    silent: str = ""  # why the worker was killed as hung; "" if it was not
    news: asyncio.Event = field(default_factory=asyncio.Event)
    last_line: bytes = b""
    killing: asyncio.TimerHandle | None = None  # kills the worker when its grace period is over

    def line(self, line: bytes) -> None:
        """Take a line of the worker's stdout."""
        if line.strip() and self.liveness.line(line):
            self.last_line = line
            self.news.set()

    def signal(self, intent: str) -> None:
        """Send the worker a recorded pause or cancel; kill its process group if it outlives its grace period.

        Does nothing without a worker: it is being started and gets the recorded intent afterwards, or has just ended.
        """
        if self.worker is not None and intent:
            self.worker.send({"type": intent})
            self.kill_after(self.grace.cancel_s if intent == "cancel" else self.grace.pause_s)

    def release(self) -> None:
        """Close the worker's control pipe because the daemon stops: the worker makes a checkpoint and ends."""
        self.lost = True
        if self.worker is not None:
            self.worker.close_stdin()
            self.kill_after(self.grace.stop_s)

    def kill_after(self, seconds: float) -> None:
        """Kill the worker's process group unless the worker ends within ``seconds``."""
        assert self.worker is not None
        self.cancel_kill()
        self.killing = asyncio.get_running_loop().call_later(seconds, self.worker.kill)

    def cancel_kill(self) -> None:
        """Take a `kill_after` back."""
        if self.killing is not None:
            self.killing.cancel()


class AttemptRunner:
    """Runs attempts, each from the start of its worker to the worker's exit."""

    def __init__(
        self,
        settings: Settings,
        state: StateFolder,
        database: Database,
        executor: LocalExecutor,
        spares: Spares,
        devices: Pool,
        observer: Observer,
        passes: Passes,
    ) -> None:
        self._settings, self._state, self._database, self._executor = settings, state, database, executor
        self._spares, self._devices, self._observer, self._passes = spares, devices, observer, passes

    async def run(self, attempt: Attempt) -> Exit:
        """Start the worker, follow it to its exit, and describe that exit."""
        job = attempt.job
        folder, log_file = self._state.run(job.id).path, self._state.run(job.id).log
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            log_start = log_file.stat().st_size if log_file.exists() else 0
            worker = self._take_spare(attempt)
            if worker is not None:
                status = await self._run_worker(attempt, worker)
                unassign(self._state.root, worker.name)
                # If a spare was dying as it got the job (idle processes are the OOM killer's first choice), the job is not to blame.
                if attempt.liveness.heard or attempt.lost:
                    return await self._exit(attempt, status, log_start)
                log.warning("job %s: its spare worker was gone (status %d), another is started", job.id, status)
            worker = await self._executor.start(self._state.root, job.id, folder=folder, log=log_file, on_line=attempt.line)
        except OSError as error:
            log.error("job %s: its worker cannot be started: %s", job.id, error)
            return Exit(status=127, unstarted=f"{error.filename or 'the process'}: {error.strerror or error}")
        return await self._exit(attempt, await self._run_worker(attempt, worker), log_start)

    async def send_pinned(self, attempt: Attempt) -> None:
        """Send the worker the snapshots of its dataset that are in use: a bounded dataset evicts none of their episodes."""
        if attempt.worker is not None:
            attempt.worker.send({"type": "pinned", "snapshots": await self._pinned(attempt.job)})

    async def _pinned(self, job: Job) -> list[str]:
        return await self._database.read(datasets.pinned, str(job.dataset))

    def _take_spare(self, attempt: Attempt) -> LocalWorker | None:
        """Assign the job to a spare worker that can do it; None if there is none. Raises `OSError`."""
        job = attempt.job
        worker = self._spares.take() if Spares.suits(job.kind, job.spec) else None
        if worker is not None:
            try:
                assign(self._state.root, worker.name, job.id)
            except OSError:
                worker.kill()
                raise
            worker.listen(attempt.line)
        return worker

    async def _run_worker(self, attempt: Attempt, worker: LocalWorker) -> int:
        """Give the worker its job and wait for its end; return its exit status."""
        job = attempt.job
        if attempt.worker is None:  # the replacement of a dead spare worker is not a second start
            self._observer.worker_started(job)
        attempt.worker = worker
        attempt.oom = OomCounter(worker.pid)
        log.info("job %s: attempt %d, worker process %d", job.id, job.attempt, worker.pid)
        companions = [asyncio.get_running_loop().create_task(work(attempt)) for work in (self._follow, self._watch)]
        try:
            message = self._start_message(attempt)
            if job.kind in MAKES_STEPS and job.dataset is not None:
                message["pinned"] = await self._pinned(job)
            worker.send(message)
            if attempt.lost:
                attempt.release()
            intent = (await self._database.read(find, job.id)).intent  # a pause or cancel that came while the worker was started
            if intent in ("pause", "cancel"):
                attempt.signal(intent)
            return await worker.wait()
        finally:
            worker.kill()
            for task in companions:
                task.cancel()
            await asyncio.gather(*companions, return_exceptions=True)

    def _start_message(self, attempt: Attempt) -> dict[str, Any]:
        job, device = attempt.job, str(attempt.job.spec.get("device", "cpu"))
        chosen = None
        if attempt.place is not None and attempt.place.card is not None:
            chosen = "cuda"  # the worker sees its card alone
        elif device == "auto" and self._devices.inventory.cards is not None:
            chosen = "cpu"
        return {
            "type": "start",
            "job": job.id,
            "attempt": job.attempt,
            "state_dir": str(self._state.root),
            "spec": job.spec,
            "snapshot": job.snapshot,
            "import_roots": [str(root) for root in self._settings.import_roots],
            "folder": str(self._state.run(job.id).path),
            "log": str(self._state.run(job.id).log),
            "device": chosen,
            "environment": self._settings.named.environment() if job.kind == "import" else self._devices.environment(attempt.place, device),
            "keep_checkpoints": self._settings.keep.checkpoints,
            "keep_free_bytes": self._settings.uploads.keep_free_bytes,
            "quota_bytes": self._settings.disk.quota_bytes,
            "confine": self._settings.workers.confine,
            "import_memory_mb": self._settings.workers.import_memory_mb,
            "stop_s": 0.9 * self._settings.grace.stop_s,  # leaves the worker time to log whether its checkpoint was written
        }

    async def _exit(self, attempt: Attempt, status: int, log_start: int) -> Exit:
        """Describe how the worker ended. ``log_start``: size of its log at the start of the attempt, in bytes."""
        # An older OOM count was for another process: this worker survived it.
        oom = attempt.oom is not None and (attempt.oom.grown() or time.monotonic() - attempt.oom_at < OOM_S)
        line, tail = await asyncio.to_thread(log_tail, self._state.run(attempt.job.id).log, log_start)
        if attempt.lost and status == -signal.SIGKILL:
            log.warning("job %s: no checkpoint within %g s: it continues from the last one", attempt.job.id, attempt.grace.stop_s)
        return Exit(status, attempt.lost, attempt.last_line, line, tail, oom, attempt.silent)

    async def _watch(self, attempt: Attempt) -> None:
        """Kill the worker's process group if the worker is silent for too long; note when the kernel's OOM killer was at work."""
        assert attempt.worker is not None and attempt.oom is not None
        while (left := attempt.liveness.left_s) > 0:
            await asyncio.sleep(min(LOOK_S, left + 0.01))
            with self._passes.one("the watch over workers"):
                if attempt.oom.grown():
                    attempt.oom_at = time.monotonic()
        if attempt.lost or attempt.killing is not None:
            return  # it is being ended anyway
        try:
            step = (await self._database.read(find, attempt.job.id)).step
        except OffrlError:
            step = attempt.job.step
        attempt.silent = attempt.liveness.silence(step)
        log.warning("job %s: its worker hangs (%s) and is killed", attempt.job.id, attempt.silent)
        attempt.worker.dump_stacks()
        await asyncio.sleep(STACKS_S)
        attempt.worker.kill()

    async def _follow(self, attempt: Attempt) -> None:
        """Record the worker's events as they come."""
        job = attempt.job
        started = False
        while True:
            await attempt.news.wait()
            if not started and not attempt.liveness.busy:
                started = True
                self._spares.refill()  # the job's first update is done: loading the next spare no longer slows it down
            await asyncio.sleep(GATHER_S)
            attempt.news.clear()
            try:
                if await self._database.write(queue.progress, job.id, job.attempt, self._state.run(job.id).events):
                    attempt.news.set()
            except Exception as error:  # the lines stay in the file and are recorded later
                expected = isinstance(error, OffrlError | OSError)
                log.error("job %s: its progress cannot be recorded: %s", job.id, error, exc_info=None if expected else error)
                await asyncio.sleep(RETRY_S)
                attempt.news.set()
