"""Removal of what the state folder no longer needs: unfinished imports, used and forgotten uploads, what a crash left half removed.

Nothing here deletes a dataset or a job that the queue knows. Reads and writes files: call it in a thread.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from pathlib import Path

from offrl_store.disk import publish
from offrld.daemon.queue import UNFINISHED
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import Job
from offrld.daemon.storage import artifacts
from offrld.state import origin
from offrld.state.folder import UNFINISHED_DATASET, StateFolder

REMOVED = ".removed-"
log = logging.getLogger("offrld.housekeeping")


def set_aside(folder: Path) -> Path | None:
    """Hide a folder under another name, to be deleted later; return its path, or None if the folder does not exist."""
    aside = folder.with_name(f"{REMOVED}{secrets.token_hex(4)}-{folder.name}")
    try:
        publish(folder, aside)
    except FileNotFoundError:
        return None
    return aside


def put_back(aside: Path | None) -> None:
    """Undo `set_aside`."""
    if aside is not None:
        aside.rename(aside.with_name(_name(aside.name)))


def delete(aside: Path | None) -> None:
    """Delete a folder that was set aside."""
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def forget_run(state: StateFolder, job: str) -> None:
    """Delete what a removed job has outside of its run folder."""
    artifacts.remove_packed(state, job)


def after_import(state: StateFolder, job: Job, *, dataset_known: bool) -> None:
    """Delete the unfinished dataset of an import that has ended without making one."""
    shutil.rmtree(state.unfinished_dataset(job.id), ignore_errors=True)
    if job.state.ended and not dataset_known and not job.spec.get("append") and job.dataset:
        folder = state.dataset(job.dataset)
        if origin.made_by(folder) == job.id:  # renamed, but killed before its report: nobody knows this dataset
            delete(set_aside(folder))


def names_in_use(db: Connection) -> tuple[set[str], set[str], set[str], set[str]]:
    """Ids of all jobs and of unfinished ones, names of datasets, and the uploads that a job may still read."""
    jobs = {row[0] for row in db.execute("SELECT id FROM jobs")}
    unfinished = {row[0] for row in db.execute(f"SELECT id FROM jobs WHERE state IN {UNFINISHED}")}
    datasets = {row[0] for row in db.execute("SELECT name FROM datasets")}
    uploads = {
        row[0]
        for row in db.execute(
            f"SELECT json_extract(spec, '$.upload') FROM jobs WHERE kind IN ('import', 'collect') AND state IN {UNFINISHED}"
        )
    }
    return jobs, unfinished, datasets, uploads


def sweep(state: StateFolder, jobs: set[str], unfinished: set[str], datasets: set[str]) -> list[Path]:
    """Finish or undo what the last daemon was doing when it died; call it before anything else happens in the folder.

    Returns the folders to delete later: nobody finds them any more.
    """
    gone: list[Path] = []
    for parent, known in ((state.jobs, jobs), (state.datasets, datasets)):
        for entry in list(os.scandir(parent)):
            path = Path(entry.path)
            if entry.name.startswith(REMOVED):
                original = path.with_name(_name(entry.name))
                if original.name in known and not original.exists():
                    log.warning("%s was about to be removed when the daemon died: it is kept", original)
                    path.rename(original)
                else:
                    gone.append(path)
            elif entry.name.startswith(UNFINISHED_DATASET) and entry.name.removeprefix(UNFINISHED_DATASET) not in unfinished:
                gone.append(set_aside(path) or path)  # its job may be tried again, and then makes a folder of this name
    gone += [Path(entry.path) for entry in os.scandir(state.packed) if entry.name not in jobs]
    gone += [Path(entry.path) for entry in os.scandir(state.backups)]  # their copying ended with the last daemon
    return gone


def _name(aside: str) -> str:
    return aside.removeprefix(REMOVED).partition("-")[2]
