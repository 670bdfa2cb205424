"""Requests about the service itself: is it reachable, what can it train, who changed what."""

from __future__ import annotations

import asyncio
import time

from offrl import wire
from offrld.daemon.access import audit
from offrld.daemon.app import App


def ping(app: App, request: wire.Ping) -> wire.Pong:
    """Describe the daemon and the caller. A plain function: the server answers without a task."""
    caller = app.caller()
    return wire.Pong(
        version=app.version,
        protocol=wire.PROTOCOL,
        state_dir=str(app.state.root),
        uptime_s=round(time.monotonic() - app.started, 3),
        caller=caller.name,
        role=caller.role,
    )


async def algorithms(app: App, request: wire.Algorithms) -> wire.AlgorithmList:
    """List the algorithms with all their settings."""
    catalog = await app.catalog.ready()
    return wire.AlgorithmList(algorithms=catalog["algorithms"], problems=catalog["problems"])


async def read_audit(app: App, request: wire.ReadAudit) -> wire.AuditEntries:
    """Return a part of the audit log, including every act before this request."""
    await app.log.settled()
    part, more = await asyncio.to_thread(audit.entries, app.state.audit, request.since, request.after, request.limit)
    return wire.AuditEntries(entries=part, more=more)
