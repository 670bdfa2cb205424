"""Requests for the files that a job made. If a policy is not exported yet, an export job makes it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from offrl import wire
from offrl.errors import InvalidInput
from offrl.job import TRAINS, ExportSpec
from offrld.daemon import queue
from offrld.daemon.access.caller import Caller
from offrld.daemon.app import App
from offrld.daemon.config import Limits
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import Job, find
from offrld.daemon.storage import artifacts

# kind of file -> the kinds of job that have it
HOLDERS = {"onnx": TRAINS, "torchscript": TRAINS, "checkpoint": TRAINS, "metrics": TRAINS, "dataset": ("dataset_export",)}


async def open_artifact(app: App, request: wire.OpenArtifact) -> wire.Artifact:
    """Find the file, or queue the export job that makes it."""
    job = await app.database.read(find, request.job)
    if job.kind not in HOLDERS[request.kind]:
        kinds = " or ".join(HOLDERS[request.kind])
        raise InvalidInput(f"job {job.id} is of kind {job.kind} and has no {request.kind}", hint=f"fetch it from a job of kind {kinds}")
    async with app.one_at_a_time(f"artifact {job.id} {request.kind}"):
        artifact = await asyncio.to_thread(
            artifacts.find,
            app.state,
            job.id,
            request.kind,
            job.spec.get("seeds", []),
            seed=request.seed,
            best=request.best,
            step=request.step,
        )
        if isinstance(artifact, wire.Artifact):
            return artifact
        assert request.kind == "onnx" or request.kind == "torchscript"  # of the other files none is missing
        _check_policy(job, await app.catalog.ready())
        spec = ExportSpec(job=job.id, seed=artifact.seed, step=artifact.step, format=request.kind)
        export = await app.database.write(_export, spec, app.caller(), app.settings.limits)
    return wire.Artifact(job=export, ready=False)


def _check_policy(job: Job, catalog: dict[str, Any]) -> None:
    """Raise `InvalidInput` if the job's algorithm learns no policy."""
    name = job.spec["algorithm"]
    for algorithm in catalog["algorithms"]:
        if algorithm["name"] == name and not algorithm.get("has_policy", True):
            hint = f"`offrl fetch {job.id} --kind checkpoint` fetches what it learned; other algorithms take the job itself"
            raise InvalidInput(f"job {job.id} is of {name}, which learns no policy", hint=hint)


def _export(db: Connection, spec: ExportSpec, caller: Caller, limits: Limits) -> str:
    """Return the unfinished export job that makes this very file, or queue a new one."""
    row = db.execute(
        f"SELECT id FROM jobs WHERE kind = 'export' AND state IN {queue.UNFINISHED} AND source = ? AND json(spec) = json(?)",
        (spec.job, json.dumps(spec.model_dump(mode="json"))),
    ).fetchone()
    if row is not None:
        return str(row[0])
    return queue.submit(db, spec, owner=caller.name, limits=limits)[0]


async def read_artifact(app: App, request: wire.ReadArtifact) -> wire.Data:
    """Read bytes of a file of the job."""
    await app.database.read(find, request.job)
    data = await asyncio.to_thread(artifacts.read, app.state, request.job, request.path, request.offset, request.size)
    return wire.Data(data=data)
