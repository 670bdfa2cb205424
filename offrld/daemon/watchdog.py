"""Reports state and progress to systemd, which restarts a service that makes no progress.

Progress means: the event loop turns (otherwise this does not run), both threads of the queue answer, and the scheduler completes a turn
when woken. A queue that answers with an error makes progress: the log names the error, and a restart would not help.
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

STATUS_S = 10.0  # between two status reports, unless the watchdog interval is shorter
log = logging.getLogger("offrld.watchdog")


async def run(app: App, address: str) -> None:
    """Report for ever; return at once if nobody listens."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return
    interval = watchdog_interval()
    pause = STATUS_S if interval is None else min(STATUS_S, interval)
    status = ""

    async def look() -> None:
        nonlocal status
        stalled = await _stalled(app, pause)
        if stalled:
            log.error("no sign of life is sent to systemd: %s", stalled)
        elif interval is not None:
            notify("WATCHDOG=1")
        text = f"listening on {address}: {app.supervisor.running} jobs run, {await _waiting(app)} wait"
        if text != status and not stalled:
            status = text
            notify(f"STATUS={text}")

    await forever(app.passes, "the watchdog", look, pause)


async def _stalled(app: App, seconds: float) -> str:
    """Say what made no progress within ``seconds``; "" if everything did."""
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
    while turns is not None and app.supervisor.turns == turns:  # None: it still requeues what an earlier daemon left
        if asyncio.get_running_loop().time() > end:
            return f"the scheduler has completed no turn for {seconds:g} s"
        await asyncio.sleep(0.05)
    return ""


async def _waiting(app: App) -> int:
    try:
        return await app.database.read(lambda db: int(db.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()[0]))
    except OffrlError:  # `_stalled` has logged it
        return 0


def _nothing(db: Connection) -> None:
    db.execute("SELECT 1 FROM meta").fetchone()
