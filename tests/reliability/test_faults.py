"""Disks that are full or read-only, permissions that are lost, a clock that jumps, a broken database, damaged checkpoints.

Each has its message of one line, its exit status, and loses nothing. Real daemons; real workers where a worker is what is hit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from disks import SmallDisk, small_disk
from living_service import PROGRAM, Service, short_folder, until
from workload import KINDS, differences, source, weights

from offrl import Client, wire
from offrl.errors import DiskFull, InternalError, OffrlError
from offrl.job import ImportSpec

HERE = Path(__file__).resolve().parent
SETTINGS = "[workers]\nspare = 0\n[uploads]\nkeep_free_bytes = 0\n[retry]\nattempts = 1\n[devices]\ncards = []\n[slots]\ntrain = {train}\n"
OFTEN = {"OFFRLD_CHECKPOINT_SECONDS": "0"}
YEAR = 365 * 86400.0
UNPRIVILEGED = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-dac_override,-dac_read_search")


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """Prepare a state folder with a dataset, a queued job and the list of algorithms."""
    with short_folder() as folder:
        service = Service(folder, SETTINGS.format(train=0), OFTEN)
        try:
            with service.start() as client:
                client.algos()
                client.datasets.add("base", source(folder, 0))
                client.request(wire.Submit(spec=KINDS[1].spec("base", 40), key="first"))
            assert service.stop() == 0
        finally:
            service.close()
        yield folder / "state"


@pytest.fixture
def new_service(prepared: Path) -> Iterator[Callable[..., Service]]:
    """Create a service on a copy of that folder, not started yet; ``train``: train jobs at once."""
    with short_folder() as folder:
        made: list[Service] = []

        def new(disk: Path | None = None, train: int = 0, **options: object) -> Service:
            shutil.copytree(prepared, (disk or folder) / "state", dirs_exist_ok=True)
            environment = {**OFTEN, **options.pop("environment", {})}
            made.append(Service(folder, SETTINGS.format(train=train), environment, disk=disk, **options))
            return made[-1]

        new.folder = folder
        yield new
        for service in made:
            service.close()


def send(client: Client, data: bytes, upload: str = "upload-1", name: str = "data.bin") -> None:
    """Upload one file in chunks of 64 KiB."""
    entry = wire.FileEntry(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    offset = client.request(wire.OpenUpload(upload=upload, files=[entry])).received[name]
    while offset < len(data):
        part = data[offset : offset + 65536]
        request = wire.WriteChunk(upload=upload, path=name, offset=offset, data=part, crc32=zlib.crc32(part))
        offset = client.request(request).received
    client.request(wire.FinishUpload(upload=upload))


def one_line(error: OffrlError) -> str:
    """Check that the error has a message of one line and a hint; return the message."""
    assert "\n" not in str(error) and error.hint
    return str(error)


def nothing_lost(client: Client) -> None:
    """Check that everything acknowledged before the fault still exists, and that its key still names the same job."""
    assert client.datasets.show("base").episodes == 8
    assert not client.request(wire.Submit(spec=KINDS[1].spec("base", 40), key="first")).created


# ------------------------------------------------------------------------------------------------------------------------- disk
@pytest.mark.skipif(bool(SmallDisk.unavailable()), reason=SmallDisk.unavailable())
def test_on_a_full_disk_requests_report_it_and_everything_continues_once_there_is_room(new_service) -> None:
    with small_disk(new_service.folder / "disk", 16) as disk:
        service = new_service(disk.inside, program=disk.program)
        with service.start() as client:
            data = os.urandom(200_000)
            entry = wire.FileEntry(path="data.bin", size=len(data), sha256=hashlib.sha256(data).hexdigest())
            client.request(wire.OpenUpload(upload="upload-1", files=[entry]))
            disk.fill()
            with pytest.raises(DiskFull) as caught:
                send(client, data)
            assert "no space is left" in one_line(caught.value) and caught.value.exit_status == 1
            with pytest.raises(DiskFull) as caught:
                client.request(wire.Submit(spec=KINDS[0].spec("base"), key="full"))
            assert "queue.sqlite" in one_line(caught.value)
            nothing_lost(client)  # what only looks is answered all the time
            service.kill()
        with service.start() as client:  # also by a daemon that is started on the full disk
            nothing_lost(client)
            disk.free()
            send(client, data)  # from what had arrived on
            assert client.request(wire.Submit(spec=KINDS[0].spec("base"), key="full")).created
            nothing_lost(client)
        assert service.stop() == 0
        assert "Traceback" not in service.log.read_text()


@pytest.mark.slow
@pytest.mark.skipif(bool(SmallDisk.unavailable()), reason=SmallDisk.unavailable())
def test_a_job_on_a_full_disk_reports_it_and_continues_to_the_same_weights(new_service) -> None:
    folder = new_service.folder
    with small_disk(folder / "disk", 16) as disk:
        service = new_service(disk.inside, train=1, program=disk.program)
        with service.start() as client:
            job = client.request(wire.Submit(spec=KINDS[0].spec("base", 5000), priority=1)).job
            until(lambda: client.job(job).last.step > 0, "a job that runs")
            disk.fill()
            until(lambda: "cannot be recorded yet" in service.log.read_text(), "the end of its worker")
            disk.free()
            info = client.job(job).wait(120, check=False)
            assert (info.state, info.error["code"]) == ("failed", "disk_full")
            assert "\n" not in info.reason and "disk is full" in info.reason
            client.job(job).retry()
            assert client.job(job).wait(120).attempt == 2
            undisturbed = client.request(wire.Submit(spec=KINDS[0].spec("base", 5000))).job
            client.job(undisturbed).wait(120)
            assert differences(weights(client, job, folder), weights(client, undisturbed, folder)) == []
            nothing_lost(client)
        assert service.stop() == 0


@pytest.mark.skipif(bool(SmallDisk.unavailable()), reason=SmallDisk.unavailable())
def test_a_state_folder_on_a_read_only_disk_is_refused_in_one_line_and_unchanged(new_service) -> None:
    folder = new_service.folder
    with small_disk(folder / "disk", 16) as disk:
        service = new_service(disk.inside, program=disk.program)
        before = (service.state / "queue.sqlite").read_bytes()
        disk.remount("ro")
        status, lines = service.refused()
        assert (status, len(lines)) == (2, 1), lines
        assert "read-only" in lines[0].lower() and str(folder / "disk" / "state") in lines[0]
        assert (service.state / "queue.sqlite").read_bytes() == before
        disk.remount("rw")
        with service.start() as client:
            nothing_lost(client)


# ------------------------------------------------------------------------------------------------------------------ permissions
def test_a_lost_permission_is_named_and_everything_continues_once_it_is_restored(new_service) -> None:
    program = (*UNPRIVILEGED, *PROGRAM) if os.geteuid() == 0 else PROGRAM  # root may do everything unless its capabilities are dropped
    service = new_service(program=program)
    state = service.state
    with service.start() as client:
        send(client, source(new_service.folder, 5).read_bytes(), "upload-2", "data.npz")
        ended = client.request(wire.Submit(spec=KINDS[1].spec("base", 40), key="ended")).job
        client.job(ended).cancel()
        (state / "jobs" / ended).mkdir()
        for closed, act in (
            (state / "uploads", lambda: send(client, b"x" * 100)),
            (state / "jobs", lambda: client.job(ended).rm()),
        ):
            closed.chmod(0o500)
            with pytest.raises(InternalError) as caught:
                act()
            closed.chmod(0o700)
            assert "Permission denied" in one_line(caught.value) and str(closed) in str(caught.value)
        (state / "jobs").chmod(0o500)
        job = client.request(wire.Submit(spec=ImportSpec(dataset="more", upload="upload-2"))).job
        info = client.job(job).wait(60, check=False)
        (state / "jobs").chmod(0o700)
        assert info.reason == f"the worker cannot be started: {state}/jobs/{job}: Permission denied"
        client.job(job).retry()
        client.job(job).wait(120)
        send(client, b"x" * 100)
        nothing_lost(client)
    assert service.stop() == 0
    log = service.log.read_text()
    assert "Traceback" not in log, log
    for closed, mode, back in ((state / "queue.sqlite", 0o000, 0o600), (state / "datasets", 0o500, 0o700), (state, 0o500, 0o700)):
        closed.chmod(mode)
        status, lines = service.refused()
        closed.chmod(back)
        assert (status, len(lines)) == (2, 1), lines
        assert f"{closed} cannot be written by this user" in lines[0]
    (state / "offrld.toml").chmod(0o000)
    status, lines = service.refused()
    assert (status, len(lines)) == (2, 1) and "offrld.toml cannot be read" in lines[0]


# ------------------------------------------------------------------------------------------------------------------------ clock
def set_by(shift: Path, seconds: float) -> None:
    """Set the clock of processes that have the file open and read it at any moment: it is never empty or half-written."""
    descriptor = os.open(shift, os.O_WRONLY | os.O_CREAT, 0o644)
    os.pwrite(descriptor, f"{seconds:32}".encode(), 0)
    os.close(descriptor)


@pytest.mark.slow
def test_a_clock_that_jumps_by_a_year_loses_no_job_no_upload_and_no_event(new_service) -> None:
    shift = new_service.folder / "shift"
    set_by(shift, 0.0)
    path = os.pathsep.join(filter(None, [str(HERE / "clock"), os.environ.get("PYTHONPATH")]))
    service = new_service(train=1, environment={"PYTHONPATH": path, "OFFRL_TEST_CLOCK": str(shift)})
    with service.start() as client:
        data = os.urandom(100_000)
        entry = wire.FileEntry(path="data.bin", size=len(data), sha256=hashlib.sha256(data).hexdigest())
        client.request(wire.OpenUpload(upload="upload-1", files=[entry]))
        times = []
        client.jobs()[0].wait(120)
        for seconds in (YEAR, -YEAR, 0.0):
            job = client.request(wire.Submit(spec=KINDS[1].spec("base", 3000))).job
            until(lambda job=job: client.job(job).last.step > 0, "a job that runs")
            set_by(shift, seconds)
            info = client.job(job).wait(120)
            events = list(client.job(job).follow())
            assert [event.n for event in events] == list(range(1, len(events) + 1))
            assert events[-1].state == "succeeded"
            assert all(event.eta_s is None or 0 <= event.eta_s < 3600 for event in events)  # of the worker's steady clock
            times.append(info.finished_at - info.started_at)
            assert 0 <= client.overview().uptime_s < 3600
            assert client.request(wire.Prune(days=30.0, dry_run=True)).jobs == []  # no job has become older than it is
        assert [round(seconds / YEAR) for seconds in times] == [1, -2, 1]  # the clock did jump, also for the daemon
        service.kill()  # with the clock of now; then with one that is a year ahead
        set_by(shift, YEAR)
    with service.start() as client:
        send(client, data)
        nothing_lost(client)
        assert [job.last.state for job in client.jobs()][1:] == ["succeeded"] * 3
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


# --------------------------------------------------------------------------------------------------------------------- database
@pytest.mark.parametrize("damage", ["pages overwritten", "cut in half", "emptied", "not a database"])
def test_a_broken_database_is_refused_in_one_line_and_left_for_a_back_up(new_service, damage: str) -> None:
    service = new_service()
    path = service.state / "queue.sqlite"
    whole = path.read_bytes()
    broken = {
        "pages overwritten": whole[:8192] + np.random.default_rng(0).bytes(len(whole) - 8192),
        "cut in half": whole[: len(whole) // 2],
        "emptied": b"",
        "not a database": b"something else" * 1000,
    }[damage]
    path.write_bytes(broken)
    jobs = sorted((service.state / "jobs").rglob("*"))
    status, lines = service.refused()
    assert (status, len(lines)) == (1, 1), lines
    assert str(path.name) in lines[0] and "replace it with a backup" in lines[0]
    assert path.read_bytes() == broken
    assert sorted((service.state / "jobs").rglob("*")) == jobs
    path.write_bytes(whole)  # the backup
    with service.start() as client:
        nothing_lost(client)
    assert service.stop() == 0


# ------------------------------------------------------------------------------------------------------------------ checkpoints
@pytest.mark.slow
def test_after_a_damaged_checkpoint_the_one_before_is_used_and_the_weights_are_the_same(new_service) -> None:
    folder = new_service.folder
    service = new_service(train=1)
    with service.start() as client:
        straight = client.request(wire.Submit(spec=KINDS[0].spec("base", 3000))).job
        job = client.request(wire.Submit(spec=KINDS[0].spec("base", 3000))).job
        client.job(straight).wait(120)
        checkpoints = service.state / "jobs" / job / "checkpoints"
        damages = (lambda data: data[: len(data) // 2], lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
        for number, damage in enumerate(damages, 1):
            step = client.job(job).last.step
            until(lambda step=step: client.job(job).last.step > step and len(list(checkpoints.glob("0*"))) > 1, "two checkpoints")
            client.job(job).pause()
            until(lambda: client.job(job).last.state in ("paused", "succeeded"), "a paused job")
            assert client.job(job).last.state == "paused"  # it has not come to its end
            before, newest = sorted(checkpoints.glob("0*"))[-2:]
            newest.write_bytes(damage(newest.read_bytes()))
            client.job(job).resume()
            until(lambda number=number: client.job(job).log().count("skipped a damaged") == number, "a checkpoint that is skipped")
            until(lambda: "resumed from" in client.job(job).log().rpartition("skipped a damaged checkpoint")[2], "a resumed job")
            said = client.job(job).log().rpartition("skipped a damaged checkpoint")[2]
            assert newest.name in said and f"resumed from the checkpoint at step {int(before.stem)}" in said
        client.job(job).wait(120)
        assert differences(weights(client, job, folder), weights(client, straight, folder)) == []
    assert service.stop() == 0


def test_the_remedy_that_a_message_names_is_documented() -> None:
    operations = (HERE.parent.parent / "docs" / "operations.md").read_text()
    for words in ("disk is full", "cannot be written by this user", "replace it with a backup"):
        assert words in operations
