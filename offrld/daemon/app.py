"""The parts of the running daemon in one place, for the request handlers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import offrl
from offrl import wire
from offrld.daemon.access import changes
from offrld.daemon.access.audit import Audit
from offrld.daemon.access.caller import Caller, current
from offrld.daemon.config import Settings, Sources
from offrld.daemon.health.machine import Machine
from offrld.daemon.passes import Passes
from offrld.daemon.queue.database import Database
from offrld.daemon.queue.hub import Hub
from offrld.daemon.queue.observer import Observer
from offrld.daemon.queue.views.job_list import Listing
from offrld.daemon.storage.keeper import Keeper
from offrld.daemon.storage.removal import Removal
from offrld.daemon.storage.uploads import Uploads
from offrld.daemon.workers.catalog import Catalog
from offrld.daemon.workers.supervisor import Supervisor
from offrld.executors.local import LocalExecutor
from offrld.state.folder import StateFolder


class App:
    """Everything that a handler may use. The state folder must be prepared and locked."""

    def __init__(
        self, settings: Settings, executor: LocalExecutor, observer: Observer | None = None, sources: Sources | None = None
    ) -> None:
        self.settings = settings
        self.sources = sources or Sources()
        self.observer = observer or Observer()
        self.state = StateFolder(settings.state_dir)
        self.started = time.monotonic()
        self.version = version()
        self.hub = Hub()
        self.passes = Passes()
        self.log = Audit(self.state.audit, max_bytes=settings.audit.max_bytes, keep=settings.audit.keep)
        self.uploads = Uploads(
            self.state.uploads,
            limit=settings.uploads.open,
            limit_per_owner=settings.uploads.open_per_owner,
            keep_free=settings.uploads.keep_free_bytes,
        )
        self.database = Database(self.state.database, self._changed)
        self.listing = Listing()
        self.catalog = Catalog(self.state, executor)
        self.removal = Removal(self.state, self.database, self.uploads)
        self.keeper = Keeper(settings, self.state, self.database, self.uploads, self.removal, self.log, self.passes)
        self.supervisor = Supervisor(settings, self.state, self.database, executor, self.uploads, self.observer, self.passes)
        self.machine = Machine(self.state.root)
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def caller(self) -> Caller:
        """Return the caller of the current request; outside of a request, the daemon itself."""
        return current.get()

    def audit(self, action: str, *, outcome: str = "ok", **what: Any) -> asyncio.Future[None]:
        """Write a line to the audit log in the caller's name. Await it if the act must not be acknowledged before the line is durable.

        The server records requests with `record`; this is for other changes.
        """
        return self.log.record(self.caller(), action, outcome=outcome, **what)

    def record(
        self, caller: Caller, request: wire.Request[Any], reply: wire.Reply | None, problem: Exception | None
    ) -> asyncio.Future[None]:
        """Write the audit line of a request and its outcome."""
        outcome = "ok" if problem is None else str(getattr(problem, "code", "internal"))
        return self.log.record(caller, request.type, outcome=outcome, **changes.described(request, reply))

    def _changed(self, touched: set[str], schedule: bool) -> None:
        self.hub.wake(touched)
        self.keeper.note_events(touched)
        if schedule:
            self.supervisor.wake()

    @asynccontextmanager
    async def one_at_a_time(self, name: str) -> AsyncIterator[None]:
        """Run requests about the same thing one after the other, in the order of their arrival."""
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(name)
            if users > 1:
                self._locks[name] = (lock, users - 1)


def version() -> str:
    """Return the version of the running code; the metadata of an editable installation may be older."""
    return offrl.__version__
