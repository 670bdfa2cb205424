"""What a job has made of a dataset, as the queue keeps it, and whose it is."""

from __future__ import annotations

import json

from offrl.wire import DatasetInfo
from offrld.daemon.queue.database import Connection


def keep(db: Connection, info: DatasetInfo, job: str, owner: str | None, at: float) -> bool:
    """Note what a job has made of a dataset, and whether that is news. A new one is its owner's."""
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
    """Whose a dataset is; None: it is not there, or of before datasets had owners."""
    row = db.execute("SELECT owner FROM dataset_owners WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]
