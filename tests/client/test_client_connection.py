"""Requests and replies over a real socket whose other side misbehaves: other protocols, lost replies, daemons that go and come back."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

import offrl
from offrl import upload, wire
from offrl.connection import Connection, ConnectionLost
from offrl.errors import CheckFailed, Conflict, InvalidInput, NoDaemon, ProtocolMismatch, Unknown


class Peer:
    """A ROUTER that answers each request with what ``answer(number, body)`` gives: a body, or None to go away (and come back)."""

    def __init__(self, answer: Callable[[int, bytes], bytes | None], comes_back: bool = True) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="offrl-", dir="/tmp"))
        self.url = f"ipc://{self.folder}/s"
        self.requests: list[bytes] = []
        self._answer, self._comes_back = answer, comes_back
        self._stop = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Peer:
        self._thread.start()
        assert self._bound.wait(60)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _serve(self) -> None:
        while not self._stop.is_set():
            # A context of its own: only its end makes sure that the old socket's file is gone before the new one is made.
            with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
                socket.setsockopt(zmq.LINGER, 0)
                socket.bind(self.url)
                self._bound.set()
                while not self._stop.is_set():
                    if not socket.poll(20):
                        continue
                    peer, ident, body, *data = socket.recv_multipart()
                    body = wire.encode_request(wire.decode_request(body, *data))  # what comes in a frame of its own is put into the body
                    self.requests.append(body)
                    reply = self._answer(len(self.requests), body)
                    if reply is None:
                        break
                    for each in reply if isinstance(reply, list) else [(ident, reply)]:
                        socket.send_multipart([peer, *each])
            if not self._comes_back:
                return


PONG = wire.encode_reply(wire.Pong(version="1", protocol=1, state_dir="/s", uptime_s=1.0))


def test_a_reply_comes_back_as_its_model():
    with Peer(lambda n, body: PONG) as peer, offrl.Client(peer.url) as client:
        assert client.ping().state_dir == "/s"
        assert wire.decode_request(peer.requests[0]) == wire.Ping()


def test_an_error_of_the_daemon_is_raised_as_its_class():
    answer = wire.encode_error(Unknown("no job 'x'", hint="did you mean 'y'?"))
    with Peer(lambda n, body: answer) as peer, offrl.Client(peer.url) as client, pytest.raises(Unknown, match="no job 'x'") as caught:
        client.job("x")
    assert (caught.value.code, caught.value.hint, caught.value.exit_status) == ("unknown", "did you mean 'y'?", 2)


@pytest.mark.parametrize("body", [b"\x83\xa8protocol\x63\xa2ok\xc3\xa6result\x80", b"HTTP/1.1 400 Bad Request", b"\xff" * 40, b""])
def test_a_daemon_of_another_protocol_is_a_mismatch(body):
    with Peer(lambda n, _: body) as peer, offrl.Client(peer.url) as client, pytest.raises(ProtocolMismatch) as caught:
        client.ping()
    assert caught.value.exit_status == 3
    assert "same version" in caught.value.hint


def test_replies_to_other_requests_are_dropped():
    late = [(b"0", wire.encode_error(Conflict("old"))), (b"999", b"junk")]

    def answer(n: int, body: bytes) -> list:
        return [*late, (str(n).encode(), PONG)]

    with Peer(answer) as peer, offrl.Client(peer.url) as client:
        for _ in range(3):
            assert client.ping().version == "1"


def test_a_silent_daemon_is_given_up_after_the_timeout():
    with Peer(lambda n, body: []) as peer, offrl.Client(peer.url, timeout=0.2) as client, pytest.raises(NoDaemon, match=r"within 0\.2 s"):
        client.ping()


def test_a_submission_whose_answer_was_lost_is_sent_again_with_the_same_key():
    submitted = wire.encode_reply(wire.Submitted(job="j1"))
    with Peer(lambda n, body: None if n == 1 else submitted) as peer, offrl.Client(peer.url) as client:
        assert client.submit("bc", dataset="d").id == "j1"
        first, second = (wire.decode_request(body) for body in peer.requests)
        assert first.key
        assert first == second


def test_what_must_not_be_done_twice_is_not_sent_again():
    with Peer(lambda n, body: None) as peer, offrl.Client(peer.url) as client:
        with pytest.raises(ConnectionLost, match="went away before it answered"):
            client.datasets.rm("d")
        assert len(peer.requests) == 1


def test_an_idle_client_finds_the_daemon_that_was_restarted():
    with Peer(lambda n, body: PONG if n != 2 else None) as peer, offrl.Client(peer.url) as client:
        client.ping()
        client.ping()  # lost once, asked again
        client.ping()
        assert len(peer.requests) == 4


def test_a_daemon_that_does_not_come_back_is_waited_for_no_longer_than_the_patience():
    with Peer(lambda n, body: None, comes_back=False) as peer, offrl.Client(peer.url, patience=0.3) as client, pytest.raises(NoDaemon):
        client.ping()


def test_following_goes_on_behind_the_last_event_seen():
    def answer(n: int, body: bytes) -> bytes | None:
        request = wire.decode_request(body)
        if isinstance(request, wire.GetEvents):
            if n == 2:
                return None
            event = wire.Event(n=request.cursor + 1, job="j", time=0.0, type="progress", state="running", step=request.cursor + 1, steps=3)
            return wire.encode_reply(wire.Events(events=[event], cursor=request.cursor + 1, ended=request.cursor == 2))
        raise AssertionError(request)

    with Peer(answer) as peer, offrl.Client(peer.url) as client:
        assert [event.n for event in offrl.Job(client, "j").follow()] == [1, 2, 3]


def test_an_upload_goes_on_where_the_connection_broke(tmp_path):
    data = bytes(range(256)) * 20_000  # 5 chunks
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    arrived: dict[str, bytearray] = {}
    opened, chunks = [], []

    def answer(n: int, body: bytes) -> bytes | None:
        request = wire.decode_request(body)
        if isinstance(request, wire.OpenUpload):
            opened.append(request)
            for file in request.files:
                arrived.setdefault(file.path, bytearray())
            return wire.encode_reply(wire.UploadOpened(upload=request.upload, received={k: len(v) for k, v in arrived.items()}))
        if isinstance(request, wire.WriteChunk):
            chunks.append(request.offset)
            if len(chunks) == 3:
                return None
            assert request.offset == len(arrived[request.path])
            arrived[request.path] += request.data
            return wire.encode_reply(wire.Received(received=len(arrived[request.path])))
        assert isinstance(request, wire.FinishUpload)
        return wire.encode_reply(wire.Done())

    seen = []
    with Peer(answer) as peer:
        connection = Connection(peer.url)
        upload.send(connection, upload.scan(tmp_path), lambda done, total: seen.append((done, total)))
        connection.close()
    name = f"{tmp_path.name}/a.bin"
    assert bytes(arrived[name]) == data
    assert len(opened) == 2
    assert opened[0] == opened[1]
    assert {file.path: file.sha256 for file in opened[0].files}[name] == hashlib.sha256(data).hexdigest()
    assert chunks.count(0) == 1  # what had arrived was not sent again
    assert seen[-1] == (len(data), len(data))


@pytest.mark.parametrize("damage", ["none", "byte", "short"])
def test_a_download_is_there_in_full_or_not_at_all(damage, tmp_path):
    data = b"policy" * 500_000  # 3 chunks
    served = bytearray(data)
    if damage == "byte":
        served[-1] ^= 1
    if damage == "short":
        del served[-10:]
    artifact = wire.Artifact(job="j", ready=True, path="p", name="policy.onnx", size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def answer(n: int, body: bytes) -> bytes | None:
        request = wire.decode_request(body)
        if isinstance(request, wire.OpenArtifact):
            return wire.encode_reply(artifact)
        return None if n == 3 else wire.encode_reply(wire.Data(data=bytes(served[request.offset : request.offset + request.size])))

    with Peer(answer) as peer, offrl.Client(peer.url) as client:
        if damage == "none":
            assert offrl.Job(client, "j").fetch(tmp_path) == tmp_path / "policy.onnx"
            assert (tmp_path / "policy.onnx").read_bytes() == data
        else:
            with pytest.raises(CheckFailed, match="policy"):
                offrl.Job(client, "j").fetch(tmp_path / "policy.onnx")
            assert list(tmp_path.iterdir()) == []


def test_threads_share_a_client():
    with Peer(lambda n, body: PONG) as peer, offrl.Client(peer.url) as client:
        done: list[str] = []
        threads = [threading.Thread(target=lambda: done.extend(client.ping().version for _ in range(50))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert done == ["1"] * 200


def test_a_request_that_the_daemon_would_drop_is_refused_at_once():
    with Peer(lambda n, body: PONG) as peer, offrl.Client(peer.url) as client:
        with pytest.raises(InvalidInput, match="submit request"):
            client.submit("bc", dataset="d", config={"text": "x" * wire.MAX_MESSAGE})
        with pytest.raises(InvalidInput, match="cannot be sent"):
            client.submit("bc", dataset="d", config={"number": 2**70})
        assert client.ping().version == "1"


def test_a_daemon_that_always_drops_the_connection_is_given_up():
    with Peer(lambda n, body: None) as peer, offrl.Client(peer.url, patience=0.5) as client, pytest.raises(NoDaemon):
        client.ping()


def test_a_closed_client_says_so():
    with Peer(lambda n, body: PONG) as peer:
        client = offrl.Client(peer.url)
        client.close()
        client.close()
        end = time.monotonic() + 5
        with pytest.raises(NoDaemon, match="closed"):
            client.ping()
        assert time.monotonic() < end
