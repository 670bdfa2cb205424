"""The database of a queue without a daemon: one transaction each."""

from __future__ import annotations

from typing import Any

from offrld.daemon.queue.database import Connection, transaction


def do(db: Connection, function: Any, *args: Any, **kwargs: Any) -> Any:
    """``function(db, ...)`` in a transaction of its own."""
    return transaction(db, "BEGIN IMMEDIATE", function, *args, **kwargs)
