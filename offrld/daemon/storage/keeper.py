"""Retention at work: deletes old jobs, from time to time and for `offrl prune`, and watches the quota of the state folder."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any

from offrl.errors import DiskFull
from offrl.wire import PrunedJob
from offrl_store.errors import OffrlError
from offrld import disk_usage
from offrld.daemon.access.audit import Audit
from offrld.daemon.access.caller import current
from offrld.daemon.config import Settings
from offrld.daemon.passes import Passes, forever
from offrld.daemon.queue.database import Database
from offrld.daemon.storage import retention
from offrld.daemon.storage.removal import Removal
from offrld.daemon.storage.uploads import Uploads
from offrld.state.folder import StateFolder

LOOK_S = 60.0  # between two looks
FRESH_S = 5.0  # longest age of a measurement of the state folder near the quota; otherwise LOOK_S
FAR = 0.9  # share of the quota below which an older measurement is enough
BATCH = 200  # jobs deleted in one go
KNOWN_JOBS = 4_000  # jobs, 0.1 kB each
log = logging.getLogger("offrld.keeper")


class Keeper:
    """``run`` until it is cancelled; ``prune`` at once; ``check_room`` before something comes in."""

    def __init__(
        self, settings: Settings, state: StateFolder, database: Database, uploads: Uploads, removal: Removal, audit: Audit, passes: Passes
    ) -> None:
        self._passes = passes
        self._settings, self._state, self._database = settings, state, database
        self._uploads, self._removal, self._audit = uploads, removal, audit
        self._used: tuple[float, int] | None = None  # when it was measured, bytes
        self._measuring = asyncio.Lock()
        self._began = time.time(), time.monotonic()
        self._last_event: dict[str, float] = {}  # job -> monotonic time of its last event; the latest `KNOWN_JOBS`

    def note_events(self, jobs: Iterable[str]) -> None:
        """Note that these jobs have new events; their age then does not depend on the machine's clock."""
        for job in jobs:
            self._last_event.pop(job, None)
            self._last_event[job] = time.monotonic()
        while len(self._last_event) > KNOWN_JOBS:
            del self._last_event[next(iter(self._last_event))]

    async def run(self) -> None:
        """Delete old jobs every `LOOK_S` seconds."""
        await forever(self._passes, "retention", self._prune_all, LOOK_S)

    async def prune(self, jobs: int, days: float, *, dry_run: bool, limit: int = BATCH) -> tuple[list[PrunedJob], bool]:
        """Delete, or only list, the jobs that these limits do not keep (see `retention.expired`); return them, and whether more remain."""
        expired, more = await self._database.read(retention.expired, jobs, days, limit, self._now(), self._since(days))
        pruned = []
        for candidate in expired:
            job = candidate.job
            size = await asyncio.to_thread(disk_usage.usage, self._state.run(job.id).path)
            if not dry_run:
                entry: dict[str, Any] = {"job": job.id, "kind": job.kind, "state": str(job.state), "bytes": size, "why": candidate.why}
                await self._audit.record(current.get(), "retention", **entry)  # first: a daemon that dies now leaves a trace
                try:
                    await self._removal.job(job.id)
                except OffrlError as error:  # it was pinned, inherited or removed in the meantime
                    await self._audit.record(current.get(), "retention", outcome=error.code, job=job.id)
                    log.info("job %s is not deleted by retention: %s", job.id, error)
                    continue
                log.info("job %s: deleted by retention, %s (%s, %d bytes)", job.id, candidate.why, job.state, size)
            pruned.append(
                PrunedJob(
                    job=job.id,
                    kind=job.kind,
                    state=job.state,
                    algorithm=job.spec.get("algorithm"),
                    dataset=job.dataset,
                    finished_at=job.finished_at,
                    bytes=size,
                    why=candidate.why,
                )
            )
        return pruned, more

    def _since(self, days: float) -> set[str]:
        """Return the jobs that had an event in the last ``days``."""
        oldest = time.monotonic() - days * retention.DAY_S
        return {job for job, at in self._last_event.items() if at >= oldest}

    def _now(self) -> float:
        """Return the time, advanced since the start of the daemon by the monotonic clock at most: a clock that jumps ahead ages no job."""
        wall, steady = self._began
        return min(time.time(), wall + time.monotonic() - steady)

    async def used(self, fresh_s: float = FRESH_S) -> int:
        """Return the bytes of the state folder and those still to come by uploads, measured at most ``fresh_s`` seconds ago."""
        measured = await self._measured(fresh_s)
        return measured + (await asyncio.to_thread(self._uploads.outstanding))[1]

    async def _measured(self, fresh_s: float) -> int:
        async with self._measuring:
            if self._used is None or time.monotonic() - self._used[0] > fresh_s:
                measured = await asyncio.to_thread(disk_usage.usage, self._state.root)
                self._used = (time.monotonic(), measured)
            return self._used[1]

    async def check_room(self, wanted: int = 0) -> None:
        """Raise `DiskFull` if the state folder would exceed its quota even after retention has deleted what it can."""
        quota = self._settings.disk.quota_bytes
        if not quota:
            return
        # Far from the quota an older measurement is enough; it counts bytes of uploads twice rather than not at all.
        most = await self._measured(LOOK_S) + (await asyncio.to_thread(self._uploads.outstanding))[0]
        if most + wanted <= FAR * quota or await self.used() + wanted <= quota:
            return
        with contextlib.suppress(OffrlError):  # then there is no room
            await self._prune_all()
        used = await self.used(0.0)
        if used + wanted > quota:
            more = f" and {wanted} more are wanted" if wanted else ""
            raise DiskFull(
                f"the state folder holds {used} bytes{more}, disk.quota_bytes = {quota} are allowed",
                hint="remove jobs (`offrl rm`, `offrl prune`) or datasets (`offrl datasets rm`), or raise the quota in offrld.toml",
            )

    async def _prune_all(self) -> None:
        await self._removal.purge()  # left by a daemon that died during a removal
        keep = self._settings.keep
        if keep.jobs or keep.days:
            pruned, more = await self.prune(keep.jobs, keep.days, dry_run=False)
            while more and pruned:
                pruned, more = await self.prune(keep.jobs, keep.days, dry_run=False)
