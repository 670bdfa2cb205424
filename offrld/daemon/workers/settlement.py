"""The end of an attempt: records what has become of the job, and deletes what it leaves behind."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from offrl.job import JobState
from offrl_store.errors import OffrlError
from offrld.daemon import queue
from offrld.daemon.config import Settings
from offrld.daemon.queue import datasets
from offrld.daemon.queue.database import Database
from offrld.daemon.queue.job_record import Job
from offrld.daemon.queue.observer import Observer
from offrld.daemon.queue.outcome import Cause, Exit, cause
from offrld.daemon.storage import housekeeping, orphans
from offrld.daemon.storage.uploads import Uploads
from offrld.daemon.workers.attempt import RETRY_S, Attempt
from offrld.state.folder import StateFolder

log = logging.getLogger("offrld.supervisor")


class Settlement:
    """Settles attempts whose worker is gone."""

    def __init__(self, settings: Settings, state: StateFolder, database: Database, uploads: Uploads, observer: Observer) -> None:
        self._settings, self._state, self._database, self._uploads, self._observer = settings, state, database, uploads, observer

    async def settle(self, attempt: Attempt, worker_exit: Exit) -> Job:
        """Record the end of the attempt and tidy up; return the job with its new state."""
        await self._note_steps(attempt.job)
        job = await self._finish(attempt.job, worker_exit)
        if attempt.worker is not None:
            self._observer.worker_ended(job)
        await self._keep_peak(attempt)
        log.info("job %s: %s%s", job.id, job.state, f" ({job.reason})" if job.reason else "")
        await self._tidy(job)
        return job

    async def _note_steps(self, job: Job) -> None:
        """Add the steps that a dead worker did not report."""
        try:
            await orphans.note(self._state, self._database, job)
        except Exception:  # the next start of the daemon looks for them again
            log.exception("job %s: the steps that it left cannot be read", job.id)

    async def _finish(self, job: Job, worker_exit: Exit) -> Job:
        """Record the end; on a full disk, as soon as there is space."""
        record: Path | None = self._state.run(job.id).events
        while True:
            try:
                return await self._database.write(queue.finish, job.id, job.attempt, record, worker_exit, self._settings.retry)
            except (OffrlError, OSError) as error:
                log.error("job %s: its end cannot be recorded yet: %s", job.id, error)
            except Exception:  # the worker's own record cannot be read: record the end without it
                log.exception("job %s: its record cannot be read", job.id)
                record = None
            await asyncio.sleep(RETRY_S)

    async def _keep_peak(self, attempt: Attempt) -> None:
        if attempt.liveness.device_bytes:
            try:
                await self._database.write(queue.keep_peak, attempt.job.id, attempt.liveness.device_bytes)
            except OffrlError as error:  # the next attempt is placed by the estimate again
                log.warning("job %s: its peak use of the card cannot be recorded: %s", attempt.job.id, error)

    async def _tidy(self, job: Job) -> None:
        """Delete what an import no longer needs. The upload of one that crashed is kept for a retry until it expires."""
        if job.kind != "import" or job.state == JobState.QUEUED:
            return
        dataset_known = job.dataset in await self._database.read(datasets.known)
        await asyncio.to_thread(housekeeping.after_import, self._state, job, dataset_known=dataset_known)
        crashed = job.error is not None and cause(job.error) != Cause.BAD_INPUT
        if job.spec.get("upload") and job.state.ended and not crashed:
            await asyncio.to_thread(self._uploads.remove, job.spec["upload"])
