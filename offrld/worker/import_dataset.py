"""An import job: a source file or folder becomes a dataset, or is appended to one; whole, or not at all.

A new dataset is written beside the others (``datasets/.tmp-JOB``) and gets its name by one rename; an append is one commit. Both
can be done again by the next attempt after a crash: it notices what the last one completed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from offrl.errors import Conflict, Unknown
from offrl.job import ImportSpec
from offrl.printable import counted
from offrl.wire import MAX_SKIPPED
from offrl_store import EpisodeStore
from offrl_store.disk import publish
from offrl_store.errors import StoreLocked
from offrld.dataset_info import dataset_info
from offrld.datasets import open_named
from offrld.importers import Skipped, Source, import_into
from offrld.state import origin
from offrld.state.files import remove, write_json
from offrld.worker.datasets import source_path
from offrld.worker.job import WorkerJob

APPEND = "append.json"  # in the run folder: the dataset's number of episodes when an appending job began
SKIPPED = "skipped.json"  # in the run folder: the episodes that were left out
SHOWN = 20  # of them, as messages
LOCKED_WAIT_S = 600.0  # another job may be appending


def run(job: WorkerJob[ImportSpec]) -> str:
    """Run the import; returns how many episodes were left out, where any was.

    Raises `OffrlError` for what is wrong with the source, with nothing left behind.
    """
    spec = job.spec
    target = job.state.dataset(spec.dataset)
    job.state.datasets.mkdir(parents=True, exist_ok=True)
    _remove_staged(job)  # of an attempt that was killed
    if not spec.append and target.exists() and origin.made_by(target) == job.id:
        return _finish(job, "was imported already", _noted(job))  # by an attempt that was killed between the rename and its report
    skipped: list[Skipped] = []
    try:
        if spec.append:
            if not target.exists():
                raise Unknown(f"there is no dataset {spec.dataset!r} to append to", hint="`offrl datasets ls` lists them")
            _append(job, target, skipped)
        else:
            if target.exists():
                hint = "choose another name, append to it, or remove it: `offrl datasets rm`"
                raise Conflict(f"dataset {spec.dataset!r} exists", hint=hint)
            staged = _read(job, skipped)
            _note(job, skipped)
            _publish(staged, target, job.id)
    finally:
        _remove_staged(job)
    return _finish(job, "appended" if spec.append else "imported", skipped)


def _remove_staged(job: WorkerJob[ImportSpec]) -> None:
    name = job.state.unfinished_dataset(job.id).name
    for pattern in (name, f"{name}.*", f".{name}.*"):  # the store and the importer work beside it
        for path in job.state.datasets.glob(pattern):
            remove(path)


def _read(job: WorkerJob[ImportSpec], skipped: list[Skipped]) -> Path:
    """Read the whole source into a store that is not a dataset yet."""
    staged = job.state.unfinished_dataset(job.id)
    _import(job, staged, skipped)
    job.control.check()
    return staged


def _import(job: WorkerJob[ImportSpec], target: Path, skipped: list[Skipped], *, append: bool = False) -> None:
    spec = job.spec
    skipped.clear()
    if spec.named is not None:
        source: Source | Path = open_named(
            spec.named, options=spec.options, skip_bad=spec.skip_bad, message=job.report.message, progress=_progress(job)
        )
    else:
        source = source_path(spec, job.state, job.import_roots)
    import_into(
        source,
        target,
        format=spec.format,
        append=append,
        progress=_progress(job),
        message=job.report.message,
        options=spec.options,
        skip_bad=skipped.append if spec.skip_bad else None,
    )


def _note(job: WorkerJob[ImportSpec], skipped: list[Skipped]) -> None:
    """Write down what was left out: the next attempt, after a kill, only reports."""
    if skipped:
        write_json(job.run.path / SKIPPED, [vars(episode) for episode in skipped])


def _noted(job: WorkerJob[ImportSpec]) -> list[Skipped]:
    path = job.run.path / SKIPPED
    return [Skipped(**episode) for episode in json.loads(path.read_text())] if path.exists() else []


def _progress(job: WorkerJob[ImportSpec]) -> Callable[[int, int | None], None]:
    def progress(done: int, total: int | None) -> None:
        job.control.check()  # raises: the importer then leaves nothing behind
        job.report.progress(done, total or 0)

    return progress


def _publish(staged: Path, target: Path, job: str) -> None:
    """Give the finished store its name: from then on it is there, also after a power cut."""
    origin.write(staged, job)
    try:
        publish(staged, target)
    except FileExistsError as error:
        raise Conflict(f"dataset {target.name!r} was made by another job meanwhile", hint="choose another name, or append to it") from error


def _append(job: WorkerJob[ImportSpec], target: Path, skipped: list[Skipped]) -> None:
    """Append the source in one commit; of a commit that a killed attempt left half done, the rest. With ``once`` likewise what another job
    has appended of the same segment."""
    begun = job.run.path / APPEND
    store = EpisodeStore.open(target)
    before = json.loads(begun.read_text())["episodes"] if begun.exists() else None
    staged, there = None, 0
    if job.spec.once:
        there = segment_there(store, EpisodeStore.open(source_path(job.spec, job.state, job.import_roots)))
    elif before is not None and len(store) > before:
        staged = EpisodeStore.open(_read(job, skipped))
        there = appended_before(store, before, staged)
    if there:
        staged = staged or EpisodeStore.open(_read(job, skipped))
        job.report.message(f"{there} of {len(staged)} episodes are there already")
        with store.writer() as writer:
            for number in range(there, len(staged)):
                writer.append(staged.episodes[number], staged.episode_metadata(number))
        return
    write_json(begun, {"episodes": len(store)})
    deadline = time.monotonic() + LOCKED_WAIT_S
    while True:
        try:
            _import(job, target, skipped, append=True)
            return
        except StoreLocked:
            if time.monotonic() > deadline:
                raise
        job.control.wait(1.0)
        job.control.check()


def appended_before(store: EpisodeStore, before: int, source: EpisodeStore) -> int:
    """How many of the source's first episodes an earlier attempt appended, which began when the store had ``before`` episodes.

    Other jobs may have appended before and after it; a commit that was cut short is followed by nothing of its own.
    """
    columns = ["steps", "flags", "return"]
    there, wanted = store.episode_table[columns], source.episode_table[columns]
    for start in range(before, len(there)):
        if there[start] == wanted[0]:
            count = min(len(there) - start, len(wanted))
            different = np.flatnonzero(there[start : start + count] != wanted[:count])
            same = int(different[0]) if len(different) else count
            if same == len(wanted) or start + same == len(there):
                return same
    return 0


def segment_there(store: EpisodeStore, source: EpisodeStore) -> int:
    """How many of the source's episodes, a segment of a recorder's spool, the store has: their metadata name spool and segment. A spool
    sends its segments in order, so that the newest of its episodes say which was the last."""
    if not len(source):
        return 0
    recorder, segment = (source.episode_metadata(0).get(key) for key in ("recorder", "segment"))
    if recorder is None or segment is None:  # recorded by an older version
        return 0
    there = 0
    for number in reversed(range(len(store))):
        metadata = store.episode_metadata(number)
        if metadata.get("recorder") == recorder:
            if metadata.get("segment") != segment:
                break
            there += 1
    return there


def _finish(job: WorkerJob[ImportSpec], how: str, skipped: list[Skipped]) -> str:
    """Report the dataset and what was left out. The upload stays until the daemon knows the end: an attempt after a kill needs it."""
    info = dataset_info(job.spec.dataset, EpisodeStore.open(job.state.dataset(job.spec.dataset)))
    info |= {"skipped": [vars(episode) for episode in skipped[:MAX_SKIPPED]], "skipped_episodes": len(skipped)}
    for episode in skipped[:SHOWN]:
        job.report.message(f"left out: episode {episode.episode}: {episode.why}")
    if len(skipped) > SHOWN:
        job.report.message(f"left out: {len(skipped) - SHOWN} more episodes")
    job.report.dataset(info)
    job.report.progress(info["episodes"], info["episodes"], force=True)
    counts = f"{counted(info['episodes'], 'episode')}, {counted(info['transitions'], 'transition')}"
    job.report.message(f"{how}: {counts} in dataset {job.spec.dataset!r}")
    return f"{len(skipped)} bad episodes were left out" if skipped else ""
