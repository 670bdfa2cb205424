"""Who may do what: the least role for each request, in one table, and whose jobs a submitter may touch."""

from __future__ import annotations

import json
import sqlite3

from offrl import wire
from offrl.errors import NotAllowed
from offrld.daemon.access.caller import Caller
from offrld.daemon.queue import dataset_rows
from offrld.daemon.queue.job_record import find
from offrld.state.folder import StateFolder

READER, SUBMITTER, OPERATOR = "reader", "submitter", "operator"

LEAST: dict[type[wire.Request], str] = {
    wire.Ping: READER,
    wire.Algorithms: READER,
    wire.ListJobs: READER,
    wire.GetJob: READER,
    wire.GetQueue: READER,
    wire.GetEvents: READER,
    wire.ReadLog: READER,
    wire.ListDatasets: READER,
    wire.GetDataset: READER,
    wire.OpenArtifact: READER,      # may have a policy exported, in the lane of short jobs
    wire.ReadArtifact: READER,
    wire.Overview: READER,
    wire.GetSettings: READER,
    wire.Submit: SUBMITTER,         # train, import (new or appending), export of a dataset
    wire.Rerun: SUBMITTER,          # of anybody's job: it changes nothing of that
    wire.OpenUpload: SUBMITTER,
    wire.WriteChunk: SUBMITTER,
    wire.FinishUpload: SUBMITTER,
    wire.ListUploads: SUBMITTER,    # its own
    wire.RemoveUpload: SUBMITTER,   # its own
    wire.RemoveDataset: SUBMITTER,  # its own: `check_dataset`
    wire.ControlJob: SUBMITTER,     # its own jobs: `check_owner`
    wire.Checkup: SUBMITTER,        # writes to the disk, and may start a process
    wire.ControlQueue: OPERATOR,
    wire.Prune: OPERATOR,           # a dry run as well: it lists everybody's jobs with their sizes
    wire.BeginBackup: OPERATOR,     # with keys: only over the socket of the service's own user
    wire.ReadBackup: OPERATOR,
    wire.EndBackup: OPERATOR,
    wire.ReadAudit: OPERATOR,
}  # fmt: skip
HINT = "an operator of the daemon gives a key another role: `offrl keys role NAME ROLE` on its machine"


def check(caller: Caller, request: wire.Request) -> None:
    """`NotAllowed` naming the caller, its role and what is needed. A request that is not in the table is nobody's."""
    least = LEAST.get(type(request))
    if least is None:
        raise NotAllowed(f"{request.type} is allowed to nobody")
    if not caller.may(least):
        raise NotAllowed(f"{caller} may not {_act(request)}: that needs the role {least}", hint=HINT)


def _act(request: wire.Request) -> str:
    """What a request does, in the words of the command line."""
    if isinstance(request, wire.Submit):
        return {"dataset_export": "export datasets", "collect": "collect steps"}.get(request.spec.kind, "submit")
    if isinstance(request, wire.ControlJob):
        return f"{'rm' if request.action == 'remove' else request.action} jobs"
    if isinstance(request, wire.ControlQueue):
        return f"{request.action} the queue"
    return ACTS.get(type(request), request.type.replace("_", " "))


ACTS: dict[type[wire.Request], str] = {
    wire.OpenUpload: "upload datasets", wire.WriteChunk: "upload datasets", wire.FinishUpload: "upload datasets",
    wire.ListUploads: "list uploads", wire.RemoveUpload: "remove uploads", wire.RemoveDataset: "remove datasets",
    wire.Rerun: "rerun jobs", wire.Checkup: "run `offrl doctor`", wire.Prune: "prune jobs", wire.ReadAudit: "read the audit log",
    wire.BeginBackup: "back up the state", wire.ReadBackup: "back up the state", wire.EndBackup: "back up the state",
}  # fmt: skip


def check_dataset(db: sqlite3.Connection, dataset: str, caller: Caller) -> None:
    """`NotAllowed` where a dataset is somebody else's and the caller no operator; nothing where there is none."""
    if caller.may(OPERATOR) or db.execute("SELECT 1 FROM datasets WHERE name = ?", (dataset,)).fetchone() is None:
        return
    owner = dataset_rows.owner(db, dataset)
    if owner != caller.name:
        whose = f"belongs to {owner!r}" if owner is not None else "was added before datasets had owners"
        raise NotAllowed(f"{caller} may change its own datasets only: {dataset!r} {whose}", hint=f"its owner or an operator may; {HINT}")


def check_append(db: sqlite3.Connection, state: StateFolder, dataset: str, caller: Caller) -> None:
    """`NotAllowed` where a job of the caller's that puts episodes into a dataset would push out somebody else's.

    That is so where the dataset is bounded, or will be: an unfinished job of somebody else makes it with a limit.
    """
    if caller.may(OPERATOR):
        return
    try:
        bounded = bool(json.loads((state.datasets / dataset / "schema.json").read_bytes()).get("limit"))
    except (OSError, ValueError, AttributeError):  # it is not there yet
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
        owner, whose = row[0], f"is being made by {row[0]!r}"
    if owner != caller.name:
        raise NotAllowed(
            f"{caller} may not append to {dataset!r}: it is bounded, so new episodes push out old ones, and it {whose}",
            hint=f"append to a dataset of your own; its owner or an operator may; {HINT}",
        )


def check_owner(db: sqlite3.Connection, job: str, caller: Caller) -> None:
    """`NotAllowed` where a job is somebody else's and the caller no operator; `Unknown` where there is none."""
    owner = find(db, job).owner
    if owner != caller.name and not caller.may(OPERATOR):
        whose = f"belongs to {owner!r}" if owner is not None else "was submitted before jobs had owners"
        raise NotAllowed(f"{caller} may change its own jobs only: job {job} {whose}", hint=f"its owner or an operator may; {HINT}")
