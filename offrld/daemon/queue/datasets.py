"""The datasets that the queue lists: their description by the last job that wrote them, and the unfinished jobs that use them."""

from __future__ import annotations

import json
from sqlite3 import Row
from typing import Any, Literal

from offrl.errors import Conflict, Unknown, nearest
from offrl.message import pack_reply
from offrl.wire import ENTRY_BYTES, LIST_BYTES, DatasetInfo, Encoded, encoded_list
from offrld.daemon.queue import UNFINISHED, fitting
from offrld.daemon.queue.database import Connection

_ROWS = "SELECT name, info, (SELECT owner FROM dataset_owners o WHERE o.name = datasets.name) AS owner FROM datasets"


def listing(db: Connection, after: str | None = None) -> Encoded:
    """Return the message of a `wire.DatasetList`: the datasets after ``after`` by name, as many as fit."""
    users = _users(db)
    packed: list[bytes] = []
    size, last = 0, after
    for row in db.execute(f"{_ROWS} WHERE name > ? ORDER BY name", (after or "",)):
        info = _info(row, users)
        entry = pack_reply(fitting.dataset(info, ENTRY_BYTES).model_dump())
        size += len(entry)
        if size > LIST_BYTES:
            return encoded_list("datasets", packed, next=last)
        packed.append(entry)
        last = row["name"]
    return encoded_list("datasets", packed, next=None)


def get(db: Connection, name: str) -> DatasetInfo:
    """Return one dataset. Raises `Unknown`, with the nearest known name."""
    row = db.execute(f"{_ROWS} WHERE name = ?", (name,)).fetchone()
    if row is None:
        names = [row[0] for row in db.execute("SELECT name FROM datasets")]
        raise Unknown(f"no dataset {name!r}", hint=nearest(name, names) or "add one with `offrl datasets add NAME SOURCE`")
    return _info(row, _users(db))


def fields(db: Connection, name: str) -> dict[str, Any] | None:
    """Return the fields of the dataset, or None if it does not exist (yet)."""
    row = db.execute("SELECT info FROM datasets WHERE name = ?", (name,)).fetchone()
    return None if row is None else json.loads(row[0]).get("fields", {})


def remove(db: Connection, name: str) -> None:
    """Remove the dataset from the list. Raises `Conflict`, naming the unfinished jobs that use it."""
    info = get(db, name)
    if info.pinned_by:
        raise Conflict(f"dataset {name!r} is used by {fitting.names(info.pinned_by)}", hint="wait for them, or cancel them first")
    db.execute("DELETE FROM datasets WHERE name = ?", (name,))


def known(db: Connection) -> set[str]:
    """Return the names of all datasets."""
    return {row[0] for row in db.execute("SELECT name FROM datasets")}


def mentioned(db: Connection, name: str) -> bool:
    """Whether a dataset of that name exists, or an unfinished job uses it."""
    return name in known(db) or name in _users(db)


def action_kind(fields: dict[str, Any] | None) -> Literal["continuous", "discrete"] | None:
    """Return whether the dataset's actions are whole numbers (one per step) or vectors; None if its fields do not say."""
    for name, field in (fields or {}).items():
        if isinstance(field, dict) and field.get("role", name) == "action" and "dtype" in field:
            return "discrete" if "n" in field else "continuous"
    return None


def pinned(db: Connection, name: str) -> list[str]:
    """Return the snapshots of the dataset that unfinished jobs use."""
    rows = db.execute(f"SELECT DISTINCT snapshot FROM jobs WHERE dataset = ? AND snapshot IS NOT NULL AND state IN {UNFINISHED}", (name,))
    return [row[0] for row in rows]


def _users(db: Connection) -> dict[str, list[str]]:
    users: dict[str, list[str]] = {}
    for row in db.execute(
        f"SELECT dataset, json_extract(spec, '$.offline') AS offline, id FROM jobs"
        f" WHERE dataset IS NOT NULL AND state IN {UNFINISHED} ORDER BY seq"
    ):
        for dataset in dict.fromkeys((row["dataset"], row["offline"])):
            if dataset is not None:
                users.setdefault(dataset, []).append(row["id"])
    return users


def _info(row: Row, users: dict[str, list[str]]) -> DatasetInfo:
    return DatasetInfo.model_validate({**json.loads(row["info"]), "owner": row["owner"], "pinned_by": users.get(row["name"], [])})
