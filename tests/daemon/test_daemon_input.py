"""Clients that misuse the socket below the level of messages: they fill no memory, and other clients get their replies."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from daemon_harness import DEADLINE_S, Daemon, until

from offrl import Client, upload, wire
from offrl.errors import OffrlError
from offrl.wire import CHUNK
from offrld.daemon.handlers.follow import LOG_PART

GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
LIMIT_MB = 64


@pytest.fixture
def small(new_daemon) -> Daemon:
    return new_daemon(f"input_memory_mb = {LIMIT_MB}\n[workers]\nspare = 0\n").start()


def connected(daemon: Daemon) -> socket.socket:
    """Open a connection that has identified itself as a DEALER, for raw bytes."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE_S)
    connection.connect(daemon.url.removeprefix("ipc://"))
    connection.sendall(GREETING)
    connection.recv(64, socket.MSG_WAITALL)
    connection.sendall(b"\x04" + bytes([len(READY)]) + READY)
    connection.recv(2)
    return connection


@pytest.fixture
def raw(small: Daemon) -> Iterator[socket.socket]:
    with connected(small) as connection:
        yield connection


def peak_mb(daemon: Daemon) -> int:
    """Return the peak memory of the daemon in MB."""
    assert daemon.process is not None
    with open(f"/proc/{daemon.process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) >> 10


def closed(connection: socket.socket, part: bytes, seconds: float = DEADLINE_S) -> bool:
    """Send ``part`` again and again until the daemon closes the connection."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            connection.sendall(part)
            time.sleep(0.001)  # 1 GB/s with large parts: the daemon looks twice a second
    except OSError:
        return True
    return False


def test_an_endless_message_closes_its_connection(small: Daemon, raw: socket.socket) -> None:
    """Frames of a megabyte, each marked as not the last: ZeroMQ would keep them for ever."""
    begun = peak_mb(small)
    assert closed(raw, b"\x03" + CHUNK.to_bytes(8, "big") + b"x" * CHUNK)
    until(lambda: "connections were closed" in small.output.read_text())
    assert peak_mb(small) < begun + 2000  # what comes between two looks
    until(lambda: small.connect().ask(wire.Ping()))


def test_endless_small_frames_close_their_connection_too(small: Daemon, raw: socket.socket) -> None:
    assert closed(raw, b"\x01\x01x" * 100_000)
    until(lambda: "connections were closed" in small.output.read_text())


@pytest.mark.parametrize(("silent", "closes"), [(1, False), (8, True)])
def test_clients_that_never_read_replies_fill_no_memory_and_delay_nobody(small: Daemon, silent: int, closes: bool) -> None:
    """Replies that a client does not read are dropped once 64 wait; if many clients together keep too much, connections are closed."""
    job = small.train(small.dataset("data"))
    small.wait(job)
    small.state.joinpath("jobs", job, "log.txt").write_bytes(b"x" * LOG_PART)
    body = wire.encode_request(wire.ReadLog(job=job))
    request = b"\x01\x01n\x00" + bytes([len(body)]) + body  # two frames, the id and the body
    begun = peak_mb(small)
    stop, sent = threading.Event(), []

    def flood() -> None:
        with connected(small) as connection, contextlib.suppress(OSError):  # closed by the daemon
            while not stop.is_set():
                connection.sendall(request * 8)
                sent.append(8)
                time.sleep(0.01)

    def done() -> bool:
        return "connections were closed" in small.output.read_text() if closes else sum(sent) * LOG_PART > 5 * LIMIT_MB << 20

    with ThreadPoolExecutor(silent) as pool:
        floods = [pool.submit(flood) for _ in range(silent)]
        try:
            with Client(small.url) as client:
                until(lambda: client.job(job).info().state == "succeeded" and done())
        finally:
            stop.set()
    for each in floods:
        each.result()
    assert ("connections were closed" in small.output.read_text()) == closes
    kept = 64 * LOG_PART >> 20  # of one client: answers that wait, and as many again that are being made
    assert peak_mb(small) < begun + 2 * silent * kept + LIMIT_MB
    assert small.connect().ask(wire.Ping()).protocol == wire.PROTOCOL


def test_requests_hold_a_bounded_number_of_bytes(small: Daemon) -> None:
    """More chunks than the daemon holds at once get busy, and the others of that client are kept. They pile up behind a request of
    the same upload that takes a second or more: to take the checksum of a file with a hole of 1 GB."""
    opened = small.ask(wire.OpenUpload(upload="many", files=[wire.FileEntry(path="a", size=1 << 30, sha256="0" * 64)]))
    assert opened.received == {"a": 0}
    os.truncate(small.state / "uploads" / "many" / "files" / "a", 1 << 30)
    connection = small.connect()
    connection.send(wire.FinishUpload(upload="many"))
    chunk = wire.WriteChunk(upload="many", path="a", offset=0, data=b"\0" * CHUNK, crc32=0)
    for _ in range(60):
        connection.send(chunk)
    answers = []
    for _ in range(61):
        assert connection.socket.poll(1000 * DEADLINE_S)
        with pytest.raises(OffrlError) as caught:
            wire.decode_reply(connection.socket.recv_multipart()[1], wire.Received)
        answers.append(caught.value.code)
    assert set(answers) == {"busy", "invalid_input"}  # the checksums are wrong, on purpose
    assert answers[0] == "busy"
    assert 1 < answers.count("invalid_input") <= 1 + (LIMIT_MB << 20) // CHUNK
    connection.socket.close()
    assert small.connect().ask(wire.Ping()).protocol == wire.PROTOCOL


def test_clients_that_have_to_wait_finish_their_uploads(new_daemon, tmp_path) -> None:
    """Four at once send more than the daemon holds: each goes on from what had arrived."""
    daemon = new_daemon("input_memory_mb = 32\n[workers]\nspare = 0\n").start()
    (tmp_path / "data.bin").write_bytes(random.Random(1).randbytes(12 << 20))
    files = upload.scan(tmp_path / "data.bin")

    def send(_: int) -> str:
        with Client(daemon.url) as client:
            return upload.send(client.connect(), files)

    with ThreadPoolExecutor(4) as pool:
        for name in pool.map(send, range(4)):
            assert (daemon.state / "uploads" / name / "files" / "data.bin").read_bytes() == (tmp_path / "data.bin").read_bytes()
