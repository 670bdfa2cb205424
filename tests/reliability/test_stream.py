"""A robot streams episodes into a dataset while jobs train on snapshots of it; a service that is stopped has its checkpoint in time."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from living_service import Service, short_folder, until, with_number
from workload import KINDS, arrays, differences, source, weights

from offrl import Client, wire
from offrl_store import EpisodeStore

SETTINGS = "[workers]\nspare = 0\n[devices]\ncards = []\nthreads = 4\n[slots]\ntrain = 2\n"
STOP_S = 10.0


class Robot(threading.Thread):
    """Appends two episodes at a time, as fast as it can; ``sent`` numbers those that were acknowledged."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.over, self.sent = url, threading.Event(), []

    def run(self) -> None:
        with Client(self.url) as client:
            number = 100
            while not self.over.is_set():
                client.datasets.append("base", arrays(number, 2))
                self.sent.append(number)
                number += 1


@pytest.mark.slow
def test_a_job_trains_on_its_snapshot_while_a_robot_appends_to_the_dataset() -> None:
    with short_folder() as folder:
        service = Service(folder, SETTINGS, {"OFFRLD_CHECKPOINT_SECONDS": "0.2"})
        try:
            with service.start() as client:
                client.datasets.add("base", source(folder, 0))
                spec = KINDS[0].spec("base", 6000)
                quiet = client.request(wire.Submit(spec=spec)).job
                client.job(quiet).wait(300)
                job = client.request(wire.Submit(spec=spec)).job
                snapshot = client.job(job).last.snapshot
                robot = Robot(service.url)
                robot.start()
                until(lambda: client.job(job).last.step > 0 and robot.sent, "a job that runs while episodes come in")
                until(lambda: service.workers(), "a worker")
                victim = next(pid for pid, name in service.workers().items() if name == job)
                with_number(victim, signal.SIGKILL)  # the next attempt finds a longer dataset, and trains on the same snapshot
                before = len(robot.sent)
                info = client.job(job).wait(300)
                robot.over.set()
                robot.join(60)
                assert info.attempt == 2
                assert len(robot.sent) > before
                assert client.job(job).last.snapshot == snapshot != client.datasets.show("base").snapshot
                assert differences(weights(client, job, folder), weights(client, quiet, folder)) == []
                stored = EpisodeStore.open(service.state / "datasets" / "base")
                assert [int(episode.reward[0]) for episode in stored.episodes][8:] == [number for number in robot.sent for _ in range(2)]
                later = client.request(wire.Submit(spec=KINDS[0].spec("base", 100))).job  # and a later job sees them
                assert client.job(later).wait(300).snapshot.startswith(f"0:{len(stored)}:")
                print(f"{len(robot.sent)} appends while the job trained")
            assert service.stop() == 0
        finally:
            service.close()


@pytest.mark.slow
def test_a_service_that_is_stopped_has_checkpoints_of_all_its_jobs_within_ten_seconds() -> None:
    with short_folder() as folder:
        service = Service(folder, SETTINGS)
        try:
            with service.start() as client:
                client.datasets.add("base", source(folder, 0))
                jobs = [client.request(wire.Submit(spec=KINDS[number].spec("base", 10**9))).job for number in (0, 1)]
                until(lambda: all(client.job(job).last.step > 100 for job in jobs), "two jobs that run")
            began = time.monotonic()
            assert service.stop() == 0
            took = time.monotonic() - began
            assert took < STOP_S + 1.0, took
            for job in jobs:
                (checkpoint,) = (service.state / "jobs" / job / "checkpoints").glob("0*")
                assert f"stopped with a checkpoint at step {int(checkpoint.stem)}" in (service.state / "jobs" / job / "log.txt").read_text()
            print(f"stopped in {took:.2f} s")
            assert not service.workers()
        finally:
            service.close()
