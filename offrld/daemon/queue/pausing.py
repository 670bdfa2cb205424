"""The pause of the whole queue: running jobs continue, and no other job starts until a resume. It survives a restart of the daemon."""

from __future__ import annotations

import json
import time

from offrl.wire import Pause
from offrld.daemon.queue.database import Connection


def paused(db: Connection) -> Pause | None:
    """Return who paused the queue, when and why; None if it is not paused."""
    row = db.execute("SELECT value FROM meta WHERE key = 'paused'").fetchone()
    return None if row is None else Pause.model_validate_json(row[0])


def pause(db: Connection, by: str, reason: str) -> None:
    """Pause the queue. If it is paused already, the first pause stays."""
    if paused(db) is None:
        db.execute("INSERT INTO meta VALUES ('paused', ?)", (json.dumps({"by": by, "at": time.time(), "reason": reason}),))


def resume(db: Connection) -> None:
    """Start jobs again."""
    db.execute("DELETE FROM meta WHERE key = 'paused'")
    db.schedule = True
