"""The daemon dies, or is stopped, at any moment: nothing acknowledged is lost, and no worker outlives it."""

from __future__ import annotations

import random
import sqlite3
import threading
from pathlib import Path

import pytest
import zmq
from daemon_harness import Connection, alive, until

from offrl import wire
from offrl.errors import Conflict, Unknown
from offrl.job import TrainSpec

GRACE = "[grace]\ncancel_s = 0.3\npause_s = 0.3\nstop_s = 0.5\n"


def test_running_jobs_continue_after_the_daemon_was_killed(new_daemon) -> None:
    daemon = new_daemon(GRACE).start()
    data = daemon.dataset("data")
    job = daemon.train(data, "slow", steps=60)
    waiting = daemon.train(data, key="once")
    until(lambda: daemon.job(job).step > 5)
    (_, pid, _), *_ = daemon.attempts(job)
    daemon.kill()
    until(lambda: not alive(pid))  # its control pipe was closed: it made its checkpoint and ended
    daemon.start()
    assert daemon.train(data, key="once") == waiting
    assert daemon.wait(job).state == "succeeded"
    assert daemon.job(job).attempt == 2
    log = (daemon.state / "jobs" / job / "log.txt").read_text().splitlines()
    assert log[0] == "begins at step 0"
    assert int(log[1].rpartition(" ")[2]) > 5  # from its checkpoint
    assert daemon.wait(waiting).state == "succeeded"
    events = daemon.events(job)
    assert [event.n for event in events] == list(range(1, len(events) + 1))
    assert [event.state for event in events if event.type == "state"] == ["queued", "running", "queued", "running", "succeeded"]
    assert len([event for event in events if event.type == "progress" and event.step == 60]) == 1


def test_a_worker_that_ignores_the_death_of_its_daemon_is_ended_by_the_next_one(new_daemon) -> None:
    daemon = new_daemon(GRACE).start()
    job = daemon.train(daemon.dataset("data"), "children")
    until(lambda: daemon.job(job).step == 1)
    pids = [daemon.attempts(job)[0][1], int((daemon.state / "jobs" / job / "child").read_text())]
    daemon.kill()
    assert all(map(alive, pids))
    daemon.start()
    until(lambda: daemon.job(job).attempt == 2)
    assert not any(map(alive, pids))
    daemon.control(job, "cancel")
    daemon.wait(job)


def test_a_job_that_ended_while_the_daemon_was_away_has_ended(new_daemon) -> None:
    daemon = new_daemon(GRACE).start()
    job = daemon.train(daemon.dataset("data"), "children")
    until(lambda: daemon.job(job).step == 1)
    daemon.kill()
    with (daemon.state / "jobs" / job / "events.jsonl").open("ab") as file:  # what a worker writes that comes to its end just then
        file.write(
            b'{"type":"progress","time":1.0,"step":3,"steps":3,"metrics":{}}\n{"type":"end","time":2.0,"state":"succeeded","error":null}\n'
        )
    daemon.start()
    info = daemon.wait(job)
    assert (info.state, info.step, info.attempt) == ("succeeded", 3, 1)


@pytest.mark.parametrize(("action", "state"), [("pause", "paused"), ("cancel", "cancelled")])
def test_the_intent_for_a_running_job_survives_the_daemon(new_daemon, action: str, state: str) -> None:
    daemon = new_daemon("[grace]\ncancel_s = 30\npause_s = 30\nstop_s = 0.2\n").start()
    job = daemon.train(daemon.dataset("data"), "hang")
    until(lambda: daemon.job(job).step == 1)
    daemon.control(job, action)
    daemon.kill()
    daemon.start()
    assert daemon.wait(job, state).attempt == 1


def test_a_stopped_daemon_gives_its_workers_time_for_a_checkpoint(new_daemon) -> None:
    daemon = new_daemon().start()
    job = daemon.train(daemon.dataset("data"), "slow", steps=60)
    until(lambda: daemon.job(job).step > 3)
    pid = daemon.attempts(job)[0][1]
    assert daemon.stop() == 0
    assert not alive(pid)
    assert list((daemon.state / "jobs" / job / "checkpoints").iterdir())
    daemon.start()
    assert daemon.wait(job).state == "succeeded"
    assert [event.state for event in daemon.events(job) if event.type == "state"] == ["queued", "running", "queued", "running", "succeeded"]


def test_only_one_daemon_serves_a_state_folder(new_daemon) -> None:
    daemon = new_daemon().start()
    status, lines = daemon.refused()
    assert status == 2
    assert len(lines) == 1
    assert f"process {daemon.process.pid}" in lines[0]
    assert str(daemon.state) in lines[0]
    daemon.ask(wire.Ping())


def test_an_interrupted_import_is_repeated_or_leaves_nothing(new_daemon) -> None:
    daemon = new_daemon(GRACE).start()
    unsaid = daemon.import_("unsaid", "unsaid")
    assert daemon.wait(unsaid).state == "failed"
    until(lambda: not (daemon.state / "datasets" / "unsaid").exists())
    job = daemon.import_("slow", "slow")
    half = daemon.state / "datasets" / f".tmp-{job}"
    until(lambda: (half / "half").exists())
    daemon.kill()
    daemon.start()
    until(lambda: daemon.job(job).attempt == 2)
    daemon.control(job, "cancel")
    assert daemon.wait(job).state == "cancelled"
    until(lambda: not half.exists())
    assert daemon.ask(wire.ListDatasets()).datasets == []
    assert not list((daemon.state / "datasets").iterdir())


def test_an_interrupted_removal_is_completed_or_undone(new_daemon) -> None:
    daemon = new_daemon().start()
    data = daemon.dataset("kept")
    job = daemon.train(data)
    daemon.wait(job)
    daemon.stop()
    for folder in (daemon.state / "datasets" / data, daemon.state / "jobs" / job):  # died between the rename and the commit
        folder.rename(folder.with_name(f".removed-0000-{folder.name}"))
    (daemon.state / "jobs" / ".removed-0001-gone").mkdir()
    (daemon.state / "datasets" / ".tmp-gone").mkdir()
    daemon.start()
    until(lambda: (daemon.state / "jobs" / job / "log.txt").exists())
    until(lambda: not (daemon.state / "datasets" / ".tmp-gone").exists())
    assert [path.name for path in (daemon.state / "datasets").iterdir()] == [data]
    assert not (daemon.state / "jobs" / ".removed-0001-gone").exists()


def test_what_is_removed_while_the_daemon_puts_its_folder_in_order_stays_removed(new_daemon) -> None:
    daemon = new_daemon().start()
    data = daemon.dataset("data")
    daemon.stop()
    for number in range(500):  # removals that were cut short: looking at them takes a while
        (daemon.state / "jobs" / f".removed-{number:08x}-gone").mkdir()
    for number in range(10_000):  # so does deleting this one
        (daemon.state / "datasets" / data / str(number)).touch()
    daemon.start(answer=False)
    daemon.ask(wire.RemoveDataset(name=data))  # the first request of all
    with pytest.raises(Unknown):
        daemon.ask(wire.GetDataset(name=data))
    until(lambda: not list((daemon.state / "jobs").glob(".removed-*")))
    assert not list((daemon.state / "datasets").iterdir())


class Submitter(threading.Thread):
    """Submits as fast as it can with keys of its own, and records what was acknowledged."""

    def __init__(self, context: zmq.Context, url: str, number: int, acknowledged: dict[str, str]) -> None:
        super().__init__()
        self.context, self.url, self.number, self.acknowledged = context, url, number, acknowledged
        self.stopped = threading.Event()

    def run(self) -> None:
        connection = Connection(self.context, self.url)
        count = 0
        while not self.stopped.is_set():
            key = f"{self.number}-{count}"
            spec = TrainSpec(algorithm="anything", dataset="data", steps=count + 1)
            try:
                reply = connection.ask(wire.Submit(spec=spec, key=key), seconds=0.2)
            except TimeoutError:
                continue  # not acknowledged: the same again under the same key
            self.acknowledged[key] = reply.job
            count += 1
        connection.socket.close()


def test_nothing_acknowledged_is_lost_when_the_daemon_is_killed_at_any_moment(new_daemon) -> None:
    daemon = new_daemon("[slots]\ntrain = 0\n").start()
    daemon.dataset("data")
    acknowledged: dict[str, str] = {}
    moments = random.Random(7)
    for round_ in range(10):
        submitters = [Submitter(daemon.context, daemon.url, 10 * round_ + number, acknowledged) for number in range(2)]
        before = len(acknowledged)
        for submitter in submitters:
            submitter.start()
        until(lambda before=before: len(acknowledged) > before)
        threading.Event().wait(moments.uniform(0.0, 0.1))  # the moment: at random, not waited for anything
        daemon.kill()
        for submitter in submitters:
            submitter.stopped.set()
        daemon.start()
        for submitter in submitters:
            submitter.join()
    jobs = daemon.ask(wire.ListJobs(kind="train", limit=10_000)).jobs
    assert len(acknowledged) >= 20
    assert set(acknowledged.values()) <= {job.job for job in jobs}
    for key, job in acknowledged.items():
        assert daemon.job(job).steps == int(key.partition("-")[2]) + 1
        again = daemon.ask(wire.Submit(spec=TrainSpec(algorithm="anything", dataset="data", steps=daemon.job(job).steps), key=key))
        assert (again.job, again.created) == (job, False)
    assert len(daemon.ask(wire.ListJobs(kind="train", limit=10_000)).jobs) == len(jobs)
    for job in jobs:
        assert [event.n for event in daemon.events(job.job)] == [1]
    with pytest.raises(Conflict, match="another specification"):
        daemon.ask(wire.Submit(spec=TrainSpec(algorithm="anything", dataset="data", steps=999), key=next(iter(acknowledged))))


@pytest.mark.parametrize("damage", ["not a database", "a newer version"])
def test_a_state_folder_that_cannot_be_read_is_refused_and_left_as_it_is(new_daemon, damage: str) -> None:
    daemon = new_daemon()
    path: Path = daemon.state / "queue.sqlite"
    if damage == "not a database":
        path.write_bytes(b"something else" * 1000)
    else:
        daemon.start()
        daemon.stop()
        with sqlite3.connect(path) as db:
            db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
        db.close()
    before = path.read_bytes()
    status, lines = daemon.refused()
    assert status in (1, 2)
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert path.read_bytes() == before
