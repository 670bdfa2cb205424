"""Datasets whose worker died before it reported them: one with episodes is listed, an empty one is removed, so that no name stays taken."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

from offrl.job import MAKES_STEPS
from offrl_store import EpisodeStore
from offrl_store.errors import OffrlError
from offrld.daemon.queue import datasets, events
from offrld.daemon.queue.database import Connection, Database
from offrld.daemon.queue.job_record import Job, find
from offrld.daemon.storage import housekeeping
from offrld.dataset_info import dataset_info
from offrld.state import origin
from offrld.state.folder import StateFolder

log = logging.getLogger("offrld.orphans")


async def note(state: StateFolder, database: Database, job: Job) -> None:
    """Add to the events of an attempt that has ended the dataset of its own that it did not report."""
    if job.kind not in MAKES_STEPS or job.dataset is None or job.dataset in await database.read(datasets.known):
        return
    await asyncio.to_thread(_note, state, job)


def _note(state: StateFolder, job: Job) -> None:
    folder = state.dataset(str(job.dataset))
    orphan = _take(folder) if origin.made_by(folder) == job.id else None
    if orphan is not None:
        try:
            with state.run(job.id).events.open("ab") as record:  # its last line may be torn
                record.write(b"\n" + json.dumps({"type": "dataset", "dataset": orphan[1]}).encode() + b"\n")
        except OSError as error:
            log.warning("dataset %s of job %s cannot be listed: %s", job.dataset, job.id, error)


async def adopt(state: StateFolder, database: Database, dataset: str) -> None:
    """List or remove a dataset that a job of steps made, if the queue does not know it and no unfinished job writes it."""
    if await database.read(datasets.mentioned, dataset):
        return
    orphan = await asyncio.to_thread(_take, state.dataset(dataset))
    if orphan is not None:
        job, info = orphan
        listed = await database.write(_list, job, info)
        log.warning("dataset %s, which job %s left unfinished, %s", dataset, job, "is listed" if listed else "stays aside: its job is gone")


async def adopt_all(state: StateFolder, database: Database) -> None:
    """`adopt` every dataset in the state folder: the last daemon may have died before."""
    for entry in await asyncio.to_thread(lambda: list(os.scandir(state.datasets))):
        if not entry.name.startswith("."):
            await adopt(state, database, entry.name)


def _take(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """End the open episodes; return the job that made the dataset and its description, or None if it is empty or not a job's."""
    job = origin.made_by(folder)
    if job is None:
        return None
    try:
        store = EpisodeStore.open(folder)
        with store.writer() as writer:
            for env, steps in writer.open_episodes.items():
                writer.end(env=env, metadata={"job": job}) if steps else writer.discard(env)
        if store.first + len(store) > 0:
            return job, dataset_info(folder.name, store)
    except (OffrlError, OSError) as error:
        log.warning("dataset %s of job %s cannot be looked after: %s", folder.name, job, error)
        return None
    housekeeping.delete(housekeeping.set_aside(folder))
    return None


def _list(db: Connection, job: str, info: dict[str, Any]) -> bool:
    """List a dataset as its worker would have."""
    try:
        record = find(db, job)
    except OffrlError:
        return False
    if record.kind in MAKES_STEPS:
        events.take_line(db, record, json.dumps({"type": "dataset", "dataset": info}).encode())
    return record.kind in MAKES_STEPS
