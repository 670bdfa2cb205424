"""Requests about the service itself: is it there, what can it train."""

from __future__ import annotations

import asyncio
import time

from offrl import wire
from offrld.daemon.access import audit
from offrld.daemon.app import App


def ping(app: App, request: wire.Ping) -> wire.Pong:
    """Who is there. A plain function: answered at once, without a task of its own."""
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
    """What can be trained, with every setting."""
    catalog = await app.catalog.ready()
    return wire.AlgorithmList(algorithms=catalog["algorithms"], problems=catalog["problems"])


async def read_audit(app: App, request: wire.ReadAudit) -> wire.AuditEntries:
    """A part of the audit log, with every act that was noted before the question."""
    await app.log.settled()
    found, more = await asyncio.to_thread(audit.entries, app.state.audit, request.since, request.after, request.limit)
    return wire.AuditEntries(entries=found, more=more)
