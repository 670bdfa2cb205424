"""Floods of connections at either address, with few free descriptors: the daemon keeps answering."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_harness import Daemon, alive, gateway, until

from offrl import Client, wire
from offrl.errors import NoDaemon
from offrld.daemon.transport.local import LocalSocket, Peer

FLOOD = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
family, address, first = (socket.AF_INET, ("127.0.0.1", int(sys.argv[1])), b"") if sys.argv[1].isdigit() else (
    socket.AF_UNIX, sys.argv[1], bytes.fromhex(sys.argv[2]))
while True:
    held = []
    for _ in range(1200):
        each = socket.socket(family)
        each.setblocking(False)
        try:
            each.connect(address)
            each.send(first)
        except OSError:
            pass
        held.append(each)
    time.sleep(0.2)
    for each in held:
        each.close()
"""
GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
INTRODUCED = GREETING + b"\x04" + bytes([len(READY)]) + READY


@contextlib.contextmanager
def flood(where: str, first: bytes = b""):
    processes = [subprocess.Popen([sys.executable, "-c", FLOOD, where, first.hex()]) for _ in range(2)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def port(daemon: Daemon) -> str:
    return re.findall(r"listening on tcp://127.0.0.1:(\d+),", daemon.output.read_text())[-1]


def work(daemon: Daemon, rounds: int) -> None:
    """Do what clients on the machine do: connect, ask, submit a job, follow it."""
    for _ in range(rounds):
        with Client(daemon.url, timeout=20, patience=30) as client:
            assert client.ping().protocol == wire.PROTOCOL
            job = client.submit("anything", dataset="data", steps=1, config={"behaviour": "normal"})
            assert job.wait(timeout=60).state == "succeeded"
            assert client.datasets.ls()


@pytest.mark.parametrize("files", [256, 1024])
def test_a_flood_from_the_network_takes_nothing_from_the_daemon(new_daemon: Callable[..., Daemon], files: int) -> None:
    daemon = new_daemon("[workers]\nspare = 0\n").start("--files", str(files), "--bind", "tcp://127.0.0.1:0")
    daemon.dataset("data")
    with flood(port(daemon)):
        until(lambda: "no more are accepted" in daemon.output.read_text())
        work(daemon, 3)
    assert daemon.process.poll() is None
    assert daemon.stop() == 0


@pytest.mark.parametrize("first", [b"", GREETING, INTRODUCED], ids=["silent", "half-open", "introduced"])
def test_a_flood_at_the_local_socket_keeps_nobody_out(new_daemon: Callable[..., Daemon], first: bytes) -> None:
    daemon = new_daemon("[workers]\nspare = 0\n").start("--files", "256")
    daemon.dataset("data")
    with Client(daemon.url) as inside:
        inside.ping()
        with flood(daemon.url.removeprefix("ipc://"), first):
            until(lambda: "no more are accepted" in daemon.output.read_text())
            work(daemon, 3)
            inside.connection.patience = 0.0  # this connection has spoken before: it is not the one that gives way
            assert inside.ping().protocol == wire.PROTOCOL
    assert daemon.process.poll() is None
    assert daemon.stop() == 0


def test_the_gateway_is_restarted(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon('insecure = true\nbind = "tcp://127.0.0.1:0"\n').start()
    url = f"tcp://127.0.0.1:{port(daemon)}"
    with Client(url, patience=30) as client:
        assert client.ping().caller == "anyone"
        first = gateway(daemon)
        os.kill(first, signal.SIGKILL)
        until(lambda: _caller(url) == "anyone")  # at the same port
        assert client.ping().caller == "anyone"
    assert "is started again" in daemon.output.read_text()
    second = gateway(daemon)
    assert second != first
    assert daemon.stop() == 0
    until(lambda: not alive(second))


def _caller(url: str) -> str | None:
    try:
        with Client(url) as client:
            return client.ping().caller
    except NoDaemon:
        return None


def test_the_gateway_ends_with_a_killed_daemon(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon('insecure = true\nbind = "tcp://127.0.0.1:0"\n').start()
    pid = gateway(daemon)
    daemon.kill()
    until(lambda: not alive(pid))


def test_an_address_in_use_is_reported_in_one_line(new_daemon: Callable[..., Daemon]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        daemon = new_daemon("insecure = true\n")
        status, lines = daemon.refused("--state-dir", str(daemon.state), "--bind", f"tcp://127.0.0.1:{taken.getsockname()[1]}")
    assert (status, len(lines)) == (2, 1), lines
    assert "Address already in use" in lines[0]


def test_a_client_may_send_much_before_it_reads(new_daemon: Callable[..., Daemon]) -> None:
    """Five hundred requests at once over tcp: each gets its reply, or a request to wait."""
    daemon = new_daemon('insecure = true\nbind = "tcp://127.0.0.1:0"\n').start()
    from daemon_harness import Connection

    connection = Connection(daemon.context, f"tcp://127.0.0.1:{port(daemon)}")
    numbers = [connection.send(wire.Ping()) for _ in range(500)]
    for number in numbers:
        assert connection.receive(number, wire.Pong).caller == "anyone"
    connection.socket.close()


def test_requests_from_many_threads_over_the_local_socket_are_all_answered(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon("[workers]\nspare = 0\n").start()
    answered: list[int] = []

    def ask() -> None:
        with Client(daemon.url) as client:
            for _ in range(50):
                answered.append(client.ping().protocol)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answered == [wire.PROTOCOL] * 800


def test_a_connection_closed_while_the_event_loop_takes_it_over_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    """Its number soon belongs to something else, such as a worker's pidfd."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        listener = LocalSocket(tmp_path / "x.sock", group=None, most=8)
        try:
            number = ours.fileno()
            peer = Peer(listener, b"12345678", 1, 1, ours)
            connecting = loop.create_task(listener._connect(peer))
            await asyncio.sleep(0)  # the transport exists, the protocol does not know it yet
            assert peer.transport is None
            peer.abort()
            other = fcntl.fcntl(theirs, fcntl.F_DUPFD, number)  # the next descriptor: this number, if it is free
            loop.add_reader(other, lambda: None)  # RuntimeError if a transport still has it
            loop.remove_reader(other)
            os.close(other)
            await connecting
            await asyncio.sleep(0.05)
            assert ours.fileno() == -1
        finally:
            theirs.close()
            await listener.close()

    asyncio.run(scenario())
