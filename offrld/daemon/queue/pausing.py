"""The pause of the whole queue: running jobs go on, nothing new starts, until it is resumed; it outlives the daemon."""

from __future__ import annotations

import json
import time

from offrl.wire import Pause
from offrld.daemon.queue.database import Connection


def paused(db: Connection) -> Pause | None:
    """Who has paused the queue, when and why; None where it runs."""
    row = db.execute("SELECT value FROM meta WHERE key = 'paused'").fetchone()
    return None if row is None else Pause.model_validate_json(row[0])


def pause(db: Connection, by: str, reason: str) -> None:
    """Start nothing any more. A queue that is paused stays as it was paused first."""
    if paused(db) is None:
        db.execute("INSERT INTO meta VALUES ('paused', ?)", (json.dumps({"by": by, "at": time.time(), "reason": reason}),))


def resume(db: Connection) -> None:
    """Start jobs again."""
    db.execute("DELETE FROM meta WHERE key = 'paused'")
    db.schedule = True
