"""The queue on a real database file: order, dependencies, keys, states, and the lines of workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from queue_database import do

from offrl.errors import Conflict, DiskFull, InvalidInput, StoreCorrupt, Unknown
from offrl.job import ExportSpec, ImportSpec, JobState, TrainSpec
from offrld.daemon import queue
from offrld.daemon.queue import datasets, events, job_record
from offrld.daemon.queue.database import Connection, connect, translate
from offrld.daemon.queue.outcome import Exit, outcome
from offrld.daemon.queue.views import job_info


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def dataset(db: Connection, path: Path, name: str, count: int = 1) -> None:
    """Add a dataset through an import job."""
    job, _ = do(db, queue.submit, ImportSpec(dataset=name, upload=f"u-{name}"))
    claimed = do(db, queue.claim, "light")
    assert claimed.id == job
    path.write_text(
        json.dumps(
            {
                "type": "dataset",
                "time": 1.0,
                "dataset": {
                    "name": name,
                    "episodes": count,
                    "transitions": count,
                    "bytes": 1,
                    "fields": {},
                    "snapshot": f"0:{count}:ab",
                    "returns": {"mean": float("nan")},
                },
            }
        )
        + '\n{"type":"end","time":1.0,"state":"succeeded"}\n'
    )
    assert do(db, queue.finish, job, 1, path, Exit(0)).state == "succeeded"
    path.unlink()


def train(db: Connection, name: str = "data", **fields) -> str:
    request = {key: fields.pop(key) for key in ("key", "after", "priority") if key in fields}
    return do(db, queue.submit, TrainSpec(algorithm="x", dataset=name, **fields), **request)[0]


def test_jobs_are_claimed_by_priority_then_in_order(db: Connection, path: Path) -> None:
    dataset(db, path, "data")
    jobs = [train(db, priority=priority) for priority in (0, 5, 0, 5, -1)]
    order = [do(db, queue.claim, "train").id for _ in jobs]
    assert order == [jobs[1], jobs[3], jobs[0], jobs[2], jobs[4]]
    assert do(db, queue.claim, "train") is None
    assert do(db, queue.claim, "light") is None


def test_a_job_waits_for_the_success_of_others(db: Connection, path: Path) -> None:
    dataset(db, path, "data")
    first, second = train(db), train(db)
    last = train(db, after=[first, second, first], priority=9)
    claimed = [do(db, queue.claim, "train").id for _ in range(2)]
    assert claimed == [first, second]
    assert do(db, queue.claim, "train") is None
    assert do(db, job_info.info, last).reason == f"waits for {first}, {second}"
    do(db, queue.finish, first, 1, path, Exit(0, last_line=b'{"type":"end","state":"succeeded"}'))
    assert do(db, queue.claim, "train") is None
    with pytest.raises(Conflict, match=last):
        do(db, queue.remove, first)
    do(db, queue.finish, second, 1, path, Exit(0, last_line=b'{"type":"end","state":"succeeded"}'))
    assert do(db, queue.claim, "train").id == last


def test_a_paused_job_that_waits_in_vain_fails_when_it_is_resumed(db: Connection, path: Path) -> None:
    dataset(db, path, "data")
    first = train(db)
    second = train(db, after=[first])
    do(db, queue.control, second, "pause")
    do(db, queue.control, first, "cancel")
    assert job_record.find(db, second).state == "paused"
    job, tell = do(db, queue.control, second, "resume")
    assert (job.state, tell) == ("failed", "")
    assert first in job.reason


def test_imports_into_one_dataset_run_one_after_the_other(db: Connection, path: Path) -> None:
    dataset(db, path, "data")
    jobs = [do(db, queue.submit, ImportSpec(dataset="data", append=True, upload=f"u{number}"))[0] for number in range(2)]
    other, _ = do(db, queue.submit, ImportSpec(dataset="other", upload="u"))
    assert [do(db, queue.claim, "light").id for _ in range(2)] == [jobs[0], other]
    assert do(db, queue.claim, "light") is None
    follower, _ = do(db, queue.submit, ImportSpec(dataset="other", append=True, upload="u3"))
    assert job_record.find(db, follower).after == [other]
    with pytest.raises(Conflict, match="is already used by job"):
        do(db, queue.submit, ImportSpec(dataset="data", append=True, upload="u1"))


def test_a_key_names_one_job(db: Connection, path: Path) -> None:
    dataset(db, path, "data")
    spec = TrainSpec(algorithm="x", dataset="data")
    first = do(db, queue.submit, spec, key="k")
    assert do(db, queue.submit, spec, key="k") == (first[0], False)
    with pytest.raises(Conflict, match="'k'"):
        do(db, queue.submit, spec.model_copy(update={"steps": 1}), key="k")


def test_a_key_belongs_to_its_owner(db: Connection, path: Path) -> None:
    dataset(db, path, "data")
    spec, other = (TrainSpec(algorithm="x", dataset="data", steps=steps) for steps in (1, 2))
    first = do(db, queue.submit, spec, key="k", owner="arm1")
    second = do(db, queue.submit, other, key="k", owner="arm2")
    assert first[1] and second[1] and first != second
    assert do(db, queue.submit, other, key="k", owner="arm2") == (second[0], False)
    with pytest.raises(Conflict, match=first[0]):
        do(db, queue.submit, other, key="k", owner="arm1")
    old = do(db, queue.submit, spec, key="old")  # of before jobs had owners
    assert do(db, queue.submit, spec, key="old", owner="arm1") == (old[0], False)


def test_the_snapshot_is_pinned_at_submission(db: Connection, path: Path) -> None:
    dataset(db, path, "data")
    job = train(db)
    append, _ = do(db, queue.submit, ImportSpec(dataset="data", append=True, upload="more"))
    do(db, queue.claim, "light")
    line = json.dumps(
        {
            "type": "dataset",
            "dataset": {"name": "data", "episodes": 2, "transitions": 2, "bytes": 1, "fields": {}, "snapshot": "0:2:cd", "returns": {}},
        }
    )
    path.write_text(line + "\n")
    do(db, queue.progress, append, 1, path)
    assert do(db, queue.claim, "train").snapshot == "0:1:ab"
    assert do(db, queue.claim, "train") is None
    train(db)
    assert do(db, queue.claim, "train").snapshot == "0:2:cd"
    assert datasets.get(db, "data").pinned_by == [job, append, *[row.id for row in queue.running(db)][-1:]]


def test_lines_are_stored_once_and_whole(db: Connection, path: Path) -> None:
    dataset(db, path, "data")
    job = train(db, steps=10)
    do(db, queue.claim, "train")
    line = b'{"type":"progress","time":5.0,"step":%d,"steps":10,"updates_per_second":2.5,"metrics":{"loss":{"0":%d.5}}}\n'
    path.write_bytes(line % (1, 1) + (line % (2, 2))[:40])
    do(db, queue.progress, job, 1, path)
    do(db, queue.progress, job, 1, path)
    assert job_record.find(db, job).step == 1
    path.write_bytes(line % (1, 1) + line % (2, 2) + b'{"type":"progress","st\n' + b'{"type":"message","time":6.0,"message":"hello"}\n')
    do(db, queue.progress, job, 1, path)
    do(db, queue.progress, job, 7, path)  # of another attempt: nothing
    found, cursor, ended = events.after(db, job, 2, 100)
    assert [(event.n, event.type, event.step, event.message) for event in found] == [
        (3, "progress", 1, ""),
        (4, "progress", 2, ""),
        (5, "message", 0, "hello"),
    ]
    assert (cursor, ended) == (5, False)
    info = job_info.info(db, job)
    assert (info.step, info.updates_per_second, info.metrics) == (2, 2.5, {"loss": {"0": 2.5}})


def test_a_change_that_fails_leaves_nothing(db: Connection, path: Path) -> None:
    dataset(db, path, "data")
    before = list(db.iterdump())
    for spec, after in [
        (TrainSpec(algorithm="x", dataset="data"), ["nobody"]),
        (TrainSpec(algorithm="x", dataset="nothing"), []),
        (ExportSpec(job="nobody"), []),
        (ImportSpec(dataset="data", upload="u"), []),
        (ImportSpec(dataset="no", append=True), []),
    ]:
        with pytest.raises(InvalidInput):
            do(db, queue.submit, spec, after=after)
    assert list(db.iterdump()) == before


def test_the_spec_of_an_export_is_checked(db: Connection, path: Path) -> None:
    dataset(db, path, "data")
    job = train(db, seeds=[4, 7])
    with pytest.raises(InvalidInput) as caught:
        do(db, queue.submit, ExportSpec(job=job, seed=1))
    assert "4, 7" in caught.value.hint
    export, _ = do(db, queue.submit, ExportSpec(job=job, seed=7))
    do(db, queue.control, job, "cancel")
    with pytest.raises(Conflict, match=export):
        do(db, queue.remove, job)
    with pytest.raises(InvalidInput, match="kind export"):
        do(db, queue.submit, ExportSpec(job=export))


@pytest.mark.parametrize(
    ("state", "refused"),
    [
        ("queued", ["retry"]),
        ("paused", ["retry"]),
        ("succeeded", ["cancel", "pause", "resume", "retry"]),
        ("failed", ["cancel", "pause", "resume"]),
        ("cancelled", ["pause", "resume"]),
    ],
)
def test_actions_that_a_state_does_not_allow_are_refused(db: Connection, path: Path, state: str, refused: list[str]) -> None:
    dataset(db, path, "data")
    for action in ("cancel", "pause", "resume", "retry"):
        job = train(db)
        if state in ("succeeded", "failed"):
            while do(db, queue.claim, "train").id != job:
                pass
            do(db, queue.finish, job, 1, path, Exit(0, last_line=b'{"type":"end","state":"%s"}' % state.encode()))
        elif state != "queued":
            do(db, queue.control, job, {"paused": "pause", "cancelled": "cancel"}[state])
        assert job_record.find(db, job).state == state
        if action in refused:
            with pytest.raises(Conflict):
                do(db, queue.control, job, action)
            assert job_record.find(db, job).state == state
        else:
            do(db, queue.control, job, action)


END = {state: {"state": JobState(state), "error": None} for state in ("succeeded", "failed", "paused", "cancelled")}


@pytest.mark.parametrize(
    ("end", "how", "intent", "state"),
    [
        ("succeeded", Exit(0), "cancel", "succeeded"),
        ("failed", Exit(0), "", "failed"),
        ("cancelled", Exit(0), "cancel", "cancelled"),
        ("paused", Exit(0), "pause", "paused"),
        ("paused", Exit(0), "resume", "queued"),
        ("paused", Exit(0), "", "queued"),
        ("paused", Exit(0), "cancel", "cancelled"),
        ("paused", Exit(0, lost=True), "", "queued"),
        (None, Exit(-9), "", "failed"),
        (None, Exit(1), "", "failed"),
        (None, Exit(0), "", "failed"),
        (None, Exit(75), "", "queued"),
        (None, Exit(-9), "pause", "paused"),
        (None, Exit(-9), "cancel", "cancelled"),
        (None, Exit(-9), "resume", "queued"),
        (None, Exit(lost=True), "", "queued"),
        (None, Exit(lost=True), "pause", "paused"),
        (None, Exit(lost=True), "cancel", "cancelled"),
        (None, Exit(-9, lost=True), "resume", "queued"),
    ],
)
def test_the_outcome_of_a_job_whose_worker_is_gone(end: str | None, how: Exit, intent: str, state: str) -> None:
    assert outcome(END[end] if end else None, how, intent)[0] == state


def test_a_full_disk_and_a_damaged_file_give_different_errors(tmp_path: Path) -> None:
    db = connect(tmp_path / "queue.sqlite")
    db.execute("PRAGMA max_page_count = 30")
    db.execute("CREATE TABLE filler (data BLOB)")
    with pytest.raises(Exception, match="full") as caught:
        do(db, lambda db: db.execute("INSERT INTO filler VALUES (zeroblob(1000000))"))
    assert isinstance(translate(caught.value, "x"), DiskFull)
    do(db, lambda db: db.execute("SELECT count(*) FROM jobs").fetchone())
    db.close()
    (tmp_path / "other.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(StoreCorrupt, match=r"other\.sqlite"):
        connect(tmp_path / "other.sqlite")


def test_an_unknown_job_is_named_with_the_nearest(db: Connection, path: Path) -> None:
    dataset(db, path, "data")
    job = train(db)
    with pytest.raises(Unknown) as caught:
        job_record.find(db, job[:-1])
    assert job in caught.value.hint
