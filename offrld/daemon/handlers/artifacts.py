"""Requests for the files that a job made; a policy that is not exported yet is made by an export job."""

from __future__ import annotations

import asyncio
import json

from offrl import wire
from offrl.errors import InvalidInput
from offrl.job import ExportSpec
from offrld.daemon import artifacts, queue, rights
from offrld.daemon.app import App
from offrld.daemon.caller import Caller
from offrld.daemon.database import Connection
from offrld.daemon.records import find

KINDS = {"onnx": "train", "checkpoint": "train", "metrics": "train", "dataset": "dataset_export"}  # file -> the job that makes it


async def open_artifact(app: App, request: wire.OpenArtifact) -> wire.Artifact:
    """Find the file, or start what makes it."""
    job = await app.database.read(find, request.job)
    if job.kind != KINDS[request.kind]:
        raise InvalidInput(
            f"job {job.id} is of kind {job.kind} and has no {request.kind}", hint=f"fetch it from a job of kind {KINDS[request.kind]}"
        )
    async with app.one_at_a_time(f"artifact {job.id} {request.kind}"):
        found = await asyncio.to_thread(
            artifacts.find, app.state, job.id, request.kind, job.spec.get("seeds", []),
            seed=request.seed, best=request.best, step=request.step,
        )  # fmt: skip
        if isinstance(found, wire.Artifact):
            return found
        export = await app.database.write(_export, ExportSpec(job=job.id, seed=found.seed, step=found.step), app.caller())
    return wire.Artifact(job=export, ready=False)


def _export(db: Connection, spec: ExportSpec, caller: Caller) -> str:
    """The unfinished export job that makes just this file, or a new one."""
    row = db.execute(
        f"SELECT id FROM jobs WHERE kind = 'export' AND state IN {queue.UNFINISHED} AND source = ? AND json(spec) = json(?)",
        (spec.job, json.dumps(spec.model_dump(mode="json"))),
    ).fetchone()
    if row is not None:
        return str(row[0])
    job, _ = queue.submit(db, spec)
    rights.own(db, job, caller)
    return job


async def read_artifact(app: App, request: wire.ReadArtifact) -> wire.Data:
    """Bytes of a file of the job."""
    await app.database.read(find, request.job)
    data = await asyncio.to_thread(artifacts.read, app.state, request.job, request.path, request.offset, request.size)
    return wire.Data(data=data)
