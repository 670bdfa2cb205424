"""An import job: turn a source file or folder into a dataset, or append it to one, completely or not at all.

A new dataset is written beside the others (``datasets/.tmp-JOB``) and gets its name by one rename; an append is one commit. After a crash
the next attempt repeats either, and notices what the last one completed.
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

APPEND = "append.json"  # in the run folder: the dataset's number of episodes when an appending job started
SKIPPED = "skipped.json"  # in the run folder: the skipped episodes
SHOWN = 20  # most skipped episodes that are reported as messages
LOCKED_WAIT_S = 600.0  # longest wait for another job that appends


def run(job: WorkerJob[ImportSpec]) -> str:
    """Run the import; return a remark with the number of skipped episodes, or "".

    Raises `OffrlError` if the source is bad; nothing is left behind.
    """
    spec = job.spec
    target = job.state.dataset(spec.dataset)
    job.state.datasets.mkdir(parents=True, exist_ok=True)
    _remove_staged(job)  # left by an attempt that was killed
    if not spec.append and target.exists() and origin.made_by(target) == job.id:
        return _finish(job, "already imported", _noted(job))  # an attempt was killed between the rename and its report
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
    for pattern in (name, f"{name}.*", f".{name}.*"):  # the store and the importer have files beside it
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
    """Record the skipped episodes: an attempt after a kill only reports them."""
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
    """Give the finished store its name: from then on it exists, even after a power cut."""
    origin.write(staged, job)
    try:
        publish(staged, target)
    except FileExistsError as error:
        raise Conflict(f"dataset {target.name!r} was made by another job meanwhile", hint="choose another name, or append to it") from error


def _append(job: WorkerJob[ImportSpec], target: Path, skipped: list[Skipped]) -> None:
    """Append the source in one commit.

    If a killed attempt left a commit half done, append the rest. With ``once``, skip also the episodes of the segment that another job has
    appended.
    """
    note = job.run.path / APPEND
    store = EpisodeStore.open(target)
    before = json.loads(note.read_text())["episodes"] if note.exists() else None
    staged, there = None, 0
    if job.spec.once:
        there = segment_there(store, EpisodeStore.open(source_path(job.spec, job.state, job.import_roots)))
    elif before is not None and len(store) > before:
        staged = EpisodeStore.open(_read(job, skipped))
        there = appended_before(store, before, staged)
    if there:
        staged = staged or EpisodeStore.open(_read(job, skipped))
        job.report.message(f"the dataset already has {there} of the {len(staged)} episodes")
        with store.writer() as writer:
            for number in range(there, len(staged)):
                writer.append(staged.episodes[number], staged.episode_metadata(number))
        return
    write_json(note, {"episodes": len(store)})
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
    """Return how many of the source's first episodes an earlier attempt appended; the store had ``before`` episodes when it started.

    Other jobs may have appended before and after it, but after a commit that was cut short the attempt appended nothing more.
    """
    columns = ["steps", "flags", "return"]
    stored, expected = store.episode_table[columns], source.episode_table[columns]
    for start in range(before, len(stored)):
        if stored[start] == expected[0]:
            count = min(len(stored) - start, len(expected))
            different = np.flatnonzero(stored[start : start + count] != expected[:count])
            same = int(different[0]) if len(different) else count
            if same == len(expected) or start + same == len(stored):
                return same
    return 0


def segment_there(store: EpisodeStore, source: EpisodeStore) -> int:
    """Return how many episodes of the source, a segment of a recorder's spool, the store has.

    The metadata of its episodes name spool and segment. A spool sends its segments in order: its newest episodes are of the last segment.
    """
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
    """Report the dataset and the skipped episodes. The upload stays until the daemon knows the end: an attempt after a kill needs it."""
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
