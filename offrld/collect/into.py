"""The writer of the store that steps go into."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from offrl_store import EpisodeStore, Schema, Snapshot, Writer
from offrld.collect.spaces import check_steps

SYNC_SHARE = 50  # pause between two syncs, in durations of the last one: many open episodes then do not slow collection down


def open_writer(
    into: Any,
    schema: Schema,
    limit: int | None,
    name: str,
    closing: ExitStack,
    note: Mapping[str, Any] | None = None,
    keep: Sequence[Snapshot] = (),
) -> Writer:
    """Open a writer of a store for steps of ``schema``. ``closing`` closes it; a writer that the caller brings stays open.

    Args:
        into: a store, its path (created if it does not exist), or a writer.
        limit: transitions that a new store holds.
        name: of the environment, for messages.
        note: metadata of the episodes that a crash left open in the store.
        keep: snapshots to keep.

    Raises:
        InvalidInput: the store has other fields.
    """
    if isinstance(into, str | os.PathLike):
        into = EpisodeStore.open(into) if os.path.exists(into) else EpisodeStore.create(into, schema, limit_transitions=limit)
    check_steps(name, schema, (into.store if isinstance(into, Writer) else into).schema)
    if isinstance(into, Writer):
        return into
    writer = into.writer(keep=keep)
    closing.callback(writer.close)
    for env, steps in writer.open_episodes.items():  # a crash left them open; their environments are gone
        writer.end(env=env, metadata=note) if steps else writer.discard(env)
    return writer
