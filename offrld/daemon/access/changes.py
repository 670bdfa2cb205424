"""Which requests change something, and what the audit log says of them."""

from __future__ import annotations

from typing import Any

from offrl import wire

# Chunks are left out: the upload that they belong to is noted when it is begun and when it is finished.
READING: tuple[type[wire.Request], ...] = (
    wire.Ping, wire.Algorithms, wire.ListJobs, wire.GetJob, wire.GetEvents, wire.ReadLog, wire.ListDatasets, wire.GetDataset,
    wire.ListUploads, wire.ReadArtifact, wire.WriteChunk, wire.ReadAudit, wire.Overview, wire.GetSettings, wire.Checkup, wire.GetQueue,
    wire.ReadBackup, wire.EndBackup,
)  # fmt: skip


def changes(request: wire.Request, reply: wire.Reply | None = None) -> bool:
    """Whether the act belongs into the audit log. To look for a file changes something only where it has to be made first.

    A request that is not in the list is taken for one that changes something.
    """
    if isinstance(request, wire.OpenArtifact):
        return isinstance(reply, wire.Artifact) and not reply.ready
    if isinstance(request, wire.Prune):
        return not request.dry_run
    return not isinstance(request, READING)


def described(request: wire.Request, reply: wire.Reply | None) -> dict[str, Any]:
    """The names of what a request is about: job, dataset, upload, and how a submission was meant."""
    told: dict[str, Any] = {name: getattr(request, name, None) for name in ("job", "upload", "key", "priority", "after")}
    if isinstance(request, wire.Rerun):
        told.update(rerun_of=request.job)
    if isinstance(request, wire.Submit | wire.Rerun):
        told.update(start_at=request.start_at, start_in_s=request.start_in_s)
    if isinstance(request, wire.ControlQueue):
        told.update(control=request.action, reason=request.reason)
    if isinstance(request, wire.ControlJob):
        told["control"] = request.action
    if isinstance(request, wire.BeginBackup):
        told.update(keys=request.keys)
    if isinstance(request, wire.Prune):
        told.update(keep_jobs=request.jobs, keep_days=request.days)
    if isinstance(request, wire.RemoveDataset):
        told["dataset"] = request.name
    if isinstance(request, wire.Submit):
        for name in ("kind", "dataset", "algorithm", "append", "upload", "path", "env", "policy"):
            told[name] = getattr(request.spec, name, None)
        told["source"] = getattr(request.spec, "job", None)
    if isinstance(request, wire.OpenUpload):
        told.update(files=len(request.files), bytes=sum(file.size for file in request.files))
    if isinstance(reply, wire.Submitted):
        told.update(job=reply.job, created=reply.created)
    if isinstance(reply, wire.Artifact):
        told["export"] = reply.job
    return {name: value for name, value in told.items() if value not in (None, [], "")}
