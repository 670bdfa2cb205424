"""Retention: which ended jobs are deleted, which never, and what a full quota refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from daemon_harness import Clock, Daemon, until

from offrl import wire
from offrl.errors import Conflict, DiskFull, Unknown
from offrl.job import ImportSpec
from offrld import disk_usage

LONG = 10**6


def ended(daemon: Daemon, data: str, count: int) -> list[str]:
    jobs = []
    for _ in range(count):
        jobs.append(daemon.train(data))
        daemon.wait(jobs[-1])
    return jobs


def names(told: wire.Pruned) -> list[str]:
    return [each.job for each in told.jobs]


def known(daemon: Daemon, jobs: list[str]) -> list[str]:
    """Those of the jobs that the queue knows."""
    every = {info.job for info in daemon.ask(wire.ListJobs(kind="all", limit=10_000)).jobs}
    return [job for job in jobs if job in every]


def there(daemon: Daemon, jobs: list[str]) -> list[str]:
    """The same; their folders are there, those of the others not."""
    found = known(daemon, jobs)
    assert [job for job in jobs if (daemon.state / "jobs" / job).exists()] == found
    return found


def audited(daemon: Daemon) -> list[dict]:
    return [entry for entry in daemon.ask(wire.ReadAudit()).entries if entry["action"] in ("retention", "prune")]


def test_prune_lists_and_deletes_old_jobs_and_never_a_needed_one(new_daemon) -> None:
    daemon = new_daemon("[slots]\ntrain = 2\n").start()
    data = daemon.dataset("data")
    jobs = ended(daemon, data, 5)
    daemon.control(jobs[0], "pin")
    # A job that has not ended takes the second one's checkpoint.
    spec = {"behaviour": "slow", "policy": jobs[1]}
    taker = daemon.train(data, algorithm="taker", config=spec, steps=LONG)
    daemon.wait(taker, "running")
    files = {path: path.read_bytes() for job in jobs[3:] for path in (daemon.state / "jobs" / job).rglob("*") if path.is_file()}

    listed = daemon.ask(wire.Prune(jobs=2, dry_run=True))
    assert names(listed) == [jobs[2]]
    assert (listed.jobs[0].why, listed.jobs[0].algorithm) == ("2 train jobs ended after it", "anything")
    assert listed.jobs[0].bytes == disk_usage.usage(daemon.state / "jobs" / jobs[2]) > 0
    assert there(daemon, jobs) == jobs
    assert audited(daemon) == []

    assert names(daemon.ask(wire.Prune(jobs=2))) == [jobs[2]]
    assert there(daemon, jobs) == [jobs[0], jobs[1], jobs[3], jobs[4]]
    entries = audited(daemon)
    assert [(entry["action"], entry.get("job"), entry["caller"]) for entry in entries] == [
        ("retention", jobs[2], "local"),
        ("prune", None, "local"),
    ]
    assert f"job {jobs[2]}: deleted by retention" in daemon.output.read_text()
    assert files == {path: path.read_bytes() for path in files}  # nothing of a kept job
    assert daemon.ask(wire.GetDataset(name=data)).episodes == 1

    daemon.control(taker, "cancel")
    daemon.wait(taker)
    daemon.control(jobs[0], "unpin")
    assert names(daemon.ask(wire.Prune(jobs=1))) == [jobs[0], jobs[1], jobs[3], jobs[4]]
    assert there(daemon, [*jobs, taker]) == [taker]


def test_a_pinned_job_is_not_removed(daemon) -> None:
    job = daemon.train(daemon.dataset("retention-pinned"))
    daemon.wait(job)
    assert daemon.control(job, "pin").pinned
    with pytest.raises(Conflict, match=f"job {job} is pinned"):
        daemon.control(job, "remove")
    daemon.control(job, "unpin")
    daemon.control(job, "remove")
    with pytest.raises(Unknown):
        daemon.job(job)


def test_a_daemon_deletes_by_age_and_number_by_itself(new_daemon, tmp_path: Path) -> None:
    daemon, clock = new_daemon("[keep]\njobs = 2\ndays = 7\n"), Clock(tmp_path / "clock")
    daemon.start("--clock", str(clock.path))
    data = daemon.dataset("data")
    jobs = ended(daemon, data, 3)
    daemon.stop()
    daemon.start("--clock", str(clock.path))  # it looks at its start, then every minute
    until(lambda: known(daemon, jobs) == jobs[1:])
    daemon.stop()
    clock.set(8 * 86400)
    daemon.start("--clock", str(clock.path))
    until(lambda: known(daemon, jobs) == [])
    until(lambda: {entry["job"] for entry in audited(daemon)} >= set(jobs))
    assert there(daemon, jobs) == []
    assert {entry["caller"] for entry in audited(daemon)} == {"offrld"}
    assert "ended more than 7 days ago" in {entry["why"] for entry in audited(daemon)}
    assert daemon.wait(daemon.train(data)).state == "succeeded"  # the dataset is there


def test_a_full_quota_refuses_new_jobs_and_uploads_and_says_so(new_daemon) -> None:
    daemon = new_daemon("[disk]\nquota_bytes = 30000000\n").start()
    data = daemon.dataset("data")
    job = daemon.train(data)
    daemon.wait(job)
    entry = wire.FileEntry(path="a", size=40_000_000, sha256="0" * 64)
    with pytest.raises(DiskFull, match=r"40000000 more are wanted, disk.quota_bytes = 30000000"):
        daemon.ask(wire.OpenUpload(upload="too-large", files=[entry]))
    fits = wire.FileEntry(path="a", size=20_000_000, sha256="0" * 64)
    daemon.ask(wire.OpenUpload(upload="fits", files=[fits]))
    with pytest.raises(DiskFull, match="20000000 more"):  # what the first has yet to bring counts
        daemon.ask(wire.OpenUpload(upload="another", files=[fits]))
    daemon.ask(wire.OpenUpload(upload="fits", files=[fits]))  # one that was begun goes on

    ballast = daemon.state / "jobs" / job / "ballast"
    ballast.write_bytes(os.urandom(31_000_000))

    until(lambda: quota(daemon) == "fail")  # a measurement serves for a while
    with pytest.raises(DiskFull, match=r"disk\.quota_bytes = 30000000"):
        daemon.train(data)
    with pytest.raises(DiskFull):
        daemon.ask(wire.Submit(spec=ImportSpec(dataset="another", upload="fits")))
    assert daemon.ask(wire.OpenArtifact(job=job, kind="checkpoint")).ready  # what is there can be had
    daemon.control(job, "remove")
    until(lambda: quota(daemon) == "ok")
    assert daemon.wait(daemon.train(data)).state == "succeeded"


def quota(daemon: Daemon) -> str:
    return {check.name: check.status for check in daemon.ask(wire.Checkup()).checks}["quota"]


def test_retention_makes_room_before_a_quota_refuses(new_daemon) -> None:
    daemon = new_daemon("[disk]\nquota_bytes = 30000000\n[keep]\njobs = 1\n").start()
    data = daemon.dataset("data")
    first, _second = ended(daemon, data, 2)
    (daemon.state / "jobs" / first / "ballast").write_bytes(os.urandom(31_000_000))

    until(lambda: quota(daemon) == "fail")
    assert daemon.wait(daemon.train(data)).state == "succeeded"
    assert there(daemon, [first]) == []


def test_the_size_of_the_folder_is_the_space_that_it_uses_on_disk(tmp_path: Path) -> None:
    empty = disk_usage.usage(tmp_path)
    (tmp_path / "data").write_bytes(os.urandom(1_000_000))
    os.link(tmp_path / "data", tmp_path / "again")
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "gone").symlink_to("/")
    assert 1_000_000 <= disk_usage.usage(tmp_path) - empty < 1_100_000
