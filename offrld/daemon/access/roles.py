"""Who may do what: a request names its least role; a submitter may change only its own jobs and datasets."""

from __future__ import annotations

import json
from typing import Any

from offrl import wire
from offrl.errors import NotAllowed
from offrl.job import KINDS
from offrld.daemon.access.caller import Caller
from offrld.daemon.queue import dataset_rows
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import find
from offrld.state.folder import StateFolder

OPERATOR = "operator"
HINT = "an operator can change the role: `offrl keys role NAME ROLE` on the daemon's machine"


def check(caller: Caller, request: wire.Request[Any]) -> None:
    """Raise `NotAllowed`, naming the caller, its role and the required one. A request without a role is allowed to nobody."""
    if request.role is None:
        raise NotAllowed(f"{request.type} is allowed to nobody")
    if not caller.may(request.role):
        raise NotAllowed(f"{caller} may not {_act(request)}: this requires the role {request.role}", hint=HINT)


def _act(request: wire.Request[Any]) -> str:
    """What a request does, in the words of the command line."""
    if isinstance(request, wire.Submit):
        return KINDS[request.spec.kind].act
    if isinstance(request, wire.ControlJob):
        return f"{'rm' if request.action == 'remove' else request.action} jobs"
    if isinstance(request, wire.ControlQueue):
        return f"{request.action} the queue"
    return request.act or request.type.replace("_", " ")


def check_dataset(db: Connection, dataset: str, caller: Caller) -> None:
    """Raise `NotAllowed` if the dataset belongs to somebody else and the caller is not an operator. A missing dataset passes."""
    if caller.may(OPERATOR) or db.execute("SELECT 1 FROM datasets WHERE name = ?", (dataset,)).fetchone() is None:
        return
    owner = dataset_rows.owner(db, dataset)
    if owner != caller.name:
        whose = f"belongs to {owner!r}" if owner is not None else "was added before datasets had owners"
        raise NotAllowed(f"{caller} may change its own datasets only: {dataset!r} {whose}", hint=f"its owner or an operator may; {HINT}")


def check_append(db: Connection, state: StateFolder, dataset: str, caller: Caller) -> None:
    """Raise `NotAllowed` if a job of the caller's that adds episodes to the dataset would push out somebody else's.

    This happens if the dataset is bounded, or will be because an unfinished job of somebody else creates it with a limit.
    """
    if caller.may(OPERATOR):
        return
    try:
        bounded = bool(json.loads((state.datasets / dataset / "schema.json").read_bytes()).get("limit"))
    except (OSError, ValueError, AttributeError):  # it does not exist yet
        bounded = False
    if bounded:
        owner = dataset_rows.owner(db, dataset)
        whose = f"belongs to {owner!r}" if owner is not None else "was added before datasets had owners"
    else:
        row = db.execute(
            "SELECT owner FROM jobs WHERE dataset = ? AND state IN ('queued', 'running', 'paused')"
            " AND json_extract(spec, '$.limit') IS NOT NULL AND owner IS NOT ? LIMIT 1",
            (dataset, caller.name),
        ).fetchone()
        if row is None:
            return
        owner, whose = row[0], f"is being created by {row[0]!r}"
    if owner != caller.name:
        raise NotAllowed(
            f"{caller} may not append to {dataset!r}: it is bounded, so new episodes push out old ones, and it {whose}",
            hint=f"append to a dataset of your own; its owner or an operator may; {HINT}",
        )


def check_owner(db: Connection, job: str, caller: Caller) -> None:
    """Raise `NotAllowed` if the job belongs to somebody else and the caller is not an operator; `Unknown` if it does not exist."""
    owner = find(db, job).owner
    if owner != caller.name and not caller.may(OPERATOR):
        whose = f"belongs to {owner!r}" if owner is not None else "was submitted before jobs had owners"
        raise NotAllowed(f"{caller} may change its own jobs only: job {job} {whose}", hint=f"its owner or an operator may; {HINT}")
