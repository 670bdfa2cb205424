"""Errors about the content of a source, and the record of an episode that was left out."""

from __future__ import annotations

from dataclasses import dataclass

from offrl_store.errors import InvalidEpisode, InvalidInput


class BadRow(InvalidEpisode):
    """A value that cannot be used; ``row`` is its row in the array."""

    def __init__(self, message: str, row: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.row = row


class Damaged(InvalidInput):
    """The source is damaged and its good episodes cannot be distinguished from the bad ones, so that no part of it is read."""


@dataclass(frozen=True)
class Skipped:
    """An episode that was left out.

    Attributes:
        episode: its place in the source, from 0.
        row: the bad row of its array, None if no single row is bad.
        why: the reason, in one line.
    """

    episode: int
    row: int | None
    why: str
