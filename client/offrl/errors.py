"""Every error of the client, with its code, exit status and hint, and the table that turns codes into classes.

The base class and the store's errors stand in ``offrl_store.errors``. An error crosses the wire as ``{code, message, hint}``
and is raised again on the other side as the same class (`from_wire`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
    info: Any  # the `offrl.wire.JobInfo` of the job


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


NEAR = 0.75  # share of the letters, from which on two names are taken for the same one
LESS_NEAR = 0.6  # the same where they differ by two slips only

_CLASSES: dict[str, type[OffrlError]] = {
    cls.code: cls
    for cls in (
        OffrlError,
        InvalidInput,
        InvalidSchema,
        InvalidEpisode,
        StoreExists,
        StoreNotFound,
        EmptyStore,
        StoreCorrupt,
        StoreLocked,
        DiskFull,
        JobFailed,
        CheckFailed,
        DownloadFailed,
        Unknown,
        Conflict,
        LimitReached,
        InvalidMessage,
        NoDaemon,
        ProtocolMismatch,
        NotAllowed,
        EnvironmentFailed,
        WorkerFailed,
        InternalError,
    )
}


def to_wire(error: OffrlError) -> dict[str, str]:
    """``{code, message, hint}`` as it stands in replies, in job rows and in ``--json`` output."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


def from_wire(code: str, message: str, hint: str = "") -> OffrlError:
    """The error of that code; a code that a newer daemon invented becomes a plain `OffrlError` that keeps the code."""
    error = _CLASSES.get(code, OffrlError)(message, hint=hint)
    error.code = code
    return error


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ``did you mean 'iql'?`` for the known name nearest to ``name``, or the list of names when none is near."""
    names = sorted(known)
    if (close := likely(name, names)) is not None:
        return f"did you mean {close!r}?"
    return f"known: {', '.join(names[:12])}" + (", ..." if len(names) > 12 else "") if names else ""


def likely(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` is a slip of, None where none is near enough: a wrong guess misleads more than none helps.

    Near: the same but for case and signs; one letter wrong, missing, added or swapped with its neighbour (of longer names two); three
    quarters of the letters the same; or the beginning of one name alone.
    """
    import difflib

    wanted = _letters(name)
    names = list(known)
    begun = [each for each in names if len(wanted) >= 3 and _letters(each).startswith(wanted)]
    if len(begun) == 1:
        return begun[0]
    best: tuple[float, str] | None = None
    for each in names:
        letters = _letters(each)
        if letters == wanted:
            return each
        ratio = difflib.SequenceMatcher(None, wanted, letters).ratio()
        slips = 2 if max(len(wanted), len(letters)) >= 5 and ratio >= LESS_NEAR else 1 if len(wanted) >= 2 else 0
        near = ratio >= NEAR or (abs(len(wanted) - len(letters)) <= slips and _slips(wanted, letters) <= slips)
        if near and (best is None or ratio > best[0]):
            best = (ratio, each)
    return None if best is None else best[1]


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum()) or name


def _slips(one: str, other: str) -> int:
    """Letters changed, added, removed or swapped with a neighbour between two texts."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, before = before, row
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                row[j] = min(row[j], above[j - 2] + 1)
    return row[-1]


__all__ = [name for name in dir() if not name.startswith("_") and name != "annotations"]
