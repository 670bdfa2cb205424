"""Removal of a job or a dataset: row and folder go together, so that a daemon that dies in between finds both again, or neither.

One removal at a time, and none while a backup is being put together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from offrld.daemon import queue
from offrld.daemon.access import roles
from offrld.daemon.access.caller import Caller
from offrld.daemon.queue import datasets
from offrld.daemon.queue.database import Connection, Database
from offrld.daemon.queue.job_record import Job
from offrld.daemon.storage import housekeeping
from offrld.daemon.storage.uploads import Uploads
from offrld.state.folder import StateFolder

T = TypeVar("T")


class Removal:
    """Deletes jobs and datasets of one state folder. While you hold ``lock``, nothing is deleted."""

    def __init__(self, state: StateFolder, database: Database, uploads: Uploads) -> None:
        self._state, self._database, self._uploads = state, database, uploads
        self.lock = asyncio.Lock()

    async def job(self, job: str) -> Job:
        """Delete an ended job with all its files; return it. Raises `Unknown`, and `Conflict` naming what needs it."""
        removed = await self._both(self._state.run(job).path, lambda db: queue.remove(db, job))
        await asyncio.to_thread(housekeeping.forget_run, self._state, job)
        await self.purge()
        if removed.kind == "import" and removed.spec.get("upload"):
            await asyncio.to_thread(self._uploads.remove, removed.spec["upload"])
        return removed

    async def purge(self) -> None:
        """Delete the events of removed jobs in small parts, so that other writes come in between."""
        while await self._database.write(queue.purge):
            await asyncio.sleep(0)

    async def dataset(self, name: str, caller: Caller) -> None:
        """Delete a dataset for ``caller``. Raises `Unknown`, `NotAllowed`, and `Conflict` naming the jobs that use it."""

        def forget(db: Connection) -> None:
            roles.check_dataset(db, name, caller)
            datasets.remove(db, name)

        await self._both(self._state.datasets / name, forget)

    async def _both(self, folder: Path, forget: Callable[[Connection], T]) -> T:
        aside: list[Path | None] = []

        def work(db: Connection) -> T:
            result = forget(db)
            aside.append(housekeeping.set_aside(folder))
            return result

        async with self.lock:
            try:
                result = await self._database.write(work)
            except BaseException:
                for path in aside:
                    await asyncio.to_thread(housekeeping.put_back, path)
                raise
        for path in aside:
            await asyncio.to_thread(housekeeping.delete, path)
        return result
