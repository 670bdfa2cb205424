"""The row of a dataset in the queue's database: its latest description, and its owner."""

from __future__ import annotations

import json

from offrl.wire import DatasetInfo
from offrld.daemon.queue.database import Connection


def keep(db: Connection, info: DatasetInfo, job: str, owner: str | None, at: float) -> bool:
    """Store a job's description of a dataset; return whether it is news. A new dataset belongs to ``owner``."""
    before = db.execute("SELECT snapshot, job FROM datasets WHERE name = ?", (info.name,)).fetchone()
    db.execute(
        "INSERT INTO datasets (name, info, snapshot, job, updated_at) VALUES (?1, ?2, ?3, ?4, ?5)"
        " ON CONFLICT (name) DO UPDATE SET info = ?2, snapshot = ?3, job = ?4, updated_at = ?5",
        (info.name, json.dumps(info.model_dump(exclude={"pinned_by", "owner", "trimmed"})), info.snapshot, job, at),
    )
    if before is None:
        db.execute("INSERT INTO dataset_owners (name, owner) VALUES (?, ?)", (info.name, owner))
    return before is None or tuple(before) != (info.snapshot, job)


def owner(db: Connection, name: str) -> str | None:
    """Return the owner of a dataset; None if it does not exist, or is older than the owners of datasets."""
    row = db.execute("SELECT owner FROM dataset_owners WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]
