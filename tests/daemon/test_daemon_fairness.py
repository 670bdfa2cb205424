"""Fairness: limits on every way into the queue, lists of any size in parts, datasets with owners, no long transactions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from daemon_harness import Daemon, until
from queue_database import do

from offrl import Client, message, wire
from offrl.errors import Conflict, LimitReached, NotAllowed, Unknown
from offrl.job import CollectSpec
from offrl.wire import DatasetInfo
from offrld.daemon import queue
from offrld.daemon.access import roles
from offrld.daemon.access.caller import Caller
from offrld.daemon.config import Limits
from offrld.daemon.passes import Passes, forever
from offrld.daemon.queue import dataset_rows, datasets, fitting
from offrld.daemon.queue.control import PART
from offrld.daemon.queue.database import Connection, connect
from offrld.daemon.queue.job_record import find
from offrld.daemon.queue.views.job_list import Listing
from offrld.state.folder import StateFolder

ARM1, ARM2, BOSS = Caller("arm1", "submitter"), Caller("arm2", "submitter"), Caller("boss", "operator")


def dataset(name: str, **fields: object) -> DatasetInfo:
    values = {"episodes": 1, "transitions": 2, "bytes": 3, "fields": {}, "snapshot": "0:1:ab", "returns": {}, **fields}
    return DatasetInfo.model_validate({"name": name, **values})


def keep(db: Connection, name: str, owner: str | None = "arm1", **fields: object) -> None:
    dataset_rows.keep(db, dataset(name, **fields), "job", owner, 0.0)


# --------------------------------------------------------------------------------------------------------------------- limits
@pytest.mark.parametrize("action", ["retry", "extend"])
def test_a_job_that_is_queued_again_counts_for_its_owner(db: Connection, action: str) -> None:
    keep(db, "data")
    limits = Limits(unfinished_per_owner=2)
    spec = CollectSpec(env="CartPole-v1", dataset="steps", steps=10)
    ended = []
    for _ in range(3):
        job = do(db, queue.submit, spec, owner="arm1", limits=limits)[0]
        if action == "retry":
            do(db, queue.control, job, "cancel")
        else:
            db.execute("UPDATE jobs SET state = 'succeeded', step = 10 WHERE id = ?", (job,))
        ended.append(job)
    how = ("retry", None) if action == "retry" else ("resume", 20)
    for job in ended[:2]:
        do(db, queue.control, job, *how, limits)
    with pytest.raises(LimitReached, match="'arm1' has 2 unfinished jobs"):
        do(db, queue.control, ended[2], *how, limits)
    states = [row[0] for row in db.execute("SELECT state FROM jobs ORDER BY seq")]
    assert states.count("queued") == 2, states
    do(db, queue.control, ended[0], "pause", None, limits)  # what is in the queue is counted, and may change
    do(db, queue.control, ended[0], "resume", None, limits)
    do(db, queue.submit, spec, owner="arm2", limits=limits)


def test_a_full_queue_still_takes_the_jobs_of_those_who_have_less_than_their_share(db: Connection) -> None:
    spec, limits = CollectSpec(env="CartPole-v1", dataset="steps", steps=10), Limits(unfinished=6)
    for _ in range(6):
        do(db, queue.submit, spec, owner="arm1", limits=limits)
    for _ in range(3):  # half of 6
        do(db, queue.submit, spec, owner="arm2", limits=limits)
    do(db, queue.submit, spec, owner="arm3", limits=limits)
    for owner, count in (("arm1", 6), ("arm2", 3)):
        with pytest.raises(LimitReached, match=f"'{owner}' has {count} of them, its share"):
            do(db, queue.submit, spec, owner=owner, limits=limits)


def test_only_an_operator_starts_jobs_while_the_queue_is_paused(db: Connection) -> None:
    job = do(db, queue.submit, CollectSpec(env="CartPole-v1", dataset="steps", steps=10), owner="arm1")[0]
    do(db, queue.control, job, "start", operator=False)
    do(db, queue.pause, "boss", "maintenance")
    with pytest.raises(Conflict, match="the queue is paused by 'boss'"):
        do(db, queue.control, job, "start", operator=False)
    do(db, queue.control, job, "start", operator=True)


def test_retention_counts_each_owner_s_jobs_by_themselves(db: Connection) -> None:
    from offrld.daemon.storage import retention

    spec = CollectSpec(env="CartPole-v1", dataset="steps", steps=10)
    jobs = [do(db, queue.submit, spec, owner=owner)[0] for owner in ("arm1", *["arm2"] * 5)]
    for number, job in enumerate(jobs):
        db.execute("UPDATE jobs SET state = 'succeeded', finished_at = ? WHERE id = ?", (float(number), job))
    assert [each.job.id for each in retention.expired(db, 2, 0.0, 100)[0]] == jobs[1:4]


# ---------------------------------------------------------------------------------------------------------------------- lists
def test_a_list_of_datasets_comes_in_parts_and_cuts_large_entries(db: Connection) -> None:
    fat = {f"attribute {number}": "x" * 1000 for number in range(1200)}
    for number in range(3000):
        keep(db, f"data-{number:04d}", metadata={"note": "y" * 500})
    keep(db, "fat", metadata=fat)
    keep(db, "wide", fields={f"field {number}": {"dtype": "float32", "shape": [1]} for number in range(40_000)})
    found: list[DatasetInfo] = []
    after, parts = None, 0
    while after is not None or not parts:
        body = do(db, datasets.listing, after).body
        assert len(body) <= wire.MAX_MESSAGE
        part = wire.decode_reply(body, wire.DatasetList)
        found, after, parts = found + part.datasets, part.next, parts + 1
    assert parts > 1
    assert [info.name for info in found] == [f"data-{number:04d}" for number in range(3000)] + ["fat", "wide"]
    assert [info.trimmed for info in found[-3:]] == [[], ["metadata"], ["fields"]]
    assert found[0].metadata == {"note": "y" * 500}
    assert 0 < len(found[-2].metadata) < 1200
    for name, key in (("fat", "metadata"), ("wide", "fields")):
        whole = do(db, datasets.get, name)
        shown = fitting.dataset(whole)
        assert len(wire.encode_reply(shown)) <= wire.MAX_MESSAGE
        assert shown.trimmed == [key]
        assert len(getattr(found[-2] if name == "fat" else found[-1], key)) < len(getattr(shown, key)) < len(getattr(whole, key))


def test_metrics_of_any_number_of_seeds_fit_into_a_message() -> None:
    metrics = {f"metric {number}": {str(seed): 0.5 for seed in range(1024)} for number in range(200)}
    info = wire.JobInfo(job="j", kind="train", state="running", metrics=metrics, spec={"config": {"a": "x" * 10**6}})
    assert len(message.pack(info.model_dump())) > 2 * wire.MAX_MESSAGE
    cut = fitting.job(info)
    assert len(wire.encode_reply(cut)) <= wire.MAX_MESSAGE
    assert cut.job == "j"
    small = wire.JobInfo(job="j", kind="train", state="running", metrics={"loss": {"0": 1.0}})
    assert fitting.job(small) == small


def fill(db: Connection) -> None:
    """Queue 300 jobs that failed with a long reason, then 4,100 waiting jobs, each of another owner."""
    spec = CollectSpec(env="CartPole-v1", dataset="steps", steps=10)
    for number in range(300):
        job = queue.submit(db, spec, owner=f"owner-{number:05d}")[0]
        db.execute("UPDATE jobs SET reason = ?, state = 'failed' WHERE id = ?", ("r" * 20_000, job))
    for number in range(4100):
        queue.submit(db, spec, owner=f"owner-{number:05d}")


def test_the_client_gathers_all_parts(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon("[slots]\ntrain = 0\n").start()
    daemon.dataset("data")
    daemon.stop()
    with closing(connect(daemon.state / "queue.sqlite")) as db:
        for number in range(400):
            keep(db, f"fat-{number:03d}", metadata={"text": "x" * 20_000})
        do(db, fill)  # one transaction: each syncs the disk
    daemon.start()
    with Client(daemon.url) as client:
        assert [info.name for info in client.datasets.ls()] == ["data"] + [f"fat-{number:03d}" for number in range(400)]
        owners = client.queue().owners
        assert len(owners) == 4100
        assert len(client.jobs("collect", limit=4400)) == 4400
        assert len({job.id for job in client.jobs("collect", limit=10_000)}) == 4400
        first = daemon.ask(wire.ListJobs(kind="collect", limit=10_000))
        assert 0 < first.left_off < 4400  # what a client of before gets: the newest ones that fit
        assert client.jobs("collect", limit=3)[-1].id == first.jobs[-1].job


# ------------------------------------------------------------------------------------------------------------------- datasets
def bounded(state: StateFolder, name: str, limit: int | None) -> None:
    (state.datasets / name).mkdir(parents=True)
    (state.datasets / name / "schema.json").write_text(json.dumps({"limit": {"transitions": limit}} if limit else {}))


def test_nobody_evicts_episodes_of_another_owner_s_dataset(db: Connection, tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    for name, owner, limit in (("buffer", "arm1", 100), ("open", "arm1", None), ("old", "arm1", 100)):
        keep(db, name, owner)
        bounded(state, name, limit)
    db.execute("DELETE FROM dataset_owners WHERE name = 'old'")  # of before datasets had owners
    for name, caller, allowed in (
        ("buffer", ARM1, True),
        ("buffer", ARM2, False),
        ("buffer", BOSS, True),
        ("open", ARM2, True),
        ("old", ARM1, False),
        ("old", BOSS, True),
        ("new", ARM2, True),
    ):
        if allowed:
            roles.check_append(db, state, name, caller)
        else:
            with pytest.raises(NotAllowed, match=f"may not append to '{name}': it is bounded"):
                roles.check_append(db, state, name, caller)
    spec = CollectSpec(env="CartPole-v1", dataset="soon", steps=10, limit=100)
    do(db, queue.submit, spec, owner="arm1")
    roles.check_append(db, state, "soon", ARM1)
    with pytest.raises(NotAllowed, match="is being created by 'arm1'"):
        roles.check_append(db, state, "soon", ARM2)


# ---------------------------------------------------------------------------------------------------------------------- loops
def test_a_loop_continues_after_a_failed_pass_and_reports_lasting_trouble(caplog: pytest.LogCaptureFixture) -> None:
    passes, turns = Passes(), []

    async def work() -> None:
        turns.append(passes.report())
        if 2 <= len(turns) <= 4:
            raise FileNotFoundError(2, "gone", "uploads")

    async def main() -> None:
        task = asyncio.create_task(forever(passes, "housekeeping", work, 0.0))
        while len(turns) < 7:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    assert turns[:3] == [[], [], []]  # short waits are not reported
    assert turns[3] == ["housekeeping: 2 times in a row, [Errno 2] gone: 'uploads'"]
    assert turns[6] == []
    assert [record.message.partition(" (")[0] for record in caplog.records if record.levelname == "ERROR"] == ["housekeeping failed"]


def test_housekeeping_survives_a_folder_that_is_away_for_a_moment(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon("[uploads]\nexpire_hours = 0.00001\n").start("--housekeeping", "0.05")
    folder, away = daemon.state / "uploads", daemon.state / "away"
    folder.rename(away)
    until(lambda: "housekeeping failed" in daemon.output.read_text())
    until(lambda: "background" in {check.name for check in daemon.ask(wire.Checkup()).checks})
    away.rename(folder)
    until(lambda: "housekeeping works again" in daemon.output.read_text())
    daemon.ask(wire.OpenUpload(upload="up-1", files=[wire.FileEntry(path="a", size=10, sha256="0" * 64)]))
    until(lambda: not list(folder.iterdir()))
    assert "background" not in {check.name for check in daemon.ask(wire.Checkup()).checks}


# ------------------------------------------------------------------------------------------------------------- long transactions
def test_a_job_with_many_events_is_deleted_in_small_parts(db: Connection) -> None:
    keep(db, "data")
    spec = CollectSpec(env="CartPole-v1", dataset="steps", steps=10)
    job, other = (do(db, queue.submit, spec, owner="arm1")[0] for _ in range(2))
    do(db, queue.submit, spec, owner="arm1", after=[other])
    seq = db.execute("SELECT seq FROM jobs WHERE id = ?", (job,)).fetchone()[0]
    count = 3 * PART + 10
    db.executemany("INSERT INTO events (seq, n, body) VALUES (?, ?, '{}')", ((seq, n) for n in range(2, count + 1)))
    db.execute("UPDATE jobs SET state = 'failed', events = ? WHERE seq = ?", (count, seq))
    removed = do(db, queue.remove, job)
    assert removed.id == job
    with pytest.raises(Unknown):
        find(db, job)
    listed = wire.decode_reply(do(db, Listing().make, "all", 1000, Limits()).body, wire.JobList)
    assert job not in {info.job for info in listed.jobs}
    assert len(listed.jobs) == 2
    left, parts = count, 0
    while do(db, queue.purge):
        now = db.execute("SELECT count(*) FROM events WHERE seq = ?", (seq,)).fetchone()[0]
        assert left - now <= PART
        left, parts = now, parts + 1
    assert (left, parts) == (0, 5)  # four of events, and then the job
    assert db.execute("SELECT count(*) FROM jobs").fetchone()[0] == 2


# ------------------------------------------------------------------------------------------------------------------------ slots
def test_slots_fill_the_machine(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon("[workers]\nspare = 0\n[devices]\nthreads = 3\ncards = []\n[grace]\ncancel_s = 0.3\n").start()
    daemon.dataset("data")
    jobs = [daemon.train("data", "hang") for _ in range(5)]
    wide = daemon.train("data", "hang", threads=2, priority=5)
    for job in jobs[:3]:
        daemon.wait(job, "running")
    assert {daemon.job(job).state for job in jobs[3:]} == {"queued"}
    for job in jobs[:2]:
        daemon.control(job, "cancel")
    daemon.wait(wide, "running")  # it takes two threads: all three are in use again
    assert {daemon.job(job).state for job in jobs[3:]} == {"queued"}
    for job in [*jobs[2:], wide]:
        daemon.control(job, "cancel")
        daemon.wait(job)
