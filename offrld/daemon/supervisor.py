"""Starts the workers of queued jobs, follows them, and decides what becomes of a job when its worker ends.

Two lanes with slots of their own: a short import or export never waits behind a long training. The record of a worker is its
events.jsonl; its stdout only says that there is something new to take over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from offrl.job import JobState
from offrl_store.errors import OffrlError
from offrld.daemon import datasets, housekeeping, queue
from offrld.daemon.catalog import last_line
from offrld.daemon.config import Settings
from offrld.daemon.database import Database
from offrld.daemon.hub import Hub
from offrld.daemon.logs import about
from offrld.daemon.observer import Observer
from offrld.daemon.records import Job, find
from offrld.daemon.state import State
from offrld.daemon.supervision import Exit
from offrld.daemon.uploads import Uploads
from offrld.executors.local import LocalExecutor, LocalWorker, end_leftovers, leftovers

GATHER_S = 0.05      # lines that come so close together are taken over in one transaction
RETRY_S = 2.0        # before the queue is tried again where it could not be written (full disk)
HOUSEKEEPING_S = 3600.0
log = logging.getLogger("offrld.supervisor")


@dataclass
class Attempt:
    """One attempt at a job that runs now."""

    job: Job
    worker: LocalWorker | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    last_line: bytes = b""
    deadline: asyncio.TimerHandle | None = None
    lost: bool = False          # stopped because the daemon stops

    def line(self, line: bytes) -> None:
        """A line of the worker's stdout."""
        if line.strip():
            self.last_line = line
            self.news.set()


Work = Callable[[Attempt], Awaitable[Exit]]


class Supervisor:
    """``run`` until ``stop``; ``wake`` when a job may have become startable; ``tell`` a running worker to pause or cancel."""

    def __init__(self, settings: Settings, state: State, database: Database, hub: Hub, executor: LocalExecutor, uploads: Uploads) -> None:
        self._settings = settings
        self._state = state
        self._database = database
        self._hub = hub
        self._executor = executor
        self._uploads = uploads
        self.observer = Observer()
        self._attempts: dict[str, Attempt] = {}
        self._busy = {"train": 0, "light": 0}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        # Looked for before anything is started here, so that all that is found is a former daemon's.
        self._leftovers = leftovers(state.root)

    @property
    def running(self) -> int:
        """Workers that run now."""
        return len(self._attempts)

    @property
    def spare(self) -> str | None:
        """How the worker that is kept warm is: None, because none is kept."""
        return None

    def wake(self) -> None:
        """Look for jobs to start."""
        self._wake.set()

    def tell(self, job: str, what: str) -> None:
        """Pass on a recorded pause or cancel; a worker that has not ended after its grace is killed with its whole process group."""
        attempt = self._attempts.get(job)
        if attempt is None or attempt.worker is None or not what:
            return  # its worker is being started and gets what is recorded afterwards, or has just ended
        attempt.worker.send({"type": what})
        grace = self._settings.grace.cancel_s if what == "cancel" else self._settings.grace.pause_s
        self._limit(attempt, grace)

    async def run(self) -> None:
        """Put back what a former daemon left running, then start jobs as slots get free, until `stop`."""
        await self._recover()
        self._spawn(self._keep_house())
        while not self._stopping:
            self._wake.clear()
            try:
                await self._start_jobs()
            except OffrlError as error:
                log.error("the queue cannot be used: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), RETRY_S)
                self._wake.set()
            await self._wake.wait()

    async def stop(self) -> None:
        """Stop all workers: they have the grace to make a checkpoint, and their jobs go back to the queue."""
        self._stopping = True
        self._wake.set()
        for attempt in self._attempts.values():
            self._release(attempt)
        deadline = self._settings.grace.stop_s + 10.0
        working = [task for task in self._tasks if task.get_name().startswith("job ")]
        if working:
            log.info("waiting for %d workers to make their checkpoint", len(working))
            await asyncio.wait(working, timeout=deadline)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------------------- schedule
    async def _start_jobs(self) -> None:
        slots = {"train": self._settings.slots.train, "light": self._settings.slots.light}
        for lane, count in slots.items():
            while self._busy[lane] < count and not self._stopping:
                job = await self._database.write(queue.claim, lane)
                if job is None:
                    break
                self._begin(job, self._work)

    def _begin(self, job: Job, work: Work) -> None:
        self._busy[job.lane] += 1
        attempt = self._attempts[job.id] = Attempt(job)
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
            ended = await self._finish(attempt, how)
            if attempt.worker is not None:
                self.observer.worker_ended(ended)
            log.info("job %s: %s%s", job.id, ended.state, f" ({ended.reason})" if ended.reason else "")
            await self._tidy(ended)
        finally:
            if attempt.deadline is not None:
                attempt.deadline.cancel()
            self._attempts.pop(job.id, None)
            self._busy[job.lane] -= 1
            self._wake.set()

    async def _work(self, attempt: Attempt) -> Exit:
        """Start the worker, follow it to its end."""
        job = attempt.job
        folder, log_file = self._state.job(job.id), self._state.log(job.id)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            worker = await self._executor.start(self._state.root, job.id, folder=folder, log=log_file, on_line=attempt.line)
        except OSError as error:
            log.error("job %s: its worker cannot be started: %s", job.id, error)
            return Exit(status=127, log_line=str(error))
        attempt.worker = worker
        self.observer.worker_started(job)
        log.info("job %s: attempt %d, worker process %d", job.id, job.attempt, worker.pid)
        following = asyncio.get_running_loop().create_task(self._follow(attempt))
        try:
            worker.send({
                "type": "start", "job": job.id, "attempt": job.attempt, "state_dir": str(self._state.root), "spec": job.spec,
                "snapshot": job.snapshot, "import_roots": [str(root) for root in self._settings.import_roots],
            })  # fmt: skip
            if self._stopping:
                self._release(attempt)
            recorded = (await self._database.read(find, job.id)).intent  # a pause or cancel that came while the worker was started
            if recorded in ("pause", "cancel"):
                self.tell(job.id, recorded)
            status = await worker.wait()
        finally:
            worker.kill()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        log_line = await asyncio.to_thread(last_line, log_file)
        return Exit(status=status, lost=attempt.lost, last_line=attempt.last_line, log_line=log_line)

    async def _follow(self, attempt: Attempt) -> None:
        """Take over what the worker writes, as it comes."""
        job = attempt.job
        while True:
            await attempt.news.wait()
            await asyncio.sleep(GATHER_S)
            attempt.news.clear()
            try:
                if await self._database.write(queue.progress, job.id, job.attempt, self._state.events(job.id)):
                    attempt.news.set()
            except (OffrlError, OSError) as error:  # the lines stay in the file and are taken over later
                log.error("job %s: its progress cannot be recorded: %s", job.id, error)
                await asyncio.sleep(RETRY_S)
                attempt.news.set()

    async def _finish(self, attempt: Attempt, how: Exit) -> Job:
        """Record the end; where the disk is full, as soon as it is not."""
        job = attempt.job
        while True:
            try:
                return await self._database.write(queue.finish, job.id, job.attempt, self._state.events(job.id), how)
            except (OffrlError, OSError) as error:
                log.error("job %s: its end cannot be recorded yet: %s", job.id, error)
                await asyncio.sleep(RETRY_S)

    async def _tidy(self, job: Job) -> None:
        """What an import no longer needs. The upload of one that crashed is kept for a retry until it expires."""
        if job.kind != "import" or job.state == JobState.QUEUED:
            return
        known = job.dataset in await self._database.read(datasets.known)
        await asyncio.to_thread(housekeeping.after_import, self._state, job, dataset_known=known)
        crashed = job.error is not None and job.error.get("code") in ("worker_crashed", "internal", "disk_full", "out_of_memory")
        if job.spec.get("upload") and job.state.ended and not crashed:
            await asyncio.to_thread(self._uploads.remove, job.spec["upload"])

    def _limit(self, attempt: Attempt, seconds: float) -> None:
        """Kill the worker if it is still there after so long."""
        if attempt.deadline is not None:
            attempt.deadline.cancel()
        assert attempt.worker is not None
        attempt.deadline = asyncio.get_running_loop().call_later(seconds, attempt.worker.kill)

    def _release(self, attempt: Attempt) -> None:
        """The daemon stops: close the control pipe, which tells the worker so."""
        attempt.lost = True
        if attempt.worker is not None:
            attempt.worker.close_stdin()
            self._limit(attempt, self._settings.grace.stop_s)

    # -------------------------------------------------------------------------------------------------------------- recover
    async def _recover(self) -> None:
        """Jobs that were running when a former daemon ended go back to the queue, once their old workers are gone."""
        found, self._leftovers = self._leftovers, {}
        jobs = await self._database.read(queue.running)
        running = {job.id for job in jobs}
        for job in jobs:
            pids = found.get(job.id, [])
            log.info("job %s: was running when the daemon ended%s", job.id, f"; ending its processes {pids}" if pids else "")

            async def old(attempt: Attempt, pids: list[int] = pids) -> Exit:
                if pids:
                    await end_leftovers(self._state.root, attempt.job.id, pids, self._settings.grace.stop_s)
                return Exit(lost=True)

            self._begin(job, old)
        for name, pids in found.items():
            if name not in running:
                self._spawn(end_leftovers(self._state.root, name, pids, self._settings.grace.stop_s))
        jobs_known, unfinished, names, _uploads = await self._database.read(housekeeping.names_in_use)
        await asyncio.to_thread(housekeeping.sweep, self._state, jobs_known, unfinished, names)

    async def _keep_house(self) -> None:
        """Delete forgotten uploads, now and then."""
        while True:
            _jobs, _unfinished, _names, uploads = await self._database.read(housekeeping.names_in_use)
            for upload in await asyncio.to_thread(self._uploads.expired, self._settings.uploads.expire_hours * 3600):
                if upload not in uploads:
                    log.info("upload %s has expired", upload)
                    await asyncio.to_thread(self._uploads.remove, upload)
            await asyncio.sleep(HOUSEKEEPING_S)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str = "") -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the supervisor failed", exc_info=task.exception())
