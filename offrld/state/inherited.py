"""Checkpoints that a job inherits from other jobs, kept in its own run folder as ``taken/NAME.safetensors`` from its first attempt on.

NAME is the setting that names the other job, or ``start`` or ``policy``. An inherited checkpoint is a second link to the same file, which
needs no space. A later attempt or an export finds the same bits, even if the other job has continued or was removed.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from offrl_store.disk import link_or_copy, sync_folder
from offrld.state.run_folder import CHECKPOINT_SUFFIX, RunFolder


def path(run: RunFolder, name: str) -> Path:
    """Return the path of an inherited checkpoint."""
    return run.inherited / f"{name}{CHECKPOINT_SUFFIX}"


def names(run: RunFolder) -> frozenset[str]:
    """Return the names under which a run keeps inherited checkpoints."""
    return frozenset(file.name.removesuffix(CHECKPOINT_SUFFIX) for file in run.inherited.glob(f"*{CHECKPOINT_SUFFIX}"))


def inherit(checkpoint: Path, run: RunFolder, name: str) -> Path:
    """Keep a checkpoint of another job under ``name``, durably; return its path. Raises `FileNotFoundError` if that job has replaced it."""
    run.inherited.mkdir(mode=0o700, parents=True, exist_ok=True)
    link_or_copy(checkpoint, path(run, name))
    _sync(run)
    return path(run, name)


def hand_on(source: RunFolder, target: RunFolder, names: Collection[str]) -> None:
    """Give a new run the checkpoints that another run has inherited, durably."""
    if names:
        target.inherited.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            link_or_copy(path(source, name), path(target, name))
        _sync(target)


def _sync(run: RunFolder) -> None:
    for folder in (run.inherited, run.path, run.path.parent):  # each may be new
        sync_folder(folder)
