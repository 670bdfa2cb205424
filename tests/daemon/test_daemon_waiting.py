"""What a queued job waits for, besides other jobs: a time, the end of a pause, its next attempt, its owner's turn."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_harness import Clock, until
from queue_database import do

from offrl import wire
from offrl.errors import InvalidInput, LimitReached
from offrl.job import TrainSpec
from offrld.daemon import queue
from offrld.daemon.config import Limits, Retry
from offrld.daemon.queue import events, job_record
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.outcome import Exit
from offrld.daemon.queue.views import job_info

LONG = 10**6  # steps of a job that is ended by the test


@pytest.fixture
def db(db: Connection) -> Connection:
    db.execute("INSERT INTO datasets VALUES ('data', '{}', '0:1:ab', 'x', 0.0)")
    return db


def submit(db: Connection, owner: str = "local", **fields) -> str:
    return do(db, queue.submit, TrainSpec(algorithm="x", dataset="data"), owner=owner, **fields)[0]


def claim(db: Connection, **fields) -> str | None:
    job = do(db, queue.claim, "train", **fields)
    return None if job is None else job.id


def end(db: Connection, job: str, tmp_path: Path, how: Exit = Exit(0, last_line=b'{"type":"end","state":"succeeded"}'), **fields):
    return do(db, queue.finish, job, job_record.find(db, job).attempt, tmp_path / "nothing", how, **fields)


def at(monkeypatch: pytest.MonkeyPatch, offset: float, real: Callable[[], float] = time.time) -> None:
    """Shift the clock by this number of seconds."""
    monkeypatch.setattr(time, "time", lambda: real() + offset)


# --------------------------------------------------------------------------------------------------------------------- a time
def test_a_job_with_a_start_time_waits_for_it_and_says_so(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.time() + 100
    job, other = submit(db, start_at=start, priority=5), submit(db)
    told = job_info.info(db, job)
    assert told.start_at == start
    assert told.reason == f"starts at {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(start))} UTC"
    assert queue.next_start(db) == start
    assert claim(db) == other
    assert claim(db) is None
    at(monkeypatch, 101)
    assert job_info.info(db, job).reason == ""
    assert queue.next_start(db) is None
    assert queue.next_start(db, since=start - 1) == start  # its time came after the claim: nobody has seen it yet
    assert claim(db) == job


def test_a_scheduled_start_survives_a_restart_and_a_jump_of_the_clock(new_daemon, tmp_path: Path) -> None:
    daemon, clock = new_daemon(), Clock(tmp_path / "clock")
    daemon.start("--clock", str(clock.path))
    data = daemon.dataset("data")
    job = daemon.train(data, start_in_s=3600)
    soon = daemon.train(data, start_in_s=0.5)
    assert daemon.job(job).start_at == pytest.approx(time.time() + 3600, abs=60)
    assert daemon.wait(soon).state == "succeeded"
    daemon.kill()
    daemon.start("--clock", str(clock.path))
    assert daemon.job(job).reason.startswith("starts at ")
    clock.set(-86400)  # back by a day: it waits a day longer, as the clock says
    daemon.wait(daemon.train(data))
    assert daemon.job(job).state == "queued"
    clock.set(3601)
    assert daemon.wait(job).state == "succeeded"
    with pytest.raises(InvalidInput, match="both start_at and start_in_s"):
        daemon.train(data, start_at=1.0, start_in_s=1.0)


# ------------------------------------------------------------------------------------------------------------ the whole queue
def test_a_paused_queue_starts_nothing_until_it_is_resumed(new_daemon) -> None:
    daemon = new_daemon("[slots]\ntrain = 3\n").start()
    data = daemon.dataset("data")
    before = daemon.train(data, "slow", steps=30)
    daemon.wait(before, "running")
    told = daemon.ask(wire.ControlQueue(action="pause", reason="new  disk"))
    assert (told.paused.by, told.paused.reason) == ("local", "new disk")
    job, other = daemon.train(data), daemon.import_("more")
    assert daemon.wait(before).state == "succeeded"  # what runs goes on
    daemon.ask(wire.ControlQueue(action="pause", reason="again"))  # no error, and the first reason stays
    daemon.kill()
    daemon.start()
    assert daemon.job(job).reason == daemon.job(other).reason == "the queue is paused by local: new disk"
    assert daemon.ask(wire.Overview()).paused == told.paused
    found = {check.name: check for check in daemon.ask(wire.Checkup()).checks}
    assert (found["queue"].status, found["queue"].hint) == ("warn", "`offrl queue resume`")
    assert "new disk; 2 queued" in found["queue"].message

    forced = daemon.train(data)
    assert daemon.control(forced, "start").reason == ""
    assert daemon.wait(forced).state == "succeeded"  # somebody started it
    assert {daemon.job(job).attempt, daemon.job(other).attempt} == {0}
    info = daemon.ask(wire.ControlQueue(action="resume"))
    assert info.paused is None
    assert info.owners["local"]["queued"] == 2
    assert daemon.wait(job).state == daemon.wait(other).state == "succeeded"
    assert daemon.ask(wire.GetQueue()).counts == {"queued": 0, "running": 0, "paused": 0}


def test_a_started_job_runs_before_its_time_and_before_all_others(db: Connection) -> None:
    first, later = submit(db, priority=9), submit(db, start_at=time.time() + 1000)
    assert do(db, queue.control, later, "start")[0].start_at is None
    paused = submit(db)
    do(db, queue.control, paused, "pause")
    do(db, queue.control, paused, "start")
    assert [claim(db) for _ in range(3)] == [later, paused, first]


# ------------------------------------------------------------------------------------------------------------------- attempts
CRASH = Exit(3, log_line="the roof is on fire")
RETRY = Retry(attempts=3, first_s=20, factor=4, max_s=60, reset_s=3600)


def test_a_crash_is_retried_after_growing_waits(db: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit(db)
    assert claim(db) == job
    told = end(db, job, tmp_path, CRASH, retry=RETRY)
    assert (told.state, told.error["code"]) == ("queued", "worker_crashed")
    why = "the worker ended with exit status 3 without a result: the roof is on fire"
    assert job_info.info(db, job).reason == f"attempt 2 of 3 in 20 s: {why}"
    assert events.after(db, job, 0, 100)[0][-1].message == f"attempt 2 of 3 in 20 s: {why}"
    assert claim(db, longest_retry_s=60) is None
    at(monkeypatch, 21)
    assert job_info.info(db, job).reason == f"attempt 2 of 3: {why}"
    assert claim(db, longest_retry_s=60) == job
    assert job_record.find(db, job).error is None
    end(db, job, tmp_path, CRASH, retry=RETRY)
    assert job_info.info(db, job).reason.startswith("attempt 3 of 3 in 60 s")  # not 80: max_s
    at(monkeypatch, 100)
    assert claim(db, longest_retry_s=60) == job
    told = end(db, job, tmp_path, CRASH, retry=RETRY)
    assert (told.state, told.reason) == ("failed", f"{why} (attempt 3 of 3)")
    assert told.crashes == 0


@pytest.mark.parametrize(
    ("how", "again"),
    [
        (Exit(-9), True),
        (Exit(-9, oom=True), True),
        (Exit(-9, silent="for 600 s"), True),
        (Exit(-11), True),
        (Exit(0, last_line=b'{"type":"end","state":"failed","error":{"code":"out_of_memory","message":"m","hint":""}}'), True),
        (Exit(0, last_line=b'{"type":"end","state":"failed","error":{"code":"invalid_input","message":"m","hint":""}}'), False),
        (Exit(0, last_line=b'{"type":"end","state":"failed","error":{"code":"diverged","message":"m","hint":""}}'), False),
        (Exit(0, last_line=b'{"type":"end","state":"failed","error":{"code":"internal","message":"m","hint":""}}'), False),
    ],
)
def test_only_failures_that_may_pass_are_retried(db: Connection, tmp_path: Path, how: Exit, again: bool) -> None:
    job = submit(db)
    claim(db)
    assert end(db, job, tmp_path, how, retry=RETRY).state == ("queued" if again else "failed")


def test_a_long_attempt_resets_the_count_of_crashes_and_a_stop_keeps_it(
    db: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(db)
    retry = Retry(attempts=3, first_s=0, reset_s=50)
    for _ in range(2):
        claim(db)
        assert end(db, job, tmp_path, CRASH, retry=retry).state == "queued"
    claim(db)
    assert end(db, job, tmp_path, Exit(lost=True), retry=retry).crashes == 2  # the daemon stopped
    claim(db)
    at(monkeypatch, 51)
    assert end(db, job, tmp_path, CRASH, retry=retry).crashes == 1


def test_what_users_do_to_a_job_that_waits_for_its_next_attempt(db: Connection, tmp_path: Path) -> None:
    for action, state in (("retry", "queued"), ("cancel", "cancelled"), ("pause", "paused"), ("start", "queued")):
        job = submit(db)
        claim(db)
        end(db, job, tmp_path, CRASH, retry=RETRY)
        told, _ = do(db, queue.control, job, action)
        assert (told.state, told.retry_at) == (state, None)
        if state == "queued":
            assert claim(db) == job
        else:
            assert claim(db) is None
            do(db, queue.control, job, "resume" if state == "paused" else "retry")
            assert claim(db) == job


def test_a_clock_that_was_set_back_does_not_delay_a_retry_for_long(db: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit(db)
    claim(db)
    end(db, job, tmp_path, CRASH, retry=RETRY)
    at(monkeypatch, -30)
    assert claim(db, longest_retry_s=RETRY.max_s) is None  # in 50 s
    at(monkeypatch, -86400)
    assert claim(db, longest_retry_s=RETRY.max_s) == job


def test_a_daemon_retries_a_crashed_job_from_its_checkpoint_and_over_a_restart(new_daemon) -> None:
    daemon = new_daemon("[retry]\nattempts = 3\nfirst_s = 0.2\nfactor = 100\nmax_s = 600\n").start()
    data = daemon.dataset("data")
    job = daemon.train(data, "slow", steps=LONG)
    daemon.wait(job, "running")
    until(lambda: daemon.job(job).step > 3)
    os.kill(until(lambda: daemon.attempts(job))[0][1], 9)
    until(lambda: len(daemon.attempts(job)) == 2)  # by itself, after 0.2 s
    until(lambda: daemon.job(job).state == "running")
    os.kill(daemon.attempts(job)[1][1], 9)
    told = until(lambda: (info := daemon.job(job)).state == "queued" and info)
    assert told.reason.startswith("attempt 3 of 3 in ")
    assert told.reason.endswith("the worker was killed by SIGKILL") or "SIGKILL: " in told.reason
    assert told.error["code"] == "worker_killed"
    daemon.kill()
    daemon.start()
    told = daemon.job(job)
    assert (told.state, told.attempt) == ("queued", 2)
    assert told.reason.startswith("attempt 3 of 3 in ")
    messages = [event.message for event in daemon.events(job) if "attempt" in event.message]
    assert [message.partition(":")[0] for message in messages] == ["attempt 2 of 3 in 0.2 s", "attempt 3 of 3 in 20 s"]
    daemon.control(job, "retry")
    daemon.wait(job, "running")
    daemon.control(job, "cancel")
    assert daemon.wait(job).state == "cancelled"


def test_repeated_crashes_finally_fail_the_job(new_daemon) -> None:
    daemon = new_daemon("[retry]\nattempts = 3\nfirst_s = 0\n").start()
    job = daemon.train(daemon.dataset("data"), "crash")
    told = daemon.wait(job)
    assert (told.state, told.attempt) == ("failed", 3)
    assert told.reason.endswith("the roof is on fire (attempt 3 of 3)")
    assert "the roof is on fire" in told.error["log"]


# --------------------------------------------------------------------------------------------------------------------- owners
def test_unfinished_jobs_are_limited_by_owner_and_in_total(db: Connection) -> None:
    limits = Limits(unfinished=3, unfinished_per_owner=2)
    first = submit(db, "arm1", limits=limits)
    submit(db, "arm1", limits=limits)
    with pytest.raises(LimitReached, match=r"'arm1' has 2 unfinished jobs, as many as limits.unfinished_per_owner = 2 allows"):
        submit(db, "arm1", limits=limits)
    submit(db, "arm2", limits=limits)
    with pytest.raises(LimitReached, match=r"the queue has 3 unfinished jobs, as many as limits.unfinished = 3 allows"):
        submit(db, "arm2", limits=limits)
    do(db, queue.control, first, "cancel")
    submit(db, "arm1", limits=limits)


def test_a_repeated_submission_is_found_even_at_the_limit(db: Connection) -> None:
    limits = Limits(unfinished=1)
    job = submit(db, key="k", limits=limits)
    assert submit(db, key="k", limits=limits) == job


def test_running_jobs_of_an_owner_are_limited_and_the_reason_names_the_setting(db: Connection, tmp_path: Path) -> None:
    limits = Limits(running_per_owner=2)
    jobs = [submit(db, "arm1") for _ in range(4)]
    other = submit(db, "arm2", priority=-1)
    assert [claim(db, most=2) for _ in range(4)] == [jobs[0], jobs[1], other, None]
    assert job_info.info(db, jobs[2], limits).reason == "'arm1' has 2 running, as many as limits.running_per_owner = 2 allows"
    end(db, jobs[1], tmp_path)
    assert claim(db, most=2) == jobs[2]


def test_owners_of_one_priority_take_turns(db: Connection, tmp_path: Path) -> None:
    mine = [submit(db, "arm1") for _ in range(4)]
    yours = [submit(db, "arm2") for _ in range(2)]
    urgent = submit(db, "arm1", priority=1)
    order = []
    while (job := claim(db)) is not None:  # one place
        order.append(job)
        end(db, job, tmp_path)
    assert order == [urgent, yours[0], mine[0], yours[1], mine[1], mine[2], mine[3]]

    mine, yours = [submit(db, "arm1") for _ in range(3)], [submit(db, "arm2") for _ in range(3)]
    started = [claim(db) for _ in range(4)]  # four places at once: two each
    assert sorted(started) == sorted([*mine[:2], *yours[:2]])
    end(db, mine[0], tmp_path)
    end(db, mine[1], tmp_path)
    assert [claim(db), claim(db)] == [mine[2], yours[2]]


def test_the_order_that_top_shows_is_the_order_of_the_starts(db: Connection, tmp_path: Path) -> None:
    for owner in ("arm1", "arm1", "arm2", "arm1", "arm2", "arm3"):
        submit(db, owner)
    shown = [db.execute("SELECT id FROM jobs WHERE seq = ?", (seq,)).fetchone()[0] for seq in queue.order(db, "train")]
    order = []
    while (job := claim(db)) is not None:
        order.append(job)
        end(db, job, tmp_path)
    assert order == shown


def test_a_daemon_enforces_the_limits_of_its_settings(new_daemon) -> None:
    daemon = new_daemon("[slots]\ntrain = 4\n[devices]\nthreads = 8\n[limits]\nunfinished_per_owner = 3\nrunning_per_owner = 1\n").start()
    data = daemon.dataset("data")
    first = daemon.train(data, "slow", steps=LONG)
    daemon.wait(first, "running")
    second = daemon.train(data)
    assert daemon.job(second).reason == "'local' has 1 running, as many as limits.running_per_owner = 1 allows"
    daemon.train(data)
    with pytest.raises(LimitReached, match=r"limits\.unfinished_per_owner = 3"):
        daemon.train(data)
    daemon.control(first, "cancel")
    assert daemon.wait(second).state == "succeeded"
