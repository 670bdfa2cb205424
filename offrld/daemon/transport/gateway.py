"""The gateway: the daemon's process for the tcp address, so that the network can fill only its own descriptors and memory.

It passes messages on over a pair of sockets, framed as on the wire, and asks the daemon about every key. It decides nothing, opens no file
and ends with the daemon. It sends ``b"m", route, key, address, id, body[, data]`` (a message), ``b"z", ...`` (ZeroMQ's authentication
request), ``b"b", address`` (bound), ``b"f", why`` (not bound) and ``b"l", text`` (a line for the log). It receives
``b"m", route, id, body``, ``b"z", ...`` and ``b"d"`` (close all connections).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import Any

import zmq

from offrld.daemon.transport import frames
from offrld.daemon.transport.memory_guard import LOOK_S, SETTLE_S, resident, settle, trim

ZAP_ADDRESS = "inproc://zeromq.zap.01"
HANDSHAKE_MS = 5_000  # a connection that has not identified itself by then is closed
HEARTBEAT_MS = 20_000  # a client whose machine is gone leaves no connection behind
BIND_S = 2.0  # for an earlier gateway to free the address
AT_ONCE = 64  # messages from clients before the other sockets get a turn
WAIT_S = 0.05  # for a client's replies to be sent; then the next one is dropped
SLOW = 10_000  # most clients that are remembered as reading nothing
ACCEPTED, GONE = int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)


class Gateway:
    """``options``: url, zap_domain, secret (or None), max_connections, max_message, frames, per_client, memory_bytes."""

    def __init__(self, options: dict[str, Any], daemon: socket.socket) -> None:
        self._options, self._daemon = options, daemon
        self._reader = frames.Reader(options["max_message"], 16)
        self._context = zmq.Context(io_threads=1)
        self._zap = self._context.socket(zmq.ROUTER)
        self._zap.bind(ZAP_ADDRESS)
        self._router = self._context.socket(zmq.ROUTER)
        self._connected: set[int] = set()
        self._warned = False
        self._slow: set[bytes] = set()  # clients that read nothing
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # otherwise ZeroMQ drops messages silently
        secret = options["secret"]
        for option, value in {
            zmq.MAXMSGSIZE: options["max_message"],
            zmq.RCVHWM: options["per_client"],
            zmq.SNDHWM: options["per_client"],
            zmq.LINGER: 1000,
            zmq.BACKLOG: 512,
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
            zmq.TCP_KEEPALIVE: 1,
            zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
            zmq.HEARTBEAT_TIMEOUT: 3 * HEARTBEAT_MS,
            zmq.IPV6: int("[" in options["url"]),
        }.items():
            self._router.setsockopt(option, value)
        if secret is not None:
            self._router.setsockopt(zmq.CURVE_SERVER, 1)
            self._router.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(secret))
            self._router.setsockopt(zmq.ZAP_DOMAIN, options["zap_domain"].encode())
            self._router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it, ZeroMQ accepts every key if nobody answers its request
        self._router.monitor("inproc://monitor", ACCEPTED | GONE)
        self._monitor = self._context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # with a limit, ZeroMQ's own thread would wait for this one
        self._monitor.connect("inproc://monitor")

    def bind(self) -> str:
        """Listen; return the address, with the real port instead of 0. Raises `zmq.ZMQError`."""
        end = time.monotonic() + BIND_S
        while True:
            try:
                self._router.bind(self._options["url"])
                return str(self._router.getsockopt_string(zmq.LAST_ENDPOINT))
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE or not self._options["again"] or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def run(self) -> None:
        """Pass messages on until the daemon ends."""
        poller = zmq.Poller()
        for source in (self._router, self._zap, self._monitor, self._daemon.fileno()):
            poller.register(source, zmq.POLLIN)
        base, looked = resident(), time.monotonic()
        while True:
            ready = dict(poller.poll(int(LOOK_S * 1000)))
            if self._monitor in ready:
                self._count()
            if self._daemon.fileno() in ready and not self._from_daemon():
                break
            if self._zap in ready:
                self.send(b"z", *self._zap.recv_multipart())
            if self._router in ready:
                self._from_clients()
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                if (grown := resident() - base) > self._options["memory_bytes"]:
                    base = self._give_back(base, grown)
        self._router.close()
        self._zap.close(0)
        self._monitor.close(0)
        self._context.term()

    def send(self, *message: bytes) -> None:
        """Send a message to the daemon, which always reads, if not at once: the gateway waits, as its clients do."""
        self._daemon.setblocking(True)
        self._daemon.sendall(b"".join(frames.encode(message)))

    def _from_daemon(self) -> bool:
        self._daemon.setblocking(False)
        try:
            data = self._daemon.recv(1 << 20)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for _, message in self._reader.feed(data):
            if message[0] == b"m":
                self._to_client(message[1:])
            elif message[0] == b"z":
                with contextlib.suppress(zmq.ZMQError):  # the handshake is over
                    self._zap.send_multipart(message[1:], zmq.NOBLOCK)
            elif message[0] == b"d":
                self._disconnect()
        return bool(data)

    def _to_client(self, message: list[bytes]) -> None:
        """Send a reply. If ZeroMQ's queue for the client is full, wait a moment; drop the reply if the client reads none."""
        end = time.monotonic() + (0.0 if message[0] in self._slow else WAIT_S)
        while True:
            try:
                self._router.send_multipart(message, zmq.NOBLOCK)
                self._slow.discard(message[0])
                return
            except zmq.Again:
                if time.monotonic() >= end:
                    if len(self._slow) > SLOW:
                        self._slow.clear()
                    self._slow.add(message[0])
                    return
                time.sleep(0.0005)
            except zmq.ZMQError:  # the client is gone
                return

    def _from_clients(self) -> None:
        for _ in range(AT_ONCE):
            try:
                first = self._router.recv(zmq.NOBLOCK, copy=False)
            except zmq.ZMQError:
                return
            route = first.bytes
            message: list[bytes] = []
            while self._router.getsockopt(zmq.RCVMORE):
                part = self._router.recv(zmq.NOBLOCK, copy=False)
                message.append(part.bytes if len(message) < self._options["frames"] else b"")
            self.send(b"m", route, _property(first, "User-Id"), _property(first, "Peer-Address"), *message[: frames.ENDLESS // 2])

    # --------------------------------------------------------------------------------------------------------------- connections
    def _count(self) -> None:
        """Count the connections. At the limit, close a new connection at once; existing ones continue."""
        most = self._options["max_connections"]
        while True:
            try:
                event = self._monitor.recv_multipart(zmq.NOBLOCK)[0]
            except zmq.ZMQError:
                return
            number, value = int.from_bytes(event[:2], "little"), int.from_bytes(event[2:6], "little")
            if number == GONE:
                self._connected.discard(value)
                self._warned = self._warned and len(self._connected) > most // 2
                continue
            self._connected.add(value)
            if len(self._connected) > most:
                _refuse(value)
                if not self._warned:
                    self.send(b"l", f"{len(self._connected)} connections on {self._options['url']}: no more are accepted for now".encode())
                self._warned = True

    def _disconnect(self) -> int:
        for descriptor in self._connected:
            _refuse(descriptor)
        return len(self._connected)

    def _give_back(self, base: int, grown: int) -> int:
        count = self._disconnect()
        time.sleep(SETTLE_S)
        trim()
        now = resident()
        line = f"memory had grown by {grown >> 20} MB: {count} connections were closed, {(base + grown - now) >> 20} MB came back"
        self.send(b"l", line.encode())
        return max(base, now)  # what remains is the process's own memory: no reason to close connections again


def _refuse(descriptor: int) -> None:
    """Shut down a connection that ZeroMQ accepted; ZeroMQ then closes it. All tcp connections of this process belong to clients."""
    with contextlib.suppress(OSError):  # it is gone
        connection = socket.socket(fileno=descriptor)
        try:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.detach()


def _property(frame: zmq.Frame, name: str) -> bytes:
    try:
        return str(frame.get(name)).encode()
    except zmq.ZMQError:  # it has none
        return b""


def main() -> int:
    """Run the gateway: options on stdin, the descriptor of its end of the pair as the argument."""
    for number in (signal.SIGTERM, signal.SIGINT):  # it ends after the daemon, which still answers open requests
        signal.signal(number, signal.SIG_IGN)
    daemon = socket.socket(fileno=int(sys.argv[1]))
    gateway = Gateway(json.loads(sys.stdin.readline()), daemon)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        address = gateway.bind()
    except zmq.ZMQError as error:
        gateway.send(b"f", str(error.strerror).partition(" (addr")[0].encode())
        return 1
    gateway.send(b"b", address.encode())
    settle()
    with contextlib.suppress(BrokenPipeError, ConnectionError, frames.Broken):
        gateway.run()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # do not wait for unsent messages
