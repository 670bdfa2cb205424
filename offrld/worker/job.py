"""The job of a worker, in the form that the function for its kind receives."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from offrl.job import JobSpec
from offrld.state.folder import StateFolder
from offrld.state.run_folder import RunFolder
from offrld.worker.control import Control
from offrld.worker.report import Reporter

SpecOf = TypeVar("SpecOf", bound=JobSpec, covariant=True)  # specification of the kind of job that a function runs


@dataclass(frozen=True)
class WorkerJob(Generic[SpecOf]):
    """One attempt at a job.

    Attributes:
        id, attempt: of the job; attempts count from 1.
        spec: the submitted specification.
        snapshot: the dataset snapshot that the job has pinned, as text; None for kinds that pin none.
        import_roots: folders of this machine below which an import may read.
        state, run: the daemon's state folder and the job's run folder.
        control, report: messages from and to the daemon.
        keep_checkpoints: number of evaluation checkpoints to keep, beside the last and each seed's best; 0: all.
        started: `time.perf_counter` at the start of the process.
    """

    id: str
    attempt: int
    spec: SpecOf
    snapshot: str | None
    import_roots: tuple[Path, ...]
    state: StateFolder
    run: RunFolder
    control: Control
    report: Reporter
    keep_checkpoints: int = 0
    started: float = field(default_factory=time.perf_counter)
