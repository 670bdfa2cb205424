"""The parts of the running daemon in one place, as the request handlers see them."""

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
    """Everything that a handler may use. The state folder has to be prepared and locked."""

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
        """Who asked for what is being done; the daemon itself outside of a request."""
        return current.get()

    def audit(self, action: str, *, outcome: str = "ok", **what: Any) -> asyncio.Future[None]:
        """A line of the audit log in the caller's name; await it where the act must not be acknowledged before the line is durable.

        Requests are noted by the server; this is for what changes something beside them.
        """
        return self.log.record(self.caller(), action, outcome=outcome, **what)

    def record(
        self, caller: Caller, request: wire.Request[Any], reply: wire.Reply | None, problem: Exception | None
    ) -> asyncio.Future[None]:
        """The audit line of a request and what became of it."""
        outcome = "ok" if problem is None else str(getattr(problem, "code", "internal"))
        return self.log.record(caller, request.type, outcome=outcome, **changes.described(request, reply))

    def _changed(self, touched: set[str], schedule: bool) -> None:
        self.hub.wake(touched)
        self.keeper.tell(touched)
        if schedule:
            self.supervisor.wake()

    @asynccontextmanager
    async def one_at_a_time(self, name: str) -> AsyncIterator[None]:
        """Requests about the same thing one after the other, in the order of their arrival."""
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
