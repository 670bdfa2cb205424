"""Tells systemd how the service is, and that it makes progress: only while it does, so that one that hangs is started again.

Progress is that the event loop turns (else this does not run), that both threads of the queue answer, and that the scheduler comes round
when it is woken. A queue that answers with an error makes progress: what is wrong is in the log, and a restart would not mend it.
"""

from __future__ import annotations

import asyncio
import logging
import os

from offrl_store.errors import OffrlError
from offrld.daemon.app import App
from offrld.daemon.notify import notify, watchdog_interval
from offrld.daemon.passes import forever
from offrld.daemon.queue.database import Connection

STATUS_S = 10.0  # between two words of how the service is, where no watchdog wants more
log = logging.getLogger("offrld.watchdog")


async def run(app: App, address: str) -> None:
    """Report for ever; ends at once where nobody listens."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return
    interval = watchdog_interval()
    pause = STATUS_S if interval is None else min(STATUS_S, interval)
    status = ""

    async def look() -> None:
        nonlocal status
        stands = await _stands(app, pause)
        if stands:
            log.error("no sign of life is given to systemd: %s", stands)
        elif interval is not None:
            notify("WATCHDOG=1")
        said = f"listening on {address}: {app.supervisor.running} jobs run, {await _waiting(app)} wait"
        if said != status and not stands:
            status = said
            notify(f"STATUS={said}")

    await forever(app.passes, "the watchdog", look, pause)


async def _stands(app: App, seconds: float) -> str:
    """What makes no progress; empty where everything does."""
    turns = app.supervisor.turns
    app.supervisor.wake()
    for name, ask in (("reader", app.database.read), ("writer", app.database.write)):
        try:
            await asyncio.wait_for(ask(_nothing), seconds)
        except TimeoutError:
            return f"the queue's {name} has not answered for {seconds:g} s"
        except OffrlError as error:
            log.error("the queue's %s: %s", name, error)
    end = asyncio.get_running_loop().time() + seconds
    while turns is not None and app.supervisor.turns == turns:  # None: it still puts back what a former daemon has left
        if asyncio.get_running_loop().time() > end:
            return f"the scheduler has not come round for {seconds:g} s"
        await asyncio.sleep(0.05)
    return ""


async def _waiting(app: App) -> int:
    try:
        return await app.database.read(lambda db: int(db.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()[0]))
    except OffrlError:  # told of by the look before
        return 0


def _nothing(db: Connection) -> None:
    db.execute("SELECT 1 FROM meta").fetchone()
