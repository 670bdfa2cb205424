"""The daemon as a client sees it: every request, and messages that are not requests."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
import time
import zipfile
import zlib

import msgpack
import psutil
import pytest
from daemon_harness import Daemon, until

from offrl import wire
from offrl.errors import Conflict, InvalidInput, InvalidMessage, NotAllowed, ProtocolMismatch, Unknown
from offrl.job import DatasetExportSpec, ExportSpec, ImportSpec, TrainSpec
from offrl_store.errors import OffrlError


def fetch(daemon: Daemon, artifact: wire.Artifact) -> bytes:
    """Fetch an artifact and compare it with its announced size and checksum."""
    data = b""
    while part := daemon.ask(wire.ReadArtifact(job=artifact.job, path=artifact.path, offset=len(data), size=300)).data:
        data += part
    assert (len(data), hashlib.sha256(data).hexdigest()) == (artifact.size, artifact.sha256)
    return data


def deep(levels: int) -> bytes:
    """A submission nested so deep; written by hand, as the packer refuses to."""
    return b"\x83\xa8protocol\x02\xa4type\xa6submit\xa4spec" + b"\x81\xa1a" * levels + b"\x01"


# --------------------------------------------------------------------------------------------------------------- messages
BAD = [
    (b"", InvalidMessage),
    (b"\xc1", InvalidMessage),
    (b"GET / HTTP/1.1\r\n\r\n", InvalidMessage),
    (msgpack.packb([1, 2, 3]), InvalidMessage),
    (msgpack.packb({"protocol": wire.PROTOCOL}), InvalidMessage),
    (msgpack.packb({"protocol": wire.PROTOCOL, "type": "what"}), InvalidMessage),
    (msgpack.packb({"protocol": wire.PROTOCOL + 1, "type": "ping"}), ProtocolMismatch),
    (msgpack.packb({"type": "ping"}), ProtocolMismatch),
    (msgpack.packb({"protocol": wire.PROTOCOL, "type": "ping", "more": 1}), InvalidMessage),
    (msgpack.packb({"protocol": wire.PROTOCOL, "type": "get_job", "job": "../etc/passwd"}), InvalidMessage),
    (msgpack.packb({"protocol": wire.PROTOCOL, "type": "get_events", "job": "a", "wait_s": 1e9}), InvalidMessage),
    (msgpack.packb({"protocol": wire.PROTOCOL, "type": "ping"}) + b"tail", InvalidMessage),
    (msgpack.packb({1: 2}), InvalidMessage),
    (msgpack.packb({"protocol": wire.PROTOCOL, "type": "ping", "x": [[]] * 300_000}), InvalidMessage),
    (msgpack.packb({"protocol": wire.PROTOCOL, "type": "get_events", "job": "a", "cursor": 2**63}), InvalidMessage),
    (msgpack.packb({"protocol": True, "type": "ping"}), ProtocolMismatch),
    (msgpack.packb({"protocol": msgpack.ExtType(4, b"x"), "type": "ping"}), InvalidMessage),
    (b"\x82\xa4type\xa4ping\xa4type\xa4ping", InvalidMessage),
    (b"\xdf\xff\xff\xff\xff", InvalidMessage),
    (deep(30), InvalidMessage),
    (deep(5000), InvalidMessage),
]


@pytest.mark.parametrize(("body", "error"), BAD, ids=range(len(BAD)))
def test_invalid_bytes_get_an_error_reply(daemon: Daemon, body: bytes, error: type[OffrlError]) -> None:
    frames = daemon.connection.raw([b"17", body])
    assert frames is not None
    assert frames[0] == b"17"
    with pytest.raises(error) as caught:
        wire.decode_reply(frames[1], wire.Done)
    assert "\n" not in str(caught.value)
    daemon.ask(wire.Ping())


@pytest.mark.parametrize("frames", [[b"alone"], [b"1", b"2", b"3", b"4"], [b"x" * 65, b"body"], [b""] * 500])
def test_messages_of_the_wrong_form_get_an_error_reply(daemon: Daemon, frames: list[bytes]) -> None:
    connection = daemon.connect()
    reply = connection.raw(frames)
    with pytest.raises(InvalidMessage, match="frames"):
        wire.decode_reply(reply[-1], wire.Done)
    connection.socket.close()
    daemon.ask(wire.Ping())


def test_random_and_mutated_messages_leave_the_daemon_as_it_was(daemon: Daemon) -> None:
    randomness = random.Random(3)
    good = wire.encode_request(wire.Submit(spec=TrainSpec(algorithm="anything", dataset="none-such", config={"clip": 1.5})))
    connection = daemon.connect()
    for _ in range(400):
        body = bytearray(good)
        for _ in range(randomness.randint(1, 6)):
            body[randomness.randrange(len(body))] = randomness.randrange(256)
        body = body[: randomness.randint(0, len(body))] if randomness.random() < 0.3 else body
        with pytest.raises(OffrlError):
            wire.decode_reply(connection.raw([b"1", bytes(body)])[1], wire.Submitted)
    connection.socket.close()
    assert daemon.ask(wire.Ping()).protocol == wire.PROTOCOL


def test_a_message_that_is_too_large_reaches_nobody(daemon: Daemon) -> None:
    connection = daemon.connect()
    assert connection.raw([b"1", b"x" * (wire.MAX_MESSAGE + 1)], seconds=0.3) is None
    connection.socket.close()
    daemon.ask(wire.Ping())


def test_waiting_requests_delay_nobody_and_are_bounded(daemon: Daemon) -> None:
    job = daemon.train(daemon.dataset("bounded"), "hang")
    until(lambda: daemon.job(job).step == 1)
    cursor = daemon.events(job)[-1].n
    connection = daemon.connect()
    waiting = [connection.send(wire.GetEvents(job=job, cursor=cursor, wait_s=30)) for _ in range(70)]
    refused = 0
    for number in waiting[64:]:
        with pytest.raises(OffrlError, match="of this client"):
            connection.receive(number, wire.Events)
        refused += 1
    assert refused == 6
    daemon.ask(wire.Ping())
    daemon.control(job, "cancel")
    first = connection.receive(waiting[0], wire.Events, seconds=25)  # before its own 30 s: it was woken
    assert first.events[0].n == cursor + 1
    connection.socket.close()
    daemon.wait(job)


# -------------------------------------------------------------------------------------------------------------------- jobs
def test_a_request_for_an_unknown_name_suggests_the_nearest(daemon: Daemon) -> None:
    daemon.dataset("pendulum-replay")
    for request, hint in [
        (wire.GetDataset(name="pendulum-repaly"), "pendulum-replay"),
        (wire.RemoveDataset(name="pendulum-repaly"), "pendulum-replay"),
        (wire.Submit(spec=TrainSpec(algorithm="anything", dataset="pendulum-repaly")), "pendulum-replay"),
        (wire.Submit(spec=TrainSpec(algorithm="anythin", dataset="pendulum-replay")), "anything"),
        (wire.Submit(spec=TrainSpec(algorithm="anything", dataset="pendulum-replay", eval_env="CartPole-v2")), "CartPole-v1"),
        (wire.Submit(spec=DatasetExportSpec(dataset="pendulum-repaly", format="npz")), "pendulum-replay"),
    ]:
        with pytest.raises(Unknown) as caught:
            daemon.ask(request)
        assert hint in caught.value.hint
    for request in (
        wire.GetJob(job="nobody"),
        wire.GetEvents(job="nobody", wait_s=5),
        wire.ReadLog(job="nobody", wait_s=5),
        wire.ControlJob(job="nobody", action="cancel"),
        wire.OpenArtifact(job="nobody"),
        wire.Submit(spec=ExportSpec(job="nobody")),
        wire.Submit(spec=TrainSpec(algorithm="anything", dataset="pendulum-replay"), after=["nobody"]),
        wire.ReadArtifact(job="nobody", path="a", offset=0, size=1),
        wire.FinishUpload(upload="nobody"),
        wire.Submit(spec=ImportSpec(dataset="x", upload="nobody")),
        wire.Submit(spec=ImportSpec(dataset="nobody", append=True, path="/x")),
    ):
        with pytest.raises((Unknown, NotAllowed)):
            daemon.ask(request)


def test_the_list_of_jobs_leaves_out_imports_by_default(daemon: Daemon) -> None:
    data = daemon.dataset("listed")
    jobs = [daemon.train(data) for _ in range(3)]
    listed = daemon.ask(wire.ListJobs()).jobs
    assert [job.job for job in listed if job.job in jobs] == jobs
    assert all(job.kind != "import" for job in listed)
    assert {job.kind for job in daemon.ask(wire.ListJobs(kind="import")).jobs} == {"import"}
    cut = daemon.ask(wire.ListJobs(kind="all", limit=2))
    assert cut.jobs[-1].job == jobs[-1]
    assert (len(cut.jobs), cut.left_off > 0) == (2, True)
    for job in jobs:
        daemon.wait(job)


def test_a_train_job_submitted_while_its_dataset_is_imported_waits_for_it(daemon: Daemon) -> None:
    blocker = [daemon.import_(f"blocking-{number}", "slow") for number in range(2)]  # both light slots
    pending = daemon.import_("pending")
    job = daemon.train("pending")
    info = daemon.job(job)
    assert (info.state, info.after, info.reason) == ("queued", [pending], f"waits for {pending}")
    with pytest.raises(Conflict, match="is being created by job"):
        daemon.import_("pending")
    for name in blocker:
        daemon.control(name, "cancel")
    assert daemon.wait(job).state == "succeeded"
    assert daemon.attempts(job)[0][2] == "0:1:abcd"


def test_a_job_fails_if_a_job_that_it_waits_for_fails(daemon: Daemon) -> None:
    data = daemon.dataset("chained")
    first = daemon.train(data, "slow", steps=10_000)
    second = daemon.train(data, after=[first])
    third = daemon.train(data, after=[second])
    until(lambda: daemon.job(first).state == "running")
    daemon.control(first, "cancel")
    assert f"it waited for job {second}, which has failed" in daemon.wait(third).reason
    assert f"it waited for job {first}, which has been cancelled" in daemon.job(second).reason
    with pytest.raises(Conflict, match="has been cancelled"):
        daemon.train(data, after=[first])
    with pytest.raises(Conflict, match="waits for"):
        daemon.control(second, "retry")


# ---------------------------------------------------------------------------------------------------------------- datasets
def test_a_dataset_is_imported_appended_to_pinned_and_removed(daemon: Daemon) -> None:
    daemon.dataset("growing")
    job = daemon.train("growing", "slow", steps=10_000)
    until(lambda: daemon.job(job).step > 0)
    assert daemon.wait(daemon.import_("growing", append=True)).state == "succeeded"
    info = daemon.ask(wire.GetDataset(name="growing"))
    assert (info.episodes, info.snapshot, info.pinned_by) == (2, "0:2:abcd", [job])
    assert daemon.attempts(job)[0][2] == "0:1:abcd"
    with pytest.raises(Conflict, match="exists"):
        daemon.import_("growing")
    with pytest.raises(Conflict, match=job):
        daemon.ask(wire.RemoveDataset(name="growing"))
    daemon.control(job, "cancel")
    daemon.wait(job)
    daemon.ask(wire.RemoveDataset(name="growing"))
    assert not (daemon.state / "datasets" / "growing").exists()
    with pytest.raises(Unknown):
        daemon.ask(wire.GetDataset(name="growing"))


def test_a_bad_source_leaves_no_dataset_and_no_upload(daemon: Daemon) -> None:
    job = daemon.import_("bad-source", "bad")
    info = daemon.wait(job)
    assert (info.state, info.error["message"], info.error["hint"]) == ("failed", "lengths differ", "make them the same")
    upload = info.spec["upload"]
    until(lambda: not (daemon.state / "uploads" / upload).exists())
    assert not (daemon.state / "datasets" / "bad-source").exists()
    assert not (daemon.state / "datasets" / f".tmp-{job}").exists()


def test_a_path_of_the_daemons_machine_is_read_below_an_import_root_only(new_daemon) -> None:
    daemon = new_daemon()
    root = daemon.state.parent / "root"
    outside = daemon.state.parent / "outside"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "data.bin").write_bytes(b"abc")
    (root / "link").symlink_to(outside)
    (daemon.state / "offrld.toml").write_text(f'import_roots = ["{root}"]\n')
    daemon.start()
    for path in (outside / "data.bin", root / "link" / "data.bin", root / ".." / "outside" / "data.bin", "/etc/passwd", "data.bin"):
        with pytest.raises(NotAllowed, match="import root"):
            daemon.ask(wire.Submit(spec=ImportSpec(dataset="x", path=str(path))))
    with pytest.raises(InvalidInput, match="does not exist"):
        daemon.ask(wire.Submit(spec=ImportSpec(dataset="x", path=str(root / "nothing"))))
    job = daemon.ask(wire.Submit(spec=ImportSpec(dataset="x", path=str(root / "data.bin")))).job
    assert daemon.wait(job).state == "succeeded"


def test_an_upload_arrives_in_chunks_and_goes_on_after_a_restart(new_daemon) -> None:
    daemon = new_daemon().start()
    data = random.Random(1).randbytes(3 * wire.CHUNK // 2)
    entry = wire.FileEntry(path="folder/big.bin", size=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert daemon.ask(wire.OpenUpload(upload="one", files=[entry])).received == {"folder/big.bin": 0}

    def chunk(start: int, stop: int) -> wire.WriteChunk:
        return wire.WriteChunk(upload="one", path="folder/big.bin", offset=start, data=data[start:stop], crc32=zlib.crc32(data[start:stop]))

    step = 1 << 18
    sent = [daemon.connection.send(chunk(start, start + step)) for start in range(0, wire.CHUNK, step)]  # without waiting in between
    assert [daemon.connection.receive(number, wire.Received).received for number in sent] == [step * count for count in range(1, 5)]
    daemon.kill()
    daemon.start()
    assert daemon.ask(wire.OpenUpload(upload="one", files=[entry])).received == {"folder/big.bin": wire.CHUNK}
    with pytest.raises(Conflict, match="have arrived"):
        daemon.ask(wire.FinishUpload(upload="one"))
    with pytest.raises(Conflict, match="not finished"):
        daemon.ask(wire.Submit(spec=ImportSpec(dataset="x", upload="one")))
    assert daemon.ask(chunk(wire.CHUNK, len(data))).received == len(data)
    daemon.ask(wire.FinishUpload(upload="one"))
    job = daemon.ask(wire.Submit(spec=ImportSpec(dataset="x", upload="one"), key="k")).job
    assert daemon.wait(job).state == "succeeded"
    assert daemon.ask(wire.Submit(spec=ImportSpec(dataset="x", upload="one"), key="k")).job == job  # though "x" is there now
    until(lambda: not (daemon.state / "uploads" / "one").exists())


# --------------------------------------------------------------------------------------------------------------- artifacts
def test_a_policy_is_exported_on_request(daemon: Daemon) -> None:
    job = daemon.train(daemon.dataset("fetched"), seeds=[2, 5])
    with pytest.raises(Conflict, match="no checkpoint yet"):
        waiting = daemon.train("fetched", after=[daemon.train("fetched", "slow", steps=50)])
        daemon.ask(wire.OpenArtifact(job=waiting))
    daemon.control(waiting, "cancel")
    daemon.wait(job)
    first = daemon.ask(wire.OpenArtifact(job=job, seed=5))
    second = daemon.ask(wire.OpenArtifact(job=job, seed=5))
    assert not first.ready
    assert first.job != job
    daemon.wait(first.job)
    assert second.ready or second.job == first.job
    artifact = daemon.ask(wire.OpenArtifact(job=job, seed=5))
    assert (artifact.ready, artifact.job, artifact.path) == (True, job, "seed-5/policy-000000000003.onnx")
    assert fetch(daemon, artifact) == b"onnx of step 3"
    with pytest.raises(InvalidInput) as caught:
        daemon.ask(wire.OpenArtifact(job=job, seed=1))
    assert "2, 5" in caught.value.hint
    with pytest.raises(Unknown, match="step 7"):
        daemon.ask(wire.OpenArtifact(job=job, step=7))
    with pytest.raises(InvalidInput, match="no evaluation"):
        daemon.ask(wire.OpenArtifact(job=job, best=True))
    with pytest.raises(InvalidInput, match="kind train"):
        daemon.ask(wire.OpenArtifact(job=job, kind="dataset"))
    other = daemon.ask(wire.OpenArtifact(job=job, seed=5, kind="torchscript"))
    assert not other.ready
    daemon.wait(other.job)
    artifact = daemon.ask(wire.OpenArtifact(job=job, seed=5, kind="torchscript"))
    assert (artifact.ready, artifact.path, artifact.name) == (True, "seed-5/policy-000000000003.pt", "policy.pt")
    assert fetch(daemon, artifact) == b"torchscript of step 3"


def test_a_job_without_a_policy_exports_none(daemon: Daemon) -> None:
    job = daemon.train(daemon.dataset("modelled"), algorithm="model_thing")
    daemon.wait(job)
    for kind in ("onnx", "torchscript"):
        with pytest.raises(InvalidInput, match="model_thing, which learns no policy"):
            daemon.ask(wire.OpenArtifact(job=job, kind=kind))
    assert daemon.ask(wire.OpenArtifact(job=job, kind="checkpoint")).ready


def test_checkpoints_metrics_and_exported_datasets_are_fetched(daemon: Daemon) -> None:
    job = daemon.train(daemon.dataset("fetched-too"), seeds=[0, 1])
    daemon.wait(job)
    checkpoint = daemon.ask(wire.OpenArtifact(job=job, kind="checkpoint"))
    (daemon.state / "jobs" / job / "checkpoints" / "000000000003.safetensors").unlink()  # as a running worker does with an old one
    assert fetch(daemon, checkpoint) == b"state of step 3"
    with zipfile.ZipFile(io.BytesIO(fetch(daemon, daemon.ask(wire.OpenArtifact(job=job, kind="metrics"))))) as archive:
        assert sorted(archive.namelist()) == ["seed-0/loss.csv", "seed-1/loss.csv"]
    export = daemon.ask(wire.Submit(spec=DatasetExportSpec(dataset="fetched-too", format="store"))).job
    assert daemon.wait(export).state == "succeeded"
    artifact = daemon.ask(wire.OpenArtifact(job=export, kind="dataset"))
    assert artifact.name == "store.tar"
    with tarfile.open(fileobj=io.BytesIO(fetch(daemon, artifact))) as archive:
        assert sorted(archive.getnames()) == ["store", "store/data.bin", "store/schema.json"]
    (daemon.state / "jobs" / job / "link").symlink_to("/etc/hostname")
    for path in ("../../queue.sqlite", "/etc/hostname", "link", "checkpoints", "packed/../../x", "nothing", "a\0b"):
        with pytest.raises(InvalidInput):
            daemon.ask(wire.ReadArtifact(job=job, path=path, offset=0, size=10))


# ----------------------------------------------------------------------------------------------------------------- service
def test_algorithms_are_listed_and_the_answer_is_kept_for_the_next_start(new_daemon) -> None:
    daemon = new_daemon().start()
    assert [algorithm["name"] for algorithm in daemon.ask(wire.Algorithms()).algorithms] == [
        "anything",
        "discrete_thing",
        "smooth_thing",
        "taker",
        "model_thing",
    ]
    daemon.stop()
    (kept,) = (daemon.state / "cache").glob("describe-*.json")
    kept.write_text(kept.read_text().replace('"name": "anything"', '"name": "kept_thing"'))
    daemon.start()
    assert daemon.ask(wire.Algorithms()).algorithms[0]["name"] == "kept_thing"


def test_a_describe_worker_that_fails_is_an_error_of_submit_only(new_daemon) -> None:
    daemon = new_daemon().start("--broken-describe")
    daemon.dataset("data")
    for _ in range(2):
        with pytest.raises(OffrlError, match="torch is not installed"):
            daemon.train("data")
    daemon.ask(wire.Ping())


def test_an_idle_daemon_costs_next_to_nothing(daemon: Daemon) -> None:
    process = psutil.Process(daemon.process.pid)
    assert process.memory_info().rss < 100e6
    until(lambda: not [job for job in daemon.ask(wire.ListJobs(kind="all")).jobs if job.state == "running"])
    used, began = sum(process.cpu_times()[:2]), time.monotonic()
    until(lambda: time.monotonic() - began > 2.0)
    assert sum(process.cpu_times()[:2]) - used < 0.05
