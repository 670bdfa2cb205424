"""Requests about the whole queue: its state, pause, resume."""

from __future__ import annotations

from offrl import wire
from offrld.daemon import queue
from offrld.daemon.app import App
from offrld.daemon.config import Limits
from offrld.daemon.queue.database import Connection

OWNERS = 2000  # in one message: a name has at most 106 characters


async def get_queue(app: App, request: wire.GetQueue) -> wire.QueueInfo:
    """Describe the queue: paused or not, and the number of jobs of each owner; one part of the owners at a time."""
    return await app.database.read(_info, app.settings.limits, request.after)


async def control_queue(app: App, request: wire.ControlQueue) -> wire.QueueInfo:
    """Pause or resume the queue. Pausing a paused queue is not an error, nor is resuming a running one."""
    by = app.caller().name

    def work(db: Connection) -> wire.QueueInfo:
        if request.action == "pause":
            queue.pause(db, by, " ".join(request.reason.split()))
        else:
            queue.resume(db)
        return _info(db, app.settings.limits)

    return await app.database.write(work)


def _info(db: Connection, limits: Limits, after: str | None = None) -> wire.QueueInfo:
    counts = dict.fromkeys(("queued", "running", "paused"), 0)
    owners: dict[str, dict[str, int]] = {}
    for row in db.execute(f"SELECT coalesce(owner, ''), state, count(*) FROM jobs WHERE state IN {queue.UNFINISHED} GROUP BY 1, 2"):
        counts[row[1]] += row[2]
        owners.setdefault(row[0], {})[row[1]] = row[2]
    names = sorted(name for name in owners if after is None or name > after)
    shown = {name: owners[name] for name in names[:OWNERS]}
    limit_values = {f"limits.{name}": value for name, value in limits.model_dump().items()}
    return wire.QueueInfo(
        paused=queue.paused(db),
        counts=counts,
        owners=shown,
        next_start=queue.next_start(db),
        limits=limit_values,
        next=names[OWNERS - 1] if len(names) > OWNERS else None,
    )
