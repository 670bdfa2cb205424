"""Datasets whose worker died before it told of them: what is in them is listed, an empty one is removed. Neither stands in a name's way."""

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
    """Before the end of an attempt is recorded: what it has left in a dataset of its own that nobody was told of, into its record."""
    if job.kind not in MAKES_STEPS or job.dataset is None or job.dataset in await database.read(datasets.known):
        return
    await asyncio.to_thread(_note, state, job)


def _note(state: StateFolder, job: Job) -> None:
    folder = state.dataset(str(job.dataset))
    found = _take(folder) if origin.made_by(folder) == job.id else None
    if found is not None:
        try:
            with state.run(job.id).events.open("ab") as record:  # its last line may be torn
                record.write(b"\n" + json.dumps({"type": "dataset", "dataset": found[1]}).encode() + b"\n")
        except OSError as error:
            log.warning("dataset %s of job %s cannot be listed: %s", job.dataset, job.id, error)


async def adopt(state: StateFolder, database: Database, dataset: str) -> None:
    """Look after a dataset that a job of steps made, where the queue does not know it and no unfinished job writes it."""
    if await database.read(datasets.mentioned, dataset):
        return
    found = await asyncio.to_thread(_take, state.dataset(dataset))
    if found is not None:
        job, info = found
        listed = await database.write(_list, job, info)
        log.warning("dataset %s, which job %s left unfinished, %s", dataset, job, "is listed" if listed else "stays aside: its job is gone")


async def adopt_all(state: StateFolder, database: Database) -> None:
    """`adopt` for every dataset in the state folder: a daemon that died had no time for it."""
    for entry in await asyncio.to_thread(lambda: list(os.scandir(state.datasets))):
        if not entry.name.startswith("."):
            await adopt(state, database, entry.name)


def _take(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """The job that made it and what is in it, with the episodes that were open ended; None where there is nothing to list (any more)."""
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
    """As if its worker had told of it."""
    try:
        found = find(db, job)
    except OffrlError:
        return False
    if found.kind in MAKES_STEPS:
        events.take_line(db, found, json.dumps({"type": "dataset", "dataset": info}).encode())
    return found.kind in MAKES_STEPS
