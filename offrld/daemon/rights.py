"""Who may do what: the least role for each request, in one table, and whose jobs a submitter may touch."""

from __future__ import annotations

import sqlite3

from offrl import wire
from offrl.errors import NotAllowed
from offrld.daemon.caller import Caller
from offrld.daemon.records import find

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
    wire.ControlJob: SUBMITTER,     # its own jobs: `check_owner`
    wire.Checkup: SUBMITTER,        # writes to the disk, and may start a process
    wire.ControlQueue: OPERATOR,
    wire.RemoveDataset: OPERATOR,
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
        raise NotAllowed(f"{caller} may not {request.type}: that needs the role {least}", hint=HINT)


def check_owner(db: sqlite3.Connection, job: str, caller: Caller) -> None:
    """`NotAllowed` where a job is somebody else's and the caller no operator; `Unknown` where there is none."""
    owner = find(db, job).owner
    if owner != caller.name and not caller.may(OPERATOR):
        whose = f"belongs to {owner!r}" if owner is not None else "was submitted before jobs had owners"
        raise NotAllowed(f"{caller} may change its own jobs only: job {job} {whose}", hint=f"its owner or an operator may; {HINT}")
