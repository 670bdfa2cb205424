"""The local socket: ZMTP over a unix socket, implemented here, so that the daemon survives a lack of descriptors.

ZeroMQ's own listener ends the process if accept() finds no descriptor. Here a connection above the limit is closed at once, or replaces one
that has not sent anything yet, so that a flood of silent connections locks nobody out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import time
from collections import Counter, OrderedDict, deque
from pathlib import Path

from offrl import wire
from offrl.errors import InvalidInput
from offrld.daemon.transport import frames

HANDSHAKE_S = 5.0  # a connection that has not identified itself by then is closed
BACKLOG = 4096  # connections that the kernel queues
AT_ONCE = 128  # connections accepted before others get a turn
SILENT_S = 0.5  # a connection that has sent no message by then may be closed for another
NO_DESCRIPTOR_S = 0.1  # pause of accept() after it found no descriptor
UNREAD = 64  # replies kept for a client that reads none; further ones are dropped
WAITING = 64  # messages of one connection that may wait; then the daemon reads no more from it
FRAMES = 4  # of a message: name of the client, id, body, data
SOCKET_HINT = "choose another address with --bind"
GONE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
log = logging.getLogger("offrld.server")


class Peer(asyncio.Protocol):
    """One connection. ``pid``, ``uid``: those of the process at its other end."""

    def __init__(self, listener: LocalSocket, route: bytes, pid: int, uid: int, accepted: socket.socket) -> None:
        self.route, self.pid, self.uid = route, pid, uid
        self.accepted = accepted
        self.since = time.monotonic()
        self.messages: deque[list[bytes]] = deque()
        self.spoke = False  # has sent a message
        self._listener = listener
        self._reader = frames.Reader(wire.MAX_MESSAGE, FRAMES - 1)
        self._greeting: bytearray | None = bytearray()
        self._ready = False
        self._unread = 0  # replies since the kernel had last taken all
        self.transport: asyncio.Transport | None = None  # until it is connected
        self.connecting = False  # the event loop has the socket: closing it here would free a descriptor that a transport still uses
        self._aborted = False
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self._aborted:
            transport.abort()
            return
        transport.write(frames.GREETING)
        self._late = asyncio.get_running_loop().call_later(HANDSHAKE_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        try:
            if self._greeting is not None:
                self._greeting += data
                if not frames.SIGNATURE.startswith(bytes(self._greeting[:1])):
                    raise frames.Broken("no greeting of ZMTP")
                if len(self._greeting) < frames.GREETING_BYTES:
                    return
                if self._greeting[9] & 1 == 0 or self._greeting[10] < 3 or self._greeting[12:32].rstrip(b"\0") != b"NULL":
                    raise frames.Broken("another protocol")
                data, self._greeting = bytes(self._greeting[frames.GREETING_BYTES :]), None
            for is_command, message in self._reader.feed(data):
                self._command(message[0]) if is_command else self._message(message)
        except frames.Broken as error:
            self._listener.broken(error)
            self.transport.abort()

    def abort(self) -> None:
        """Close it at once; a connection that the event loop is just taking over, as soon as it has."""
        self._aborted = True
        if self.transport is not None:
            self.transport.abort()
        elif not self.connecting:
            self.accepted.close()

    def _command(self, body: bytes) -> None:
        assert self.transport is not None
        if not self._ready:
            if not body.startswith(b"\x05READY"):
                raise frames.Broken("no READY")
            self._ready = True
            if self._late is not None:
                self._late.cancel()
            self.transport.write(frames.command(frames.READY))
        elif body.startswith(b"\x04PING"):
            self.transport.write(frames.command(b"\x04PONG" + body[7:23]))

    def _message(self, message: list[bytes]) -> None:
        if not self._ready:
            raise frames.Broken("a message before READY")
        assert self.transport is not None
        self.spoke = True
        self.messages.append([self.route, *message])
        self._listener.arrived(self)
        if len(self.messages) >= WAITING:
            self.transport.pause_reading()

    def take(self) -> list[bytes]:
        """Return the oldest waiting message."""
        message = self.messages.popleft()
        if self.transport is not None and len(self.messages) == WAITING // 2:
            self.transport.resume_reading()
        return message

    def send(self, message: list[bytes]) -> None:
        """Send a message, or drop it if the other side reads none."""
        if self.transport is None:
            return
        if not self.transport.get_write_buffer_size():
            self._unread = 0
        elif self._unread >= UNREAD:
            return
        self._unread += 1
        self.transport.writelines(frames.encode(message))

    def connection_lost(self, error: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        self._listener.lost(self)


class LocalSocket:
    """A bound unix socket. The server calls `receive` and `send`. Raises `InvalidInput` if the system refuses the address."""

    def __init__(self, path: Path, *, group: int | None, most: int) -> None:
        self._most = most
        self._peers: OrderedDict[bytes, Peer] = OrderedDict()  # oldest first
        self._of_process: Counter[int] = Counter()  # process at the other end -> connections
        self._waiting: deque[Peer] = deque()  # peers with messages, each once
        self._news = asyncio.Event()
        self._number = 0
        self._warned = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.address = f"ipc://{path}"
        if clearable(path):
            path.unlink()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.setblocking(False)
            self._socket.bind(str(path))
            permit(path, group)
            self._socket.listen(BACKLOG)
        except OSError as error:
            self._socket.close()
            why = error.strerror or error
            raise InvalidInput(f"cannot listen on ipc://{path}: {why}", hint=SOCKET_HINT) from None
        except BaseException:
            self._socket.close()
            raise

    async def receive(self) -> tuple[list[bytes], Peer]:
        """Return the frames of the next message, the first of which names the client, and its peer. Clients take turns. For one task."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._socket, self._accept)
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        peer = self._waiting.popleft()
        message = peer.take()
        if peer.messages:
            self._waiting.append(peer)
        return message, peer

    def send(self, message: list[bytes]) -> None:
        """Send a message to the client that its first frame names, unless the client is gone or reads nothing."""
        peer = self._peers.get(message[0])
        if peer is not None:
            peer.send(message[1:])

    def disconnect(self) -> int:
        """Close every connection; return their number."""
        for peer in list(self._peers.values()):
            peer.abort()
        return len(self._peers)

    async def close(self) -> None:
        """Stop listening; clients that read still get their replies."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
        self._socket.close()
        for peer in list(self._peers.values()):
            if peer.transport is not None:
                peer.transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while self._peers:
                    await asyncio.sleep(0.005)
        self.disconnect()

    # -------------------------------------------------------------------------------------------------------------- for peers
    def arrived(self, peer: Peer) -> None:
        """Note that a peer has a message."""
        if len(peer.messages) == 1:
            self._waiting.append(peer)
            self._news.set()

    def lost(self, peer: Peer) -> None:
        """Forget a peer that is gone."""
        if self._peers.pop(peer.route, None) is not None:
            self._of_process[peer.pid] -= 1
            if not self._of_process[peer.pid]:
                del self._of_process[peer.pid]
        self._warned = self._warned and len(self._peers) > self._most // 2
        if peer.messages:
            peer.messages.clear()
            self._waiting.remove(peer)

    def broken(self, error: frames.Broken) -> None:
        """Log that a peer violated the protocol."""
        log.warning("on %s: %s: 1 connections were closed", self.address, error)

    # ------------------------------------------------------------------------------------------------------------------ accept
    def _accept(self) -> None:
        assert self._loop is not None
        for _ in range(AT_ONCE):
            try:
                connection, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                if error.errno not in GONE:
                    raise
                self._warn(f"no connection can be accepted ({error.strerror})")
                self._make_room()
                self._loop.remove_reader(self._socket)
                self._loop.call_later(NO_DESCRIPTOR_S, self._again)
                return
            pid, uid = _credentials(connection)
            if len(self._peers) >= self._most:
                self._warn(f"{len(self._peers)} connections")
                if not self._make_room(pid):
                    connection.close()
                    continue
            connection.setblocking(False)
            self._number += 1
            peer = Peer(self, self._number.to_bytes(8, "big"), pid, uid, connection)
            self._peers[peer.route] = peer
            self._of_process[pid] += 1
            self._loop.create_task(self._connect(peer))

    async def _connect(self, peer: Peer) -> None:
        if peer.accepted.fileno() < 0:  # it was closed for another one
            return
        peer.connecting = True
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: peer, peer.accepted)
        except (OSError, ValueError):  # it is gone
            peer.accepted.close()
            self.lost(peer)

    def _make_room(self, pid: int | None = None) -> bool:
        """Close a connection that has never sent a message; return whether there was one.

        If the process ``pid`` has clearly fewer connections than the process with most, close one of the latter; otherwise the oldest
        that was silent for `SILENT_S`.
        """
        now, process = time.monotonic(), None
        if pid is not None:
            process, most = max(self._of_process.items(), key=lambda item: item[1])
            if most <= self._of_process[pid] + 1:
                process = None
        for peer in self._peers.values():
            fits = peer.pid == process if process is not None else now - peer.since > SILENT_S
            if fits and not peer.spoke:
                peer.abort()
                self.lost(peer)
                return True
        return False

    def _again(self) -> None:
        if self._socket.fileno() >= 0 and self._loop is not None:
            self._loop.add_reader(self._socket, self._accept)

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s on %s: no more are accepted for now", what, self.address)


def clearable(path: Path) -> bool:
    """Return whether the path holds a dead daemon's socket. Raises `InvalidInput` if it holds anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InvalidInput(f"cannot listen on {path}: {error.strerror}", hint=SOCKET_HINT) from None
    if not stat.S_ISSOCK(mode):
        raise InvalidInput(f"{path} exists and is not a socket", hint="move it away, or choose another address with --bind")
    return True


def permit(path: Path, group: int | None) -> None:
    """Open the socket to the daemon's user only, or to the group, too."""
    if group is None:
        os.chmod(path, 0o600)
        return
    try:
        os.chown(path, -1, group)
        os.chmod(path, 0o660)
    except OSError as error:
        raise InvalidInput(
            f"cannot give {path} to its group: {error.strerror}", hint="socket_group: the service's user must be in it"
        ) from None


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """Return process and user at the other end, as the kernel reports them."""
    pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid
