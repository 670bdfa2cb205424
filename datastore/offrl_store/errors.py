"""The base of every error of the project, and the errors of the store.

An error is part of the product: it has a stable ``code`` (what programs test), an ``exit_status`` (what the command line
returns), a one-line ``message`` that names the value, and a ``hint`` that says what to do; ``str(error)`` is both. Errors cross
the wire as their code, message and hint, so a class holds no other state.
"""

from __future__ import annotations


class OffrlError(Exception):
    """Base class.

    Attributes:
        message: what is wrong, in one line.
        hint: what to do about it, "" where there is nothing to say. ``str(error)`` is ``MESSAGE; HINT``.
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

    ``field``: the argument, where its name is the first word of the message; a command line says its option instead.
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
    """``create`` was called on a path that holds something already."""

    code = "store_exists"


class StoreNotFound(InvalidInput):
    """There is no store at the path."""

    code = "store_not_found"


class EmptyStore(InvalidInput):
    """Sampling was asked of a store without a single transition."""

    code = "empty_dataset"


class StoreCorrupt(OffrlError):
    """Files of a store are cut, changed or of an unknown version."""

    code = "store_corrupt"


class SnapshotEvicted(StoreCorrupt):
    """Episodes that a reader of a bounded store relies on were given back to the file system."""

    code = "snapshot_evicted"


class StoreLocked(OffrlError):
    """Another writer has the store open."""

    code = "store_locked"


class DiskFull(OffrlError):
    """The disk is full; everything acknowledged so far is kept."""

    code = "disk_full"
