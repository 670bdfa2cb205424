"""Every error of the client, with its code, exit status and hint, and the table that turns codes into classes.

The base class and the store's errors stand in ``offrl_store.errors``. An error crosses the wire as ``{code, message, hint}``
and is raised again on the other side as the same class (`from_wire`).
"""

from __future__ import annotations

from offrl_store.errors import (
    DiskFull,
    EmptyStore,
    InvalidEpisode,
    InvalidInput,
    InvalidSchema,
    OffrlError,
    StoreCorrupt,
    StoreExists,
    StoreLocked,
    StoreNotFound,
)


class JobFailed(OffrlError):
    """A job that was waited for ended as failed or cancelled."""

    code = "job_failed"


class CheckFailed(OffrlError):
    """A check did not hold, for example the parity of an exported policy."""

    code = "check_failed"


class Unknown(InvalidInput):
    """A name that nobody knows: algorithm, setting, dataset, job, environment."""

    code = "unknown"


class Conflict(InvalidInput):
    """The request does not fit the present state: a name that exists, a dataset that is pinned, a job that has ended."""

    code = "conflict"


class LimitReached(OffrlError):
    """As many as a setting of the daemon allows are there already: unfinished jobs, bytes on the disk."""

    code = "limit_reached"


class InvalidMessage(InvalidInput):
    """A message that does not follow the wire's schema."""

    code = "invalid_message"


class DownloadFailed(OffrlError):
    """A file of a published dataset could not be fetched, or is not what its server says; what came of it is kept for the next attempt."""

    code = "download_failed"


class NoDaemon(OffrlError):
    """Nobody answers at the daemon's address."""

    code = "no_daemon"
    exit_status = 3


class ProtocolMismatch(OffrlError):
    """Client and daemon speak different versions of the protocol."""

    code = "protocol_mismatch"
    exit_status = 3


class NotAllowed(OffrlError):
    """The caller may not do this."""

    code = "not_allowed"
    exit_status = 4


class EnvironmentFailed(OffrlError):
    """An environment raised, or did not come back, while steps were made in it."""

    code = "environment_failed"


class WorkerFailed(OffrlError):
    """A process that collects for another one has ended, or says nothing any more."""

    code = "worker_failed"


class InternalError(OffrlError):
    """A defect in the daemon; its log holds the traceback."""

    code = "internal"


_CLASSES: dict[str, type[OffrlError]] = {
    cls.code: cls
    for cls in (
        OffrlError, InvalidInput, InvalidSchema, InvalidEpisode, StoreExists, StoreNotFound, EmptyStore, StoreCorrupt, StoreLocked,
        DiskFull, JobFailed, CheckFailed, DownloadFailed, Unknown, Conflict, LimitReached, InvalidMessage, NoDaemon, ProtocolMismatch,
        NotAllowed, EnvironmentFailed, WorkerFailed, InternalError,
    )
}  # fmt: skip


def to_wire(error: OffrlError) -> dict[str, str]:
    """``{code, message, hint}`` as it stands in replies, in job rows and in ``--json`` output."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


def from_wire(code: str, message: str, hint: str = "") -> OffrlError:
    """The error of that code; a code that a newer daemon invented becomes a plain `OffrlError` that keeps the code."""
    error = _CLASSES.get(code, OffrlError)(message, hint=hint)
    error.code = code
    return error


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint ``did you mean 'iql'?`` for the known name nearest to ``name``, or the list of names when none is near."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(sorted(known)[:12])
    return f"known: {shown}" + (", ..." if len(known) > 12 else "") if known else ""


__all__ = [name for name in dir() if not name.startswith("_") and name != "annotations"]
