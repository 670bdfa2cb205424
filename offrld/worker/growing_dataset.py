"""The dataset that a job writes steps into: created if it is missing, counted over attempts, and reported while it grows."""

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

TELL_S = 10.0  # between two messages about the growing dataset
EPISODES = 100_000  # each report computes the returns of all episodes, so that a larger dataset is reported less often


class StepsDataset:
    """The dataset that receives a job's steps.

    Steps are counted by episodes that carry the job's id: after a crash those that were made durable since the last record are found
    again, and nobody else's.
    """

    def __init__(self, job: WorkerJob[CollectSpec | TrainOnlineSpec], name: str) -> None:
        self._job, self._name = job, name
        self.path = job.state.dataset(name)
        job.state.datasets.mkdir(parents=True, exist_ok=True)
        self.note = {"job": job.id}
        self.record: dict[str, Any] = {}
        if job.run.steps.exists():
            self.record = json.loads(job.run.steps.read_text())
        self._told_at = -1e9
        self._told = -1
        self._known: list[Snapshot] = []  # the last two reported to the daemon: a job may have been submitted for them just now

    def open(self) -> EpisodeStore | None:
        """The dataset; None where it is not there yet."""
        return EpisodeStore.open(self.path) if self.path.exists() else None

    def keep(self, store: EpisodeStore | None) -> list[Snapshot]:
        """The snapshots of a bounded dataset that must not lose an episode: those of other jobs, and the last two reported."""
        if store is None or not store.limit:
            return []
        pinned = [Snapshot.parse(text) for text in self._job.control.pinned]
        return [snapshot for snapshot in (*pinned, *self._known) if snapshot.first >= store.first]

    def created(self) -> None:
        """The collector has made the dataset: note whose it is."""
        origin.write(self.path, self._job.id)

    def steps_before(self, store: EpisodeStore) -> int:
        """Steps of this job in the store that its record, of an earlier attempt, does not count yet, and those that it does."""
        begin = self.record.get("episodes", store.first + len(store) if not self.record else 0)
        total = int(self.record.get("steps", 0))
        for number in range(max(begin - store.first, 0), len(store)):
            if store.episode_metadata(number).get("job") == self._job.id:
                total += int(store.episode_table[number]["steps"])
        return total

    def save(self, store: EpisodeStore, steps: int, **state: Any) -> None:
        """Record that ``steps`` of the job are in whole episodes of the store, as it is now."""
        self.record = {"steps": steps, "episodes": store.first + len(store), **state}
        write_json(self._job.run.steps, self.record)

    def tell(self, store: EpisodeStore, *, last: bool = False) -> None:
        """Report the dataset to the daemon, unless it was reported a moment ago; ``last`` reports in any case."""
        now, count = time.monotonic(), store.first + len(store)
        pause = TELL_S * max(1.0, len(store) / EPISODES)
        if len(store) == 0 or count == self._told or (not last and now - self._told_at < pause):
            return
        self._told_at, self._told = now, count
        self._known = [*self._known[-1:], store.snapshot()]
        self._job.report.dataset(dataset_info(self._name, store))

    def remove_empty(self) -> None:
        """Remove a dataset that this job created and left empty: its name would be taken."""
        try:
            store = self.open()
        except (OffrlError, OSError):
            return
        if store is not None and origin.made_by(self.path) == self._job.id and store.first + len(store) == 0:
            remove(self.path)


def whole_steps(collector: Collector) -> int:
    """Steps of the collector that are in whole episodes."""
    return collector.frames - int(sum(writer_of(collector).open_episodes.values()))


def writer_of(collector: Collector) -> Writer[EpisodeStore]:
    """The writer of a collector that has a dataset."""
    assert collector.writer is not None
    return collector.writer


def give_up(job: WorkerJob[CollectSpec | TrainOnlineSpec], message: str) -> None:
    """A step that does not come back even after a signal: say so and end the process; what was synced is in the dataset."""
    error = EnvironmentFailed(f"{job.spec.env}: {message}", hint="the steps up to the last sync are kept")
    job.report.end("failed", to_error(error))
    os._exit(0)
