"""Where steps go: the writer of a store that takes them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from offrl_store import EpisodeStore, Schema, Snapshot, Writer
from offrld.collect.spaces import check_steps

SYNC_SHARE = 50  # of the time a sync takes: so long until the next at least, so that many open episodes do not slow collection down


def open_writer(
    into: Any,
    schema: Schema,
    limit: int | None,
    name: str,
    closing: ExitStack,
    note: Mapping[str, Any] | None = None,
    keep: Sequence[Snapshot] = (),
) -> Writer:
    """The writer of a store that takes steps of ``schema``, closed with ``closing``; or the given writer, which is its owner's to close.

    Args:
        into: a store, its path (it is made where nothing is), or a writer.
        name: of the environment, for messages.
        note: metadata of the episodes that a crash has left open there.
        keep: snapshots to keep.

    Raises:
        InvalidInput: the store's fields are others.
    """
    if isinstance(into, str | os.PathLike):
        into = EpisodeStore.open(into) if os.path.exists(into) else EpisodeStore.create(into, schema, limit_transitions=limit)
    check_steps(name, schema, (into.store if isinstance(into, Writer) else into).schema)
    if isinstance(into, Writer):
        return into
    writer = into.writer(keep=keep)
    closing.callback(writer.close)
    for env, steps in writer.open_episodes.items():  # a crash left them; their environments are gone
        writer.end(env=env, metadata=note) if steps else writer.discard(env)
    return writer
