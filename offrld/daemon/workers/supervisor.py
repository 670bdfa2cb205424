"""The supervisor: starts the workers of queued jobs, follows them, and records how each attempt ends.

Two lanes with slots of their own: a short import or export never waits behind a long training. Train jobs share cards and CPU threads
besides. The record of a worker is its events.jsonl; its stdout only says that there is something new to take over, and that it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offrl.job import MAKES_STEPS, PAUSABLE, JobState
from offrl_store.errors import OffrlError
from offrld.daemon import queue
from offrld.daemon.config import Settings
from offrld.daemon.health import machine
from offrld.daemon.logs import about
from offrld.daemon.passes import Passes, forever
from offrld.daemon.queue import datasets
from offrld.daemon.queue.database import Connection, Database
from offrld.daemon.queue.hub import Hub
from offrld.daemon.queue.job_record import Job, find
from offrld.daemon.queue.observer import Observer
from offrld.daemon.queue.outcome import Cause, Exit, cause, log_tail
from offrld.daemon.storage import housekeeping, orphans
from offrld.daemon.storage.uploads import Uploads
from offrld.daemon.workers import placement
from offrld.daemon.workers.liveness import Vital
from offrld.daemon.workers.spare import Spares
from offrld.executors.local import LocalExecutor, LocalWorker, assign, end_leftovers, leftovers, unassign, unassign_ended
from offrld.executors.oom import OomCounter
from offrld.state.folder import StateFolder

GATHER_S = 0.05  # lines that come so close together are taken over in one transaction
RETRY_S = 2.0  # before the queue is tried again where it could not be written (full disk)
CLOCK_S = 2.0  # between two looks at the clock while jobs wait for a time, or for memory
WORKER_BYTES = 600 << 20  # of a train worker, until one was measured
RESERVE = 0.1  # of the machine's memory, which no further train job is started into
HOUSEKEEPING_S = 3600.0
HOUSE_RETRY_S = 60.0
LOOK_S = 5.0  # between two looks at a running worker: whether it lives, and whether the kernel has ended processes for their memory
OOM_S = 1.0  # between the kernel's count and the end of the process that it was for
STACKS_S = 1.0  # that a hung worker has to write down where it stands
log = logging.getLogger("offrld.supervisor")


@dataclass
class Attempt:
    """One attempt at a job that runs now."""

    job: Job
    vital: Vital
    worker: LocalWorker | None = None
    place: placement.Place | None = None
    oom: OomCounter | None = None
    oom_at: float = -math.inf  # when the kernel was last seen to have ended a process for its memory
    silent: str = ""  # it was killed because it hung, and this says how
    news: asyncio.Event = field(default_factory=asyncio.Event)
    last_line: bytes = b""
    deadline: asyncio.TimerHandle | None = None
    lost: bool = False  # stopped because the daemon stops

    def line(self, line: bytes) -> None:
        """A line of the worker's stdout."""
        if line.strip() and self.vital.line(line):
            self.last_line = line
            self.news.set()


Work = Callable[[Attempt], Awaitable[Exit]]


class Supervisor:
    """``run`` until ``stop``; ``wake`` when a job may have become startable. Other methods pass messages to running workers."""

    def __init__(
        self,
        settings: Settings,
        state: StateFolder,
        database: Database,
        hub: Hub,
        executor: LocalExecutor,
        uploads: Uploads,
        passes: Passes,
    ) -> None:
        self._settings = settings
        self._state = state
        self._database = database
        self._hub = hub
        self._executor = executor
        self._uploads = uploads
        self.observer = Observer()
        self.passes = passes
        self._attempts: dict[str, Attempt] = {}
        self._busy = {"train": 0, "light": 0}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self.turns: int | None = None  # that `run` has made; None before the first
        self._spares = Spares(executor, state, settings.workers.spare, settings.workers.spare_idle_s)
        # What there is, once `run` has looked.
        self.devices = placement.Pool(placement.Inventory(settings.devices.threads or placement.threads_here()))
        # Read before this daemon starts anything, so that all of them are a former daemon's.
        self._leftovers = leftovers(state.root)
        self._largest = WORKER_BYTES  # of a train worker that was seen
        self._short = False  # jobs wait for memory

    @property
    def running(self) -> int:
        """Workers that run now."""
        return len(self._attempts)

    @property
    def spare(self) -> str | None:
        """State of the spare worker: ready, starting, or None if there is none."""
        return self._spares.state

    def wake(self) -> None:
        """Look for jobs to start."""
        self._wake.set()

    def tell(self, job: str, what: str) -> None:
        """Pass on a recorded pause or cancel; a worker that stays after its grace period is killed with its process group."""
        attempt = self._attempts.get(job)
        if attempt is None or attempt.worker is None or not what:
            return  # its worker is being started and gets what is recorded afterwards, or has just ended
        attempt.worker.send({"type": what})
        grace = self._settings.grace.cancel_s if what == "cancel" else self._settings.grace.pause_s
        self._limit(attempt, grace)

    async def prepare(self) -> None:
        """Put the state folder in order, before the first request and the first worker: both make and remove folders in it."""
        jobs, unfinished, names, _uploads = await self._database.survey(housekeeping.names_in_use)
        gone = await asyncio.to_thread(housekeeping.sweep, self._state, jobs, unfinished, names)
        self._spawn(self._delete(gone))
        await orphans.adopt_all(self._state, self._database)

    async def tell_pinned(self, dataset: str) -> None:
        """Send the worker that writes the dataset the snapshots in use: a bounded dataset evicts nothing of them."""
        for attempt in list(self._attempts.values()):
            if attempt.job.dataset == dataset and attempt.job.kind in MAKES_STEPS and attempt.worker is not None:
                attempt.worker.send({"type": "pinned", "snapshots": await self._database.read(datasets.pinned, dataset)})

    async def run(self) -> None:
        """Requeue what a former daemon left running, then start jobs as slots get free, until `stop`. Call `prepare` first."""
        await self._recover()
        chosen = self._settings.devices
        self.devices.inventory = await placement.inventory(chosen.cards, chosen.slots, chosen.memory_mb, chosen.threads)
        cards = self.devices.inventory.cards
        log.info(
            "%d CPU threads for train jobs, cards: %s",
            self.devices.inventory.threads,
            "as the workers find them" if cards is None else ", ".join(card.name for card in cards) or "none",
        )
        self._spawn(forever(self.passes, "housekeeping", self._keep_house, HOUSEKEEPING_S, min(HOUSEKEEPING_S, HOUSE_RETRY_S)))
        self._spawn(self._spares.fill())
        while not self._stopping:
            self._wake.clear()
            wait: float | None = RETRY_S
            with self.passes.one("the scheduler"):
                began = time.time()
                await self._start_jobs()
                wait = await self._until_next_start(began)
            self.turns = (self.turns or 0) + 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait)

    async def stop(self) -> None:
        """Stop all workers: they have the grace period for a checkpoint, and their jobs go back to the queue."""
        self._stopping = True
        self._wake.set()
        for attempt in self._attempts.values():
            self._release(attempt)
        closing = asyncio.get_running_loop().create_task(self._spares.close())
        deadline = self._settings.grace.stop_s + 10.0
        working = [task for task in self._tasks if task.get_name().startswith("job ")]
        if working:
            log.info("waiting for %d workers to make their checkpoint", len(working))
            await asyncio.wait(working, timeout=deadline)
        await closing
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------------------- schedule
    async def _start_jobs(self) -> None:
        train = self._settings.slots.train
        automatic = train == "auto"
        # By itself the plan of the cards and CPU threads says how many have room.
        slots = {"train": self.devices.inventory.most_jobs if train == "auto" else train, "light": self._settings.slots.light}
        self._short = False
        for lane, count in slots.items():
            while self._busy[lane] < count and not self._stopping:
                if lane == "train" and automatic and self._busy[lane] and not self._has_memory():
                    self._short = True
                    break
                fitting = _Fitting(self.devices) if lane == "train" else None
                job = await self._database.write(
                    queue.claim,
                    lane,
                    fitting,
                    longest_retry_s=self._settings.retry.max_s,
                    most=self._settings.limits.running_per_owner if lane == "train" else 0,
                )
                if job is None:
                    break
                self._begin(job, self._work, fitting.place if fitting is not None else None)

    def _has_memory(self) -> bool:
        """Whether one more train job fits beside those that run: the largest of their workers so far, again, and a reserve."""
        self._largest = max([self._largest, *(machine.resident_of(a.worker.pid) for a in self._attempts.values() if a.worker is not None)])
        free, total = machine.memory_left()
        return free - self._largest >= RESERVE * total

    async def _until_next_start(self, began: float) -> float | None:
        """Seconds until a job may start that waited for a time when this turn ``began``; None if none did.

        Not by the time now: the time of a job that comes between the claim and this look, as a clock that is set may bring it, would be
        seen by neither. Looked at again now and then: clocks are set.
        """
        at = await self._database.read(queue.next_start, began)
        if self._short:
            return CLOCK_S
        return None if at is None else min(max(at - time.time(), 0.0) + 0.01, CLOCK_S)

    def _begin(self, job: Job, work: Work, place: placement.Place | None = None) -> None:
        self._busy[job.lane] += 1
        attempt = self._attempts[job.id] = Attempt(job, Vital(self._settings.grace, loops=job.kind in PAUSABLE), place=place)
        if place is not None:
            self.devices.used[job.id] = place
        self._spawn(self._attempt(attempt, work), name=f"job {job.id}")

    async def _attempt(self, attempt: Attempt, work: Work) -> None:
        with about(attempt.job.id):
            await self._to_its_end(attempt, work)

    async def _to_its_end(self, attempt: Attempt, work: Work) -> None:
        job = attempt.job
        try:
            try:
                how = await work(attempt)
            except Exception:
                log.exception("job %s: the supervisor failed", job.id)
                how = Exit(log_line="the daemon's log holds more")
            await self._note_steps(job)
            ended = await self._finish(attempt, how)
            if attempt.worker is not None:
                self.observer.worker_ended(ended)
            await self._keep_peak(attempt)
            log.info("job %s: %s%s", job.id, ended.state, f" ({ended.reason})" if ended.reason else "")
            await self._tidy(ended)
            if ended.snapshot is not None and ended.dataset is not None:
                await self.tell_pinned(ended.dataset)
        finally:
            if attempt.deadline is not None:
                attempt.deadline.cancel()
            self._attempts.pop(job.id, None)
            self.devices.used.pop(job.id, None)
            self._busy[job.lane] -= 1
            self._spares.refill()
            self._wake.set()

    async def _work(self, attempt: Attempt) -> Exit:
        """Start the worker, follow it to its end."""
        job = attempt.job
        folder, log_file = self._state.run(job.id).path, self._state.run(job.id).log
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            began = log_file.stat().st_size if log_file.exists() else 0
            worker = self._take_spare(job, attempt)
            if worker is not None:
                status = await self._run_worker(attempt, worker)
                unassign(self._state.root, worker.name)
                # A spare that was dying as it got the job (idle processes are the OOM killer's first choice) says nothing about the job.
                if attempt.vital.heard or attempt.lost:
                    return await self._exit(attempt, status, began)
                log.warning("job %s: its spare worker was gone (status %d), another is started", job.id, status)
            worker = await self._executor.start(self._state.root, job.id, folder=folder, log=log_file, on_line=attempt.line)
        except OSError as error:
            log.error("job %s: its worker cannot be started: %s", job.id, error)
            return Exit(status=127, unstarted=f"{error.filename or 'the process'}: {error.strerror or error}")
        return await self._exit(attempt, await self._run_worker(attempt, worker), began)

    def _take_spare(self, job: Job, attempt: Attempt) -> LocalWorker | None:
        """A spare worker that can do the job, noted as its worker; `OSError`."""
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
        """Give the worker its job and wait for its end; the return code."""
        job = attempt.job
        if attempt.worker is None:  # the replacement of a dead spare worker is not a second start
            self.observer.worker_started(job)
        attempt.worker = worker
        attempt.oom = OomCounter(worker.pid)
        log.info("job %s: attempt %d, worker process %d", job.id, job.attempt, worker.pid)
        beside = [asyncio.get_running_loop().create_task(work(attempt)) for work in (self._follow, self._watch)]
        try:
            message = self._start_message(attempt)
            if job.kind in MAKES_STEPS and job.dataset is not None:
                message["pinned"] = await self._database.read(datasets.pinned, job.dataset)
            worker.send(message)
            if self._stopping:
                self._release(attempt)
            recorded = (await self._database.read(find, job.id)).intent  # a pause or cancel that came while the worker was started
            if recorded in ("pause", "cancel"):
                self.tell(job.id, recorded)
            return await worker.wait()
        finally:
            worker.kill()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    def _start_message(self, attempt: Attempt) -> dict[str, Any]:
        job, device = attempt.job, str(attempt.job.spec.get("device", "cpu"))
        chosen = None
        if attempt.place is not None and attempt.place.card is not None:
            chosen = "cuda"  # the worker sees its card alone
        elif device == "auto" and self.devices.inventory.cards is not None:
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
            "environment": self._settings.named.environment() if job.kind == "import" else self.devices.environment(attempt.place, device),
            "keep_checkpoints": self._settings.keep.checkpoints,
            "keep_free_bytes": self._settings.uploads.keep_free_bytes,
            "quota_bytes": self._settings.disk.quota_bytes,
            "confine": self._settings.workers.confine,
            "import_memory_mb": self._settings.workers.import_memory_mb,
            "stop_s": 0.9 * self._settings.grace.stop_s,  # so that the worker still says in its log what has become of its checkpoint
        }

    async def _exit(self, attempt: Attempt, status: int, began: int) -> Exit:
        """Describe how the worker ended; ``began``: size of its log at the start of the attempt."""
        # An older count was for another process: this worker lived on.
        oom = attempt.oom is not None and (attempt.oom.grown() or time.monotonic() - attempt.oom_at < OOM_S)
        line, tail = await asyncio.to_thread(log_tail, self._state.run(attempt.job.id).log, began)
        if attempt.lost and status == -signal.SIGKILL:
            log.warning("job %s: no checkpoint within %g s: the last one serves", attempt.job.id, self._settings.grace.stop_s)
        return Exit(status, attempt.lost, attempt.last_line, line, tail, oom, attempt.silent)

    async def _watch(self, attempt: Attempt) -> None:
        """Kill a worker that has been silent for too long, and keep an eye on the kernel's out-of-memory killer."""
        assert attempt.worker is not None and attempt.oom is not None
        while (left := attempt.vital.left_s) > 0:
            await asyncio.sleep(min(LOOK_S, left + 0.01))
            with self.passes.one("the watch over workers"):
                if attempt.oom.grown():
                    attempt.oom_at = time.monotonic()
        if attempt.lost or attempt.deadline is not None:
            return  # it is being ended anyway
        try:
            step = (await self._database.read(find, attempt.job.id)).step
        except OffrlError:
            step = attempt.job.step
        attempt.silent = attempt.vital.silence(step)
        log.warning("job %s: its worker hangs (%s) and is killed", attempt.job.id, attempt.silent)
        attempt.worker.dump_stacks()
        await asyncio.sleep(STACKS_S)
        attempt.worker.kill()

    async def _follow(self, attempt: Attempt) -> None:
        """Take over the worker's events as they come."""
        job = attempt.job
        started = False
        while True:
            await attempt.news.wait()
            if not started and not attempt.vital.busy:
                started = True
                self._spares.refill()  # the job's first update is done: loading the next spare no longer slows it down
            await asyncio.sleep(GATHER_S)
            attempt.news.clear()
            try:
                if await self._database.write(queue.progress, job.id, job.attempt, self._state.run(job.id).events):
                    attempt.news.set()
            except Exception as error:  # the lines stay in the file and are taken over later
                expected = isinstance(error, OffrlError | OSError)
                log.error("job %s: its progress cannot be recorded: %s", job.id, error, exc_info=None if expected else error)
                await asyncio.sleep(RETRY_S)
                attempt.news.set()

    async def _finish(self, attempt: Attempt, how: Exit) -> Job:
        """Record the end; on a full disk, as soon as there is space."""
        job = attempt.job
        record: Path | None = self._state.run(job.id).events
        while True:
            try:
                return await self._database.write(queue.finish, job.id, job.attempt, record, how, self._settings.retry)
            except (OffrlError, OSError) as error:
                log.error("job %s: its end cannot be recorded yet: %s", job.id, error)
            except Exception:  # its own record is what cannot be taken over: it ends without
                log.exception("job %s: its record cannot be taken over", job.id)
                record = None
            await asyncio.sleep(RETRY_S)

    async def _keep_peak(self, attempt: Attempt) -> None:
        if attempt.vital.device_bytes:
            try:
                await self._database.write(queue.keep_peak, attempt.job.id, attempt.vital.device_bytes)
            except OffrlError as error:  # a later attempt is placed by the guess once more
                log.warning("job %s: its use of the card cannot be recorded: %s", attempt.job.id, error)

    async def _note_steps(self, job: Job) -> None:
        """Add the steps that a dead worker did not report."""
        try:
            await orphans.note(self._state, self._database, job)
        except Exception:  # they are looked for again when the daemon starts
            log.exception("job %s: what it has left cannot be looked at", job.id)

    async def _tidy(self, job: Job) -> None:
        """Delete what an import no longer needs. The upload of one that crashed is kept for a retry until it expires."""
        if job.kind != "import" or job.state == JobState.QUEUED:
            return
        known = job.dataset in await self._database.read(datasets.known)
        await asyncio.to_thread(housekeeping.after_import, self._state, job, dataset_known=known)
        crashed = job.error is not None and cause(job.error) != Cause.BAD_INPUT
        if job.spec.get("upload") and job.state.ended and not crashed:
            await asyncio.to_thread(self._uploads.remove, job.spec["upload"])

    def _limit(self, attempt: Attempt, seconds: float) -> None:
        """Kill the worker if it is still there after ``seconds``."""
        if attempt.deadline is not None:
            attempt.deadline.cancel()
        assert attempt.worker is not None
        attempt.deadline = asyncio.get_running_loop().call_later(seconds, attempt.worker.kill)

    def _release(self, attempt: Attempt) -> None:
        """Close the control pipe: the worker stops, as the daemon does."""
        attempt.lost = True
        if attempt.worker is not None:
            attempt.worker.close_stdin()
            self._limit(attempt, self._settings.grace.stop_s)

    # -------------------------------------------------------------------------------------------------------------- recover
    async def _recover(self) -> None:
        """Return the jobs that a former daemon left running to the queue, once their old workers are gone."""
        leftover, self._leftovers = self._leftovers, {}
        jobs = await self._database.read(queue.running)
        running = {job.id for job in jobs}
        for job in jobs:
            pids = leftover.get(job.id, [])
            log.info("job %s: was running when the daemon ended%s", job.id, f"; ending its processes {pids}" if pids else "")

            async def old(attempt: Attempt, pids: list[int] = pids) -> Exit:
                if pids:
                    await end_leftovers(self._state.root, attempt.job.id, pids, self._settings.grace.stop_s)
                return Exit(lost=True)

            self._begin(job, old)
        for name, pids in leftover.items():
            if name not in running:
                self._spawn(end_leftovers(self._state.root, name, pids, self._settings.grace.stop_s))

    async def _delete(self, folders: list[Path]) -> None:
        for folder in folders:
            await asyncio.to_thread(housekeeping.delete, folder)

    async def _keep_house(self) -> None:
        """Delete forgotten uploads, and notes about workers that are gone."""
        await asyncio.to_thread(unassign_ended, self._state.root)
        _jobs, _unfinished, _names, uploads = await self._database.survey(housekeeping.names_in_use)
        for upload in await asyncio.to_thread(self._uploads.expired, self._settings.uploads.expire_hours * 3600):
            if upload not in uploads:
                log.info("upload %s has expired", upload)
                await asyncio.to_thread(self._uploads.remove, upload)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str = "") -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the supervisor failed", exc_info=task.exception())


class _Fitting:
    """`queue.claim` calls it with the waiting train jobs in order; ``place`` is that of the job that it accepted."""

    def __init__(self, pool: placement.Pool) -> None:
        self._cards, self._plan = bool(pool.inventory.cards), pool.plan()
        self.place: placement.Place | None = None

    def __call__(self, db: Connection, job: Job) -> bool:
        if self._plan.exhausted:
            raise queue.Full
        self.place = self._plan.offer(placement.need(job.spec, self._cards, *queue.sizes(db, job)))
        return self.place is not None
