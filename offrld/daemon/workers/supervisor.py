"""The supervisor: decides which queued job starts when and where, and stops the workers when the daemon stops.

There are two lanes with slots of their own, so that a short import or export never waits behind a long training. Train jobs also share
cards and CPU threads. `attempt` runs one attempt at a job, `settlement` records how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from offrl.job import MAKES_STEPS, PAUSABLE
from offrld.daemon import queue
from offrld.daemon.config import Settings
from offrld.daemon.health import machine
from offrld.daemon.logs import about
from offrld.daemon.passes import Passes, forever
from offrld.daemon.queue.database import Connection, Database
from offrld.daemon.queue.job_record import Job
from offrld.daemon.queue.observer import Observer
from offrld.daemon.queue.outcome import Exit
from offrld.daemon.storage import housekeeping, orphans
from offrld.daemon.storage.uploads import Uploads
from offrld.daemon.workers import placement
from offrld.daemon.workers.attempt import RETRY_S, Attempt, AttemptRunner
from offrld.daemon.workers.liveness import Liveness
from offrld.daemon.workers.settlement import Settlement
from offrld.daemon.workers.spare import Spares
from offrld.executors.local import LocalExecutor, end_leftovers, leftovers, unassign_ended
from offrld.state.folder import StateFolder

CLOCK_S = 2.0  # between two looks at the clock while jobs wait for a time or for memory
WORKER_BYTES = 600 << 20  # of a train worker, until one was measured
RESERVE = 0.1  # share of the machine's memory that must stay free when a train job starts
HOUSEKEEPING_S = 3600.0
HOUSE_RETRY_S = 60.0
log = logging.getLogger("offrld.supervisor")

Work = Callable[[Attempt], Awaitable[Exit]]


class Supervisor:
    """``run`` until ``stop``; ``wake`` when a job may have become startable. The other methods pass messages to running workers."""

    def __init__(
        self,
        settings: Settings,
        state: StateFolder,
        database: Database,
        executor: LocalExecutor,
        uploads: Uploads,
        observer: Observer,
        passes: Passes,
    ) -> None:
        self._settings, self._state, self._database, self._uploads, self._passes = settings, state, database, uploads, passes
        self._attempts: dict[str, Attempt] = {}
        self._busy = {"train": 0, "light": 0}  # lane -> attempts
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self.turns: int | None = None  # turns that `run` has made; None before the first
        self._spares = Spares(executor, state, settings.workers.spare, settings.workers.spare_idle_s)
        # `run` fills in the cards.
        self.devices = placement.Pool(placement.Inventory(settings.devices.threads or placement.threads_here()))
        self._runner = AttemptRunner(settings, state, database, executor, self._spares, self.devices, observer, passes)
        self._settlement = Settlement(settings, state, database, uploads, observer)
        # Read before this daemon starts a worker, so that all of them belong to an earlier daemon.
        self._leftovers = leftovers(state.root)
        self._largest = WORKER_BYTES  # largest memory of a train worker so far
        self._short = False  # jobs wait for memory

    @property
    def running(self) -> int:
        """Number of attempts that run now."""
        return len(self._attempts)

    @property
    def spare(self) -> str | None:
        """State of the spare worker: ready, starting, or None if there is none."""
        return self._spares.state

    def wake(self) -> None:
        """Look for jobs to start."""
        self._wake.set()

    def signal(self, job: str, intent: str) -> None:
        """Pass a recorded pause or cancel to the job's worker; `Attempt.signal` kills its process group after the grace period."""
        attempt = self._attempts.get(job)
        if attempt is not None:
            attempt.signal(intent)

    async def send_pinned(self, dataset: str) -> None:
        """Send the worker that writes the dataset the snapshots in use: a bounded dataset evicts none of their episodes."""
        for attempt in list(self._attempts.values()):
            if attempt.job.dataset == dataset and attempt.job.kind in MAKES_STEPS:
                await self._runner.send_pinned(attempt)

    async def prepare(self) -> None:
        """Put the state folder in order, before the first request and the first worker: both create and remove folders in it."""
        jobs, unfinished, names, _uploads = await self._database.survey(housekeeping.names_in_use)
        gone = await asyncio.to_thread(housekeeping.sweep, self._state, jobs, unfinished, names)
        self._spawn(_delete(gone))
        await orphans.adopt_all(self._state, self._database)

    async def run(self) -> None:
        """Requeue what an earlier daemon left running, then start jobs as slots get free, until `stop`. Call `prepare` first."""
        await self._recover()
        chosen = self._settings.devices
        self.devices.inventory = await placement.inventory(chosen.cards, chosen.slots, chosen.memory_mb, chosen.threads)
        cards = self.devices.inventory.cards
        log.info(
            "%d CPU threads for training jobs, GPUs: %s",
            self.devices.inventory.threads,
            "not detected, workers choose" if cards is None else ", ".join(card.name for card in cards) or "none",
        )
        self._spawn(forever(self._passes, "housekeeping", self._keep_house, HOUSEKEEPING_S, min(HOUSEKEEPING_S, HOUSE_RETRY_S)))
        self._spawn(self._spares.fill())
        while not self._stopping:
            self._wake.clear()
            wait: float | None = RETRY_S
            with self._passes.one("the scheduler"):
                began = time.time()
                await self._start_jobs()
                wait = await self._until_next_start(began)
            self.turns = (self.turns or 0) + 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait)

    async def stop(self) -> None:
        """Stop all workers: they have the grace period for a checkpoint, and their jobs return to the queue."""
        self._stopping = True
        self._wake.set()
        for attempt in self._attempts.values():
            attempt.release()
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
        # With "auto", the plan of the cards and CPU threads decides how many have room.
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
                self._start(job, self._runner.run, fitting.place if fitting is not None else None)

    def _has_memory(self) -> bool:
        """Whether memory for one more train job is free: as much as the largest worker so far has used, and a reserve."""
        workers = [attempt.worker for attempt in self._attempts.values() if attempt.worker is not None]
        self._largest = max([self._largest, *(machine.resident_of(worker.pid) for worker in workers)])
        free, total = machine.memory_left()
        return free - self._largest >= RESERVE * total

    async def _until_next_start(self, since: float) -> float | None:
        """Return the seconds until the next scheduled start, counted from the clock at the start of this turn; None if there is none.

        Counting from the time now would miss a job whose time comes between the claim and this look. Looks again every `CLOCK_S`,
        because somebody may set the clock.
        """
        at = await self._database.read(queue.next_start, since)
        if self._short:
            return CLOCK_S
        return None if at is None else min(max(at - time.time(), 0.0) + 0.01, CLOCK_S)

    def _start(self, job: Job, work: Work, place: placement.Place | None = None) -> None:
        self._busy[job.lane] += 1
        grace = self._settings.grace
        attempt = Attempt(job, grace, Liveness(grace, loops=job.kind in PAUSABLE), place, lost=self._stopping)
        self._attempts[job.id] = attempt
        if place is not None:
            self.devices.used[job.id] = place
        self._spawn(self._attempt(attempt, work), name=f"job {job.id}")

    async def _attempt(self, attempt: Attempt, work: Work) -> None:
        """Run an attempt, settle it, and free its slot and place."""
        job = attempt.job
        with about(job.id):
            try:
                try:
                    worker_exit = await work(attempt)
                except Exception:
                    log.exception("job %s: the supervisor failed", job.id)
                    worker_exit = Exit(log_line="the daemon's log holds more")
                job = await self._settlement.settle(attempt, worker_exit)
                if job.snapshot is not None and job.dataset is not None:
                    await self.send_pinned(job.dataset)
            finally:
                attempt.cancel_kill()
                self._attempts.pop(job.id, None)
                self.devices.used.pop(job.id, None)
                self._busy[job.lane] -= 1
                self._spares.refill()
                self._wake.set()

    # -------------------------------------------------------------------------------------------------------------- recover
    async def _recover(self) -> None:
        """Return the jobs that an earlier daemon left running to the queue, once their old workers are gone."""
        leftover, self._leftovers = self._leftovers, {}
        jobs = await self._database.read(queue.running)
        running = {job.id for job in jobs}
        for job in jobs:
            pids = leftover.get(job.id, [])
            log.info("job %s: was running when the daemon ended%s", job.id, f"; ending its processes {pids}" if pids else "")

            async def end_old_worker(attempt: Attempt, pids: list[int] = pids) -> Exit:
                if pids:
                    await end_leftovers(self._state.root, attempt.job.id, pids, self._settings.grace.stop_s)
                return Exit(lost=True)

            self._start(job, end_old_worker)
        for name, pids in leftover.items():
            if name not in running:
                self._spawn(end_leftovers(self._state.root, name, pids, self._settings.grace.stop_s))

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
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the supervisor failed", exc_info=task.exception())


class _Fitting:
    """The ``fits`` of `queue.claim` for train jobs. ``place``: where the accepted job runs."""

    def __init__(self, pool: placement.Pool) -> None:
        self._cards, self._plan = bool(pool.inventory.cards), pool.plan()
        self.place: placement.Place | None = None

    def __call__(self, db: Connection, job: Job) -> bool:
        if self._plan.exhausted:
            raise queue.Full
        self.place = self._plan.offer(placement.need(job.spec, self._cards, *queue.sizes(db, job)))
        return self.place is not None


async def _delete(folders: list[Path]) -> None:
    for folder in folders:
        await asyncio.to_thread(housekeeping.delete, folder)
