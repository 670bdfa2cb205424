"""The base of every error of the project, and the errors of the store.

An error is part of the product: it has a stable ``code`` (for programs), an ``exit_status`` (of the command line), a one-line ``message``
that names the value, and a ``hint`` for the user's next step. ``str(error)`` is message and hint. Errors cross the wire as code, message
and hint, so a class holds no other state.
"""

from __future__ import annotations


class OffrlError(Exception):
    """Base class.

    Attributes:
        message: what is wrong, in one line.
        hint: what to do about it, or "". ``str(error)`` is ``MESSAGE; HINT``.
    """

    code = "error"
    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = " ".join(str(message).split())
        super().__init__(self.message)
        self.hint = " ".join(hint.split())

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class InvalidInput(OffrlError):
    """A value given by the user is wrong; nothing was changed.

    ``field``: the argument, if its name is the first word of the message; a command line shows its option instead.
    """

    code = "invalid_input"
    exit_status = 2
    field = ""


class InvalidSchema(InvalidInput):
    """Fields that cannot be stored, or that do not fit the store's schema."""

    code = "invalid_schema"


class InvalidEpisode(InvalidInput):
    """An episode whose lengths, dtypes or values do not fit the schema (NaN and infinite values included)."""

    code = "invalid_episode"


class StoreExists(InvalidInput):
    """``create`` was called on a path that is not empty."""

    code = "store_exists"


class StoreNotFound(InvalidInput):
    """There is no store at the path."""

    code = "store_not_found"


class EmptyStore(InvalidInput):
    """A store has no transition to sample."""

    code = "empty_dataset"


class StoreCorrupt(OffrlError):
    """Files of a store are cut, changed or of an unknown version."""

    code = "store_corrupt"


class SnapshotEvicted(StoreCorrupt):
    """A bounded store has evicted episodes that a reader relies on."""

    code = "snapshot_evicted"


class StoreLocked(OffrlError):
    """Another writer has the store open."""

    code = "store_locked"


class DiskFull(OffrlError):
    """The disk is full; everything acknowledged so far is kept."""

    code = "disk_full"
