"""What an entry of the audit log says about a request."""

from __future__ import annotations

from typing import Any

from offrl import wire

COMMON = ("job", "upload", "key", "priority", "after")  # fields of requests that every entry repeats
OF_SPEC = ("kind", "dataset", "algorithm", "append", "upload", "path", "env", "policy")  # fields of a submitted job


def described(request: wire.Request[Any], reply: wire.Reply | None) -> dict[str, Any]:
    """Describe a request: its job, dataset or upload, the main fields of a submission, and what the reply adds."""
    entry: dict[str, Any] = {name: getattr(request, name, None) for name in COMMON}
    entry.update({key: getattr(request, field) for field, key in request.audit_names.items()})
    if isinstance(request, wire.Submit):
        entry.update({name: getattr(request.spec, name, None) for name in OF_SPEC})
        entry["source"] = getattr(request.spec, "job", None)
    if isinstance(request, wire.OpenUpload):
        entry.update(files=len(request.files), bytes=sum(file.size for file in request.files))
    if isinstance(reply, wire.Submitted):
        entry.update(job=reply.job, created=reply.created)
    if isinstance(reply, wire.Artifact):
        entry["export"] = reply.job
    return {name: value for name, value in entry.items() if value not in (None, [], "")}
