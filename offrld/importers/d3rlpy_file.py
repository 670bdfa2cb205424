"""Helpers shared by the exports to both versions of d3rlpy."""

from __future__ import annotations

import h5py
import numpy as np

from offrl_store import EpisodeStore
from offrld.importers.exporting import Export, say_left_out


def rows_of(rows: np.ndarray) -> np.ndarray:
    """Return rows as arrays: one number per step becomes ``[T, 1]``."""
    return rows[:, None] if rows.ndim == 1 else rows


def say_unkept(export: Export) -> None:
    """Report what d3rlpy has no place for: extras, episode metadata and final observations."""
    if export.store.schema.extra:
        export.message(f"not exported: {', '.join(export.store.schema.extra)} (d3rlpy has no place for them)")
    say_left_out(
        export,
        {key for i in range(len(export.store)) for key in export.store.episode_metadata(i)},
        "d3rlpy has no place for metadata of episodes",
    )
    flags = export.store.episode_table["flags"]
    kept = int(((flags & 2) == 0).sum())
    if kept:
        lost = int(((flags & 3) == 0).sum())
        export.message(
            f"d3rlpy keeps no final observations: those of {kept} episodes are left out, "
            f"and with them the last transition of {lost} truncated ones"
        )


def set_env_id(file: h5py.File, store: EpisodeStore) -> None:
    """Record the environment in an attribute. d3rlpy ignores it; our importer reads it."""
    if isinstance(store.metadata.get("env_id"), str):
        file.attrs["env_id"] = store.metadata["env_id"]
