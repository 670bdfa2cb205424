"""A dataset export job: write the pinned snapshot of a dataset in another format, under ``dataset/`` of the run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from offrl.export_formats import SUFFIXES
from offrl.job import DatasetExportSpec
from offrl_store import EpisodeStore
from offrl_store.disk import publish, reserve, sync_tree
from offrld.disk_usage import usage
from offrld.importers.dataset_export import export_dataset
from offrld.state.files import remove
from offrld.worker.job import WorkerJob


def run(job: WorkerJob[DatasetExportSpec]) -> None:
    """Run the export; the result appears complete or not at all."""
    spec = job.spec
    if job.run.dataset.exists():  # an earlier attempt died after its rename
        return
    store = EpisodeStore.open(job.state.dataset(spec.dataset), job.snapshot)
    unfinished = job.run.path / ".dataset.tmp"
    remove(unfinished)
    unfinished.mkdir()
    try:
        path = unfinished / f"{spec.dataset}{SUFFIXES[spec.format]}"
        export_dataset(store, path, spec.format, progress=_progress(job, unfinished), message=job.report.message)
        sync_tree(unfinished)
        publish(unfinished, job.run.dataset)
    finally:
        remove(unfinished)
    job.report.progress(len(store), len(store), force=True)


def _progress(job: WorkerJob[DatasetExportSpec], folder: Path) -> Callable[[int, int | None], None]:
    """Return a callback that reports progress after each episode and checks that the disk has room for the next.

    The libraries of the formats write files themselves, so the room for an episode is estimated as that of the last one.
    """
    before = 0

    def progress(done: int, total: int | None) -> None:
        nonlocal before
        job.control.check()
        size = usage(folder)
        reserve(max(0, size - before))
        before = size
        job.report.progress(done, total or 0)

    return progress
