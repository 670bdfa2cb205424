"""The outcome of a job, whatever its worker does, with a real daemon and real worker processes."""

from __future__ import annotations

import os
import signal

import pytest
from daemon_harness import Daemon, alive, until

from offrl import wire
from offrl.errors import Conflict


@pytest.fixture(scope="module")
def data(daemon: Daemon) -> str:
    return daemon.dataset("supervised")


def test_a_job_runs_to_its_end_and_its_events_are_numbered_without_gaps(daemon: Daemon, data: str) -> None:
    job = daemon.train(data, steps=20, seeds=[0, 3])
    info = daemon.wait(job)
    assert (info.state, info.step, info.steps, info.attempt) == ("succeeded", 20, 20, 1)
    assert info.metrics == {"loss": {"0": 0.05, "3": 0.05}}
    assert info.finished_at >= info.started_at >= info.created_at
    events = daemon.events(job)
    assert [event.n for event in events] == list(range(1, len(events) + 1))
    assert [event.state for event in events if event.type == "state"] == ["queued", "running", "succeeded"]
    assert [event.step for event in events if event.type == "progress"] == list(range(1, 21))
    assert events[-1].type == "state"
    part = daemon.ask(wire.GetEvents(job=job, cursor=events[-1].n))
    assert (part.events, part.ended, part.cursor) == ([], True, events[-1].n)
    assert daemon.attempts(job)[0][2] == "0:1:abcd"


@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [
        ("crash", "worker_crashed", "exit status 3 without a result: the roof is on fire"),
        ("killed", "worker_killed", "killed by SIGKILL"),
        ("segfault", "worker_crashed", "killed by SIGSEGV"),
        ("memory", "out_of_memory", "out of memory: MemoryError"),
        ("bad_alloc", "out_of_memory", "out of memory: terminate called"),
        ("fail", "empty_dataset", "no transitions in it"),
    ],
)
def test_a_job_whose_worker_does_not_succeed_fails_with_the_reason(
    daemon: Daemon, data: str, behaviour: str, code: str, words: str
) -> None:
    info = daemon.wait(daemon.train(data, behaviour))
    assert info.state == "failed"
    assert info.error is not None
    assert info.error["code"] == code
    assert words in info.reason
    assert info.error["hint"]
    # The tail of the log shows what the process was doing; where the job itself is wrong, it has been said already.
    assert ("begins at step 0" in info.error.get("log", "")) == (behaviour != "fail")


def test_unknown_lines_are_skipped(daemon: Daemon, data: str) -> None:
    job = daemon.train(data, "garbage")
    assert daemon.wait(job).state == "succeeded"
    assert [event.step for event in daemon.events(job) if event.type == "progress"] == [0, 1, 2, 3]


def test_a_paused_job_continues_where_it_stopped(daemon: Daemon, data: str) -> None:
    job = daemon.train(data, "slow", steps=40)
    until(lambda: daemon.job(job).step > 2)
    daemon.control(job, "pause")
    at = daemon.wait(job, "paused").step
    assert at < 40
    pid = daemon.attempts(job)[0][1]
    until(lambda: not alive(pid))
    daemon.control(job, "pause")  # is so already
    daemon.control(job, "resume")
    assert daemon.wait(job).state == "succeeded"
    assert daemon.job(job).attempt == 2


def test_a_pause_that_is_taken_back_leaves_the_job_in_the_queue(daemon: Daemon, data: str) -> None:
    job = daemon.train(data, "slow", steps=15)
    until(lambda: daemon.job(job).step > 1)
    connection = daemon.connect()
    asked = [connection.send(wire.ControlJob(job=job, action=action)) for action in ("pause", "resume")]
    for number in asked:
        connection.receive(number, wire.JobInfo)
    connection.socket.close()
    assert daemon.wait(job).state == "succeeded"


@pytest.mark.parametrize(("action", "state"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_worker_that_ignores_a_cancel_is_killed_with_its_children(daemon: Daemon, data: str, action: str, state: str) -> None:
    job = daemon.train(data, "children")
    until(lambda: daemon.job(job).step == 1)
    pids = [daemon.attempts(job)[0][1], int((daemon.state / "jobs" / job / "child").read_text())]
    assert all(map(alive, pids))
    daemon.control(job, action)
    assert "killed" in daemon.wait(job, state).reason
    until(lambda: not any(map(alive, pids)))
    if action == "pause":
        daemon.control(job, "cancel")


def test_children_of_a_dead_worker_are_killed(daemon: Daemon, data: str) -> None:
    job = daemon.train(data, "children")
    until(lambda: daemon.job(job).step == 1)
    child = int((daemon.state / "jobs" / job / "child").read_text())
    os.kill(daemon.attempts(job)[0][1], signal.SIGKILL)
    assert "SIGKILL" in daemon.wait(job).reason
    until(lambda: not alive(child))


def test_a_running_job_is_cancelled_and_can_be_retried(daemon: Daemon, data: str) -> None:
    job = daemon.train(data, "slow", steps=30)
    until(lambda: daemon.job(job).step > 0)
    daemon.control(job, "cancel")
    assert daemon.wait(job).state == "cancelled"
    assert daemon.control(job, "cancel").state == "cancelled"
    with pytest.raises(Conflict, match="been cancelled"):
        daemon.control(job, "resume")
    daemon.control(job, "retry")
    assert daemon.wait(job).state == "succeeded"
    with pytest.raises(Conflict, match="succeeded"):
        daemon.control(job, "retry")


def test_the_log_is_followed_to_its_end(daemon: Daemon, data: str) -> None:
    job = daemon.train(data, "slow", steps=10)
    text, offset = b"", 0
    while True:
        part = daemon.ask(wire.ReadLog(job=job, offset=offset, wait_s=5))
        text, offset = text + part.data, part.offset
        if part.ended:
            break
    assert text == b"begins at step 0\n"


def test_a_removed_job_leaves_nothing(daemon: Daemon, data: str) -> None:
    running = daemon.train(data, "slow", steps=1000)
    with pytest.raises(Conflict, match=r"is (queued|running)"):
        daemon.control(running, "remove")
    daemon.control(running, "cancel")
    daemon.wait(running)
    assert daemon.control(running, "remove").job == running
    assert not (daemon.state / "jobs" / running).exists()
    assert not list((daemon.state / "jobs").glob(".removed*"))
    with pytest.raises(Exception, match="no job"):
        daemon.job(running)


def test_light_jobs_do_not_wait_behind_training(new_daemon) -> None:
    daemon = new_daemon("[slots]\ntrain = 1\n[grace]\ncancel_s = 0.2\n").start()
    data = daemon.dataset("one")
    job = daemon.train(data, "slow", steps=100_000)
    waiting = daemon.train(data)
    until(lambda: daemon.job(job).step > 0)
    daemon.dataset("two")  # passes by
    assert daemon.job(waiting).state == "queued"
    assert daemon.job(job).state == "running"
    daemon.control(job, "pause")  # frees the card for the next
    assert daemon.wait(waiting).state == "succeeded"
    daemon.control(job, "cancel")
