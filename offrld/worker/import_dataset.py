"""An import job: a source file or folder becomes a dataset, or is appended to one; whole, or not at all.

Everything is read into a store beside the datasets first (``datasets/.tmp-JOB``), which checks it. A new dataset is then one
rename; appending copies the checked episodes and commits them together. Both can be done again by the next attempt after a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from offrl.errors import Conflict, InvalidInput, OffrlError, Unknown
from offrl.job import ImportSpec
from offrl_store import EpisodeStore, Writer
from offrl_store.errors import StoreLocked
from offrl_store.schema import validate

from offrld.importers import import_into
from offrld.worker.datasets import dataset_info, source_path
from offrld.worker.job import WorkerJob
from offrld.worker.runfolder import remove, sync_folder, write_json

ORIGIN = "import.json"   # in the dataset's folder: the job that made it
APPEND = "append.json"   # in the run folder: where an appending job began
LOCKED_WAIT_S = 600.0    # another job may be appending


def run(job: WorkerJob) -> None:
    """Run the import; raises `OffrlError` for what is wrong with the source, with nothing left behind."""
    spec: ImportSpec = job.spec
    target = job.state.dataset(spec.dataset)
    staged = job.state.datasets / f".tmp-{job.id}"
    job.state.datasets.mkdir(parents=True, exist_ok=True)
    remove(staged)  # of an attempt that was killed
    if not spec.append and target.exists():
        if _made_by(target) != job.id:
            _forget_upload(job)
            raise Conflict(f"dataset {spec.dataset!r} exists", hint="choose another name, append to it, or remove it: `offrl datasets rm`")
        _finish(job, EpisodeStore.open(target), "was complete already")  # killed between the rename and its report
        return
    try:
        if spec.append and not target.exists():
            raise Unknown(f"there is no dataset {spec.dataset!r} to append to", hint="`offrl datasets ls` lists them")
        source = source_path(spec, job.state, job.import_roots)
        store = import_into(source, staged, format=spec.format, progress=_progress(job))
        job.control.check()
        if spec.append:
            store = _append(job, staged, target)
        else:
            _publish(job, staged, target)
            store = EpisodeStore.open(target)
    except InvalidInput:
        _forget_upload(job)  # sending the same bytes again would not help; anything else can be retried with them
        raise
    finally:
        remove(staged)
    _finish(job, store, "appended" if spec.append else "imported")


def _progress(job: WorkerJob) -> Callable[[int, int | None], None]:
    def progress(done: int, total: int | None) -> None:
        job.control.check()  # raises: the importer then leaves nothing behind
        job.report.progress(done, total or 0)

    return progress


def _publish(job: WorkerJob, staged: Path, target: Path) -> None:
    """Give the finished store its name: from then on it is there, also after a power cut."""
    write_json(staged / ORIGIN, {"job": job.id})
    sync_folder(staged)
    try:
        os.rename(staged, target)
    except OSError as error:
        if not target.exists():
            raise
        raise Conflict(f"dataset {target.name!r} was made by another job meanwhile", hint="choose another name, or append to it") from error
    sync_folder(target.parent)


def _append(job: WorkerJob, staged: Path, target: Path) -> EpisodeStore:
    """Copy the staged episodes to the end of the dataset and commit them together.

    ``append.json`` in the run folder says where the first attempt began, so that one which died inside its commit is completed, and
    not repeated.
    """
    source = EpisodeStore.open(staged)
    store = EpisodeStore.open(target)
    for number, episode in enumerate(source.episodes):  # all are checked before the first is written
        validate(store.schema, episode, number)
        job.control.check()
    writer = _writer(job, store)
    try:
        begun = job.run.path / APPEND
        before = json.loads(begun.read_text())["episodes"] if begun.exists() else len(store)
        write_json(begun, {"episodes": before})
        for number in range(_same(store, before, source), len(source)):
            writer.append(source.episodes[number])
            job.report.progress(number + 1, len(source))
        writer.close()
    except BaseException:
        _abandon(writer, store)
        raise
    return EpisodeStore.open(target)


def _abandon(writer: Writer, store: EpisodeStore) -> None:
    """Let go of the dataset without a commit, and have a new writer cut off the rows that were written (the disk may be full)."""
    writer._release()
    with contextlib.suppress(OffrlError, OSError):
        store.writer().close()


def _writer(job: WorkerJob, store: EpisodeStore) -> Writer:
    """The dataset's writer; waits while another job has it."""
    deadline = time.monotonic() + LOCKED_WAIT_S
    while True:
        try:
            return store.writer()
        except StoreLocked:
            if time.monotonic() > deadline:
                raise
        job.control.wait(0.2)
        job.control.check()


def _same(store: EpisodeStore, before: int, source: EpisodeStore) -> int:
    """How many of the source's first episodes stand in the store from episode ``before`` on."""
    columns = ["steps", "flags", "return"]
    there, due = store.episode_table[columns][before:], source.episode_table[columns]
    count = min(len(there), len(due))
    different = np.flatnonzero(there[:count] != due[:count])
    return int(different[0]) if len(different) else count


def _made_by(target: Path) -> str | None:
    """The job that made a dataset."""
    try:
        return json.loads((target / ORIGIN).read_text())["job"]
    except (OSError, ValueError, KeyError):
        return None


def _finish(job: WorkerJob, store: EpisodeStore, how: str) -> None:
    info = dataset_info(job.spec.dataset, store)
    job.report.dataset(info)
    job.report.progress(info["episodes"], info["episodes"], force=True)
    job.report.message(f"{how}: {info['episodes']} episodes, {info['transitions']} transitions in dataset {job.spec.dataset!r}")
    _forget_upload(job)


def _forget_upload(job: WorkerJob) -> None:
    if job.spec.upload is not None:
        remove(job.state.uploads / job.spec.upload)
