"""The daemon's side of the tcp address: starts the process that listens (`gateway`), restarts it if it ends, and passes messages on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections import deque

from offrl import wire
from offrl.errors import InvalidInput
from offrld.daemon.transport import frames
from offrld.daemon.transport.keys import ZAP_DOMAIN, Authenticator

START_S = 60.0  # for the process to listen
AGAIN_S = 0.2  # before it is started again
WAITING = 256  # messages that may wait; then the daemon reads no more
CLOSE_S = 2.0
FRAMES, HEAD = 4, 4  # frames of a message, the client's name included; frames that the gateway puts before them
MOST_FRAMES = 16  # of a message of the gateway; an authentication request of ZeroMQ has ten
log = logging.getLogger("offrld.server")

Sender = tuple[str, str]  # public key and address of who sent a message


class TcpSocket:
    """A tcp address. The server calls `receive` and `send`, and runs `watch`. Raises `InvalidInput` if the system refuses it."""

    def __init__(
        self, url: str, *, authenticator: Authenticator | None, secret: str | None, most: int, memory_bytes: int, per_client: int
    ) -> None:
        self._authenticator = authenticator
        self._options = {
            "url": url,
            "secret": secret,
            "zap_domain": ZAP_DOMAIN.decode(),
            "max_connections": most,
            "max_message": wire.MAX_MESSAGE,
            "frames": FRAMES - 1,
            "per_client": per_client,
            "memory_bytes": memory_bytes,
            "again": False,
        }
        self._messages: deque[tuple[list[bytes], Sender]] = deque()
        self._news = asyncio.Event()
        self._link: _Link | None = None
        self._closed = False
        self._process, self._pair = self._start()
        self._options.update(url=self.address, again=True)  # the same port if it is restarted

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start the process and wait until it listens."""
        ours, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")}
        environment["PYTHONSAFEPATH"] = "1"
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", "offrld.daemon.transport.gateway", str(theirs.fileno())],
                    stdin=subprocess.PIPE,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
            assert process.stdin is not None
            with process.stdin as stdin, contextlib.suppress(BrokenPipeError):
                stdin.write(json.dumps(self._options).encode() + b"\n")
            ours.settimeout(START_S)
            outcome, reader = b"", frames.Reader(wire.MAX_MESSAGE, 2)
            while not outcome:
                data = ours.recv(4096)
                for _, message in reader.feed(data):
                    outcome, self.address = message[0], message[1].decode(errors="replace")
                if not data:
                    outcome, self.address = b"f", f"its process ended with status {process.wait()}"
        except OSError as error:
            ours.close()
            raise InvalidInput(f"cannot listen on {self._options['url']}: {error}", hint="choose another address with --bind") from None
        if outcome != b"b":
            ours.close()
            process.wait()
            raise InvalidInput(f"cannot listen on {self._options['url']}: {self.address}", hint="choose another address with --bind")
        return process, ours

    async def _watch_process(self) -> None:
        """Serve the current process until its connection closes."""
        link = self._link = _Link(self)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: link, self._pair)
        await link.gone.wait()

    async def watch(self) -> None:
        """Keep the process going, for ever."""
        while True:
            await self._watch_process()
            status = await asyncio.to_thread(self._process.wait)
            log.error("the process that listens on %s has ended with status %d: it is started again", self.address, status)
            address = self.address
            while True:
                await asyncio.sleep(AGAIN_S)
                try:
                    self._process, self._pair = await asyncio.to_thread(self._start)
                    break
                except InvalidInput as error:
                    self.address = address
                    log.error("%s", error.message)

    async def receive(self) -> tuple[list[bytes], Sender]:
        """Return the frames of the next message, the first of which names the client, and its sender. For one task at a time."""
        while not self._messages:
            self._news.clear()
            await self._news.wait()
        message = self._messages.popleft()
        if self._link is not None and len(self._messages) == WAITING // 2:
            self._link.transport.resume_reading()
        return message

    def send(self, message: list[bytes]) -> None:
        """Send a message to the client that its first frame names, unless the client is gone or reads nothing."""
        self._write(b"m", *message)

    def disconnect(self) -> int:
        """Close every connection; return 0, because the gateway counts them."""
        self._write(b"d")
        return 0

    async def close(self) -> None:
        """End the process once it has sent all replies."""
        self._closed = True
        if self._link is None:
            self._pair.close()
        else:
            self._link.transport.close()  # after sending what is written
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._link.gone.wait(), CLOSE_S)
        try:
            await asyncio.to_thread(self._process.wait, CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _write(self, *message: bytes) -> None:
        if self._link is not None and not self._link.transport.is_closing():
            self._link.transport.writelines(frames.encode(message))

    def arrived(self, message: list[bytes]) -> None:
        """Handle a message of the gateway."""
        if message[0] == b"m" and len(message) > HEAD:
            route, key, address, *rest = message[1:]
            self._messages.append(([route, *rest], (key.decode(errors="replace"), address.decode(errors="replace"))))
            self._news.set()
            if len(self._messages) >= WAITING and self._link is not None:
                self._link.transport.pause_reading()
        elif message[0] == b"z" and self._authenticator is not None:
            self._write(b"z", *self._authenticator.answer(message[1:]))
        elif message[0] == b"l":
            log.warning("%s", message[1].decode(errors="replace"))


class _Link(asyncio.Protocol):
    """The daemon's end of the pair of sockets."""

    def __init__(self, gate: TcpSocket) -> None:
        self._gate = gate
        self._reader = frames.Reader(wire.MAX_MESSAGE, MOST_FRAMES)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until it is connected
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for _, message in self._reader.feed(data):
            self._gate.arrived(message)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()
