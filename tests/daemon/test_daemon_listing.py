"""The list of jobs, which is kept encoded: after every change it shows each job exactly as a single look at the job does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from queue_database import do

from offrl import wire
from offrl.job import ImportSpec, TrainSpec
from offrld.daemon import queue
from offrld.daemon.config import Limits, Retry
from offrld.daemon.queue import events, job_record
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.outcome import Exit
from offrld.daemon.queue.views import job_info
from offrld.daemon.queue.views.job_list import ROUND, Listing

LIMITS = Limits(running_per_owner=2)


@pytest.fixture
def db(db: Connection) -> Connection:
    db.execute("INSERT INTO datasets VALUES ('data', '{}', '0:1:ab', 'x', 0.0)")
    return db


def submit(db: Connection, owner: str = "local", **fields) -> str:
    return do(db, queue.submit, TrainSpec(algorithm="x", dataset="data", seeds=[3, 4]), owner=owner, **fields)[0]


def listed(listing: Listing, db: Connection, kind: str | None = None, limit: int = 1000) -> wire.JobList:
    return wire.decode_reply(wire.encode_reply(do(db, listing.make, kind, limit, LIMITS)), wire.JobList)


def fresh(db: Connection) -> list[wire.JobInfo]:
    """Return all jobs, each read by itself."""
    ids = [row[0] for row in db.execute("SELECT id FROM jobs ORDER BY seq")]
    return [job_info.info(db, job, LIMITS).model_copy(update={"spec": {}}) for job in ids]


def test_a_list_is_up_to_date_after_every_change(db: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    listing, jobs = Listing(), [submit(db) for _ in range(4)]
    path = tmp_path / "events.jsonl"

    def claim() -> str:
        return do(db, queue.claim, "train", most=2).id

    def progress() -> None:
        metrics = {"loss": {"3": float("nan"), "4": 0.25}, "naïve\n": {"3": 1e300}}
        path.write_text(json.dumps({"type": "progress", "step": 7, "updates_per_second": 1.5, "eta_s": 2.0, "metrics": metrics}) + "\n")
        assert not do(db, events.take_over, job_record.find(db, jobs[0]), path)[1]

    def end(job: str, how: Exit, **fields) -> None:
        do(db, queue.finish, job, job_record.find(db, job).attempt, tmp_path / "nothing", how, **fields)

    def later(seconds: float) -> None:
        nonlocal now
        now += seconds

    changes: list[Callable[[], object]] = [
        claim,
        claim,  # the others wait: their owner has as many as may run
        progress,
        lambda: do(db, queue.control, jobs[2], "pin"),
        lambda: do(db, queue.control, jobs[2], "unpin"),
        lambda: do(db, queue.control, jobs[2], "pause"),
        lambda: do(db, queue.control, jobs[2], "resume", 5000),  # with more steps
        lambda: do(db, queue.control, jobs[0], "cancel"),  # cancelling
        lambda: end(jobs[0], Exit(0, last_line=b'{"type":"end","state":"cancelled"}')),
        lambda: end(jobs[1], Exit(-9), retry=Retry()),  # tried again after a while, which is counted down
        lambda: later(5.0),
        lambda: later(50.0),
        lambda: do(db, queue.pause, "arm1", "a new belt\n"),
        lambda: do(db, queue.control, jobs[3], "start"),  # although the queue is paused
        lambda: do(db, queue.resume),
        lambda: submit(db, "arm2", after=[jobs[3]], start_at=now + 10, priority=5),
        lambda: later(20.0),
        lambda: do(db, queue.control, jobs[3], "cancel"),  # and so the one that waits for it fails
        lambda: do(db, queue.remove, jobs[0]),
        lambda: submit(db, "arm3", key="k"),
    ]
    before = fresh(db)
    assert listed(listing, db).model_dump_json() == wire.JobList(jobs=before).model_dump_json()
    for number, change in enumerate(changes):
        change()
        now_so = fresh(db)
        assert listed(listing, db).model_dump_json() == wire.JobList(jobs=now_so).model_dump_json(), f"change {number}"
        assert now_so != before, f"change {number} changes nothing"
        before = now_so


def test_a_list_has_the_newest_of_its_kind_and_counts_the_others(db: Connection) -> None:
    listing = Listing()
    assert listed(listing, db) == wire.JobList(jobs=[])
    jobs = [submit(db) for _ in range(5)]
    imported = do(db, queue.submit, ImportSpec(dataset="new", path="/x"), owner="local")[0]
    for _ in range(2 * ROUND + 1):  # what is kept is dropped and made again on the way
        assert [job.job for job in listed(listing, db).jobs] == jobs
        few = listed(listing, db, "train", 2)
        assert ([job.job for job in few.jobs], few.left_off) == (jobs[3:], 3)
    assert [job.job for job in listed(listing, db, "import").jobs] == [imported]
    assert [job.job for job in listed(listing, db, "all").jobs] == [*jobs, imported]
    do(db, queue.control, imported, "cancel")
    do(db, queue.remove, imported)
    for _ in range(2 * ROUND):
        listed(listing, db, "import")
    assert not listing._entries and not listing._before  # nothing is kept of what nobody asks for


def test_a_list_that_does_not_fit_into_a_message_leaves_off_the_oldest(db: Connection) -> None:
    jobs = [submit(db, after=[]) for _ in range(12)]
    for job in jobs:
        db.execute("UPDATE jobs SET reason = ?, state = 'failed' WHERE id = ?", ("é" * 60_000, job))
    answer = do(db, Listing().make, None, 1000, LIMITS)
    assert len(answer.body) <= wire.MAX_MESSAGE
    found = wire.decode_reply(answer.body, wire.JobList)
    assert [job.job for job in found.jobs] == jobs[-8:]
    assert found.left_off == 4
