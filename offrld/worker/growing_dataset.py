"""The dataset that receives a job's steps: its steps are counted across attempts, and it is reported while it grows."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from offrl.errors import EnvironmentFailed
from offrl.job import CollectSpec, TrainOnlineSpec
from offrl_store import EpisodeStore, Snapshot, Writer
from offrl_store.errors import OffrlError
from offrld.collect.collector import Collector
from offrld.dataset_info import dataset_info
from offrld.state import origin
from offrld.state.files import remove, write_json
from offrld.worker.failures import to_error
from offrld.worker.job import WorkerJob

REPORT_S = 10.0  # time between two reports of the growing dataset
EPISODES = 100_000  # above this a dataset is reported less often: each report computes the returns of all episodes


class StepsDataset:
    """The dataset that receives a job's steps.

    Its episodes carry the job's id. After a crash the count includes the job's durable episodes since the last record, and no other job's.
    """

    def __init__(self, job: WorkerJob[CollectSpec | TrainOnlineSpec], name: str) -> None:
        self._job, self._name = job, name
        self.path = job.state.dataset(name)
        job.state.datasets.mkdir(parents=True, exist_ok=True)
        self.note = {"job": job.id}
        self.record: dict[str, Any] = {}
        if job.run.steps.exists():
            self.record = json.loads(job.run.steps.read_text())
        self._reported_at = -1e9
        self._reported = -1  # episodes written so far, in the last report
        self._recent: list[Snapshot] = []  # the last two reported: a job for them may have just been submitted

    def open(self) -> EpisodeStore | None:
        """Open the dataset; None if it does not exist yet."""
        return EpisodeStore.open(self.path) if self.path.exists() else None

    def keep(self, store: EpisodeStore | None) -> list[Snapshot]:
        """Return the snapshots of a bounded dataset that must not lose an episode: those of other jobs, and the last two reported."""
        if store is None or not store.limit:
            return []
        pinned = [Snapshot.parse(text) for text in self._job.control.pinned]
        return [snapshot for snapshot in (*pinned, *self._recent) if snapshot.first >= store.first]

    def created(self) -> None:
        """Note that this job made the dataset."""
        origin.write(self.path, self._job.id)

    def steps_before(self, store: EpisodeStore) -> int:
        """Return the number of this job's steps in the store: those in the record of an earlier attempt, and later ones."""
        uncounted = self.record.get("episodes", store.first + len(store) if not self.record else 0)
        total = int(self.record.get("steps", 0))
        for number in range(max(uncounted - store.first, 0), len(store)):
            if store.episode_metadata(number).get("job") == self._job.id:
                total += int(store.episode_table[number]["steps"])
        return total

    def save(self, store: EpisodeStore, steps: int, **state: Any) -> None:
        """Record that ``steps`` of the job are in whole episodes of the store as it is now, with further JSON ``state``."""
        self.record = {"steps": steps, "episodes": store.first + len(store), **state}
        write_json(self._job.run.steps, self.record)

    def report(self, store: EpisodeStore, *, last: bool = False) -> None:
        """Report the dataset to the daemon, unless it was reported a moment ago; ``last`` reports it in any case."""
        now, count = time.monotonic(), store.first + len(store)
        pause = REPORT_S * max(1.0, len(store) / EPISODES)
        if len(store) == 0 or count == self._reported or (not last and now - self._reported_at < pause):
            return
        self._reported_at, self._reported = now, count
        self._recent = [*self._recent[-1:], store.snapshot()]
        self._job.report.dataset(dataset_info(self._name, store))

    def remove_empty(self) -> None:
        """Remove a dataset that this job created and left empty, to free its name."""
        try:
            store = self.open()
        except (OffrlError, OSError):
            return
        if store is not None and origin.made_by(self.path) == self._job.id and store.first + len(store) == 0:
            remove(self.path)


def whole_steps(collector: Collector) -> int:
    """Return the number of the collector's steps that are in whole episodes."""
    return collector.frames - int(sum(writer_of(collector).open_episodes.values()))


def writer_of(collector: Collector) -> Writer[EpisodeStore]:
    """Return the writer of a collector that has a dataset."""
    assert collector.writer is not None
    return collector.writer


def give_up(job: WorkerJob[CollectSpec | TrainOnlineSpec], message: str) -> None:
    """End the process after a step that does not return even on a signal: report it first; the dataset keeps what was synced."""
    error = EnvironmentFailed(f"{job.spec.env}: {message}", hint="the steps up to the last sync are kept")
    job.report.end("failed", to_error(error))
    os._exit(0)
