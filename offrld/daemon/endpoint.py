"""One listening socket: its limits, its transport's rules (ipc by file permission, tcp by CURVE keys), and who a message on it is from.

The sockets are kept apart, so that who is asking follows from the socket and never from what a message says.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import pwd
import socket
import stat
from functools import lru_cache
from pathlib import Path

import zmq
import zmq.asyncio

from offrl import keys, wire
from offrl.errors import InvalidInput
from offrld.daemon.auth import ZAP_DOMAIN, Authenticator
from offrld.daemon.caller import ANYONE, LOCAL, Caller

PER_CLIENT = 64          # requests of one client that are being answered; more are refused
HANDSHAKE_MS = 5_000     # a connection that has not said who it is by then is closed
HEARTBEAT_MS = 20_000    # a client whose machine is gone leaves no connection behind
FRAMES = 4               # of a message: who it is from, its id, its body, its data
ACCEPTED, GONE = int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)
# numbers: pyzmq's own names for them take longer to look at than ZeroMQ takes to answer
READABLE, EVENTS, MORE, NOW = int(zmq.POLLIN), int(zmq.EVENTS), int(zmq.RCVMORE), int(zmq.NOBLOCK)
log = logging.getLogger("offrld.server")


class Endpoint:
    """A bound ROUTER socket. ``address`` is where it listens, with the port that a 0 stood for.

    Raises `InvalidInput` where the system refuses the address.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        url: str,
        *,
        authenticator: Authenticator | None = None,
        server_key: keys.KeyPair | None = None,
        local_role: str = "operator",
        group: str | None = None,
        max_connections: int = 1024,
    ) -> None:
        self._authenticator = authenticator
        self._group = None if group is None else group_id(group)
        self._local_role, self._max_connections = local_role, max_connections
        self._local = Caller(LOCAL, "operator") if url.startswith("ipc://") else Caller(ANYONE, local_role)
        self._monitor: zmq.asyncio.Socket | None = None
        # Not an asyncio socket of pyzmq: what it does beside receiving and sending was two fifths of a ping's round trip.
        self.socket = zmq.Context.shadow(context.underlying).socket(zmq.ROUTER)
        self._reading: asyncio.AbstractEventLoop | None = None  # the loop that watches the socket's descriptor
        self._waiter: asyncio.Future[None] | None = None        # of `receive`, while there is nothing
        self._connected: set[int] = set()                       # descriptors of the connections
        for option, value in {
            zmq.MAXMSGSIZE: wire.MAX_MESSAGE, zmq.RCVHWM: PER_CLIENT, zmq.SNDHWM: PER_CLIENT, zmq.LINGER: 1000, zmq.BACKLOG: 512,
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
        }.items():  # fmt: skip
            self.socket.setsockopt(option, value)
        path = Path(url.removeprefix("ipc://")) if url.startswith("ipc://") else None
        try:
            if path is not None:
                clear(path)
            else:
                self._prepare_tcp(url, server_key)
            place = f"inproc://monitor-{id(self)}"
            self.socket.monitor(place, ACCEPTED | GONE)
            self._monitor = context.socket(zmq.PAIR)
            self._monitor.setsockopt(zmq.RCVHWM, 0)  # ZeroMQ's own thread would wait for us
            self._monitor.setsockopt(zmq.LINGER, 0)
            self._monitor.connect(place)
            self.socket.bind(url)
            if path is not None:
                self._permit(path)
        except zmq.ZMQError as error:
            self.close()
            why = str(error.strerror).partition(" (addr")[0]
            raise InvalidInput(f"cannot listen on {url}: {why}", hint="choose another address with --bind") from None
        except BaseException:
            self.close()
            raise
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def receive(self) -> tuple[list[bytes | memoryview], zmq.Frame | None]:
        """The frames of the next message, and the first of them where that tells who sent it (see `caller`). For one task at a time.

        The fourth is data, and not copied: its memory is given back when nobody holds the view any more. Further ones come empty.
        """
        while not self.socket.getsockopt(EVENTS) & READABLE:
            loop = asyncio.get_running_loop()
            if self._reading is None:
                loop.add_reader(self.socket.getsockopt(zmq.FD), self._wake)
                self._reading = loop
            self._waiter = loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        sender: zmq.Frame | None = None
        if self._authenticator is None and self._group is None:
            frames: list[bytes | memoryview] = [self.socket.recv(NOW)]
        else:
            sender = self.socket.recv(NOW, copy=False)
            frames = [sender.bytes]
        while self.socket.getsockopt(MORE):
            if len(frames) < FRAMES - 1:
                frames.append(self.socket.recv(NOW))
            else:
                part = self.socket.recv(NOW, copy=False)
                frames.append(part.buffer if len(frames) < FRAMES else b"")
        return frames, sender

    def send(self, frames: list[bytes]) -> None:
        """Send a message; a client that has gone, or reads nothing, gets none (ZeroMQ drops it). Never waits. Raises `zmq.ZMQError`."""
        self.socket.send_multipart(frames, NOW)
        if self._waiter is not None and self.socket.getsockopt(EVENTS) & READABLE:
            self._wake()  # sending has taken the news that something arrived from the descriptor

    def _wake(self) -> None:
        if self._waiter is None:
            self.socket.getsockopt(EVENTS)  # takes the news from the descriptor, else the loop would spin until somebody receives
        elif not self._waiter.done():
            self._waiter.set_result(None)

    def caller(self, frame: zmq.Frame | None) -> Caller:
        """Who sent the message of that frame. Raises `NotAllowed` where its key has been removed."""
        if self._authenticator is not None:
            assert frame is not None
            return self._authenticator.caller(frame)
        return self._local if frame is None else self._member(frame)

    async def watch(self) -> None:
        """Count the connections, for ever: at the limit a new one is closed at once, and those that are there go on."""
        connected = self._connected
        warned = False
        while self._monitor is not None:
            event, _ = await self._monitor.recv_multipart()
            number, value = int.from_bytes(event[:2], "little"), int.from_bytes(event[2:6], "little")
            if number == GONE:
                connected.discard(value)
                warned = warned and len(connected) > self._max_connections // 2
                continue
            connected.add(value)
            if len(connected) > self._max_connections:
                self._refuse(value)
                if not warned:
                    log.warning("%d connections on %s: no more are taken for now", len(connected), self.address)
                warned = True

    def disconnect(self) -> int:
        """Close every connection; how many there were."""
        for descriptor in self._connected:
            self._refuse(descriptor)
        return len(self._connected)

    def _refuse(self, descriptor: int) -> None:
        """End a connection that ZeroMQ has accepted; ZeroMQ then closes it. Nothing else may be meant by the number by now."""
        with contextlib.suppress(OSError):  # it has gone
            connection = socket.socket(fileno=descriptor)
            try:
                name = connection.getsockname()
                if self.address.endswith(f":{name[1]}" if isinstance(name, tuple) else f"//{name}"):
                    connection.shutdown(socket.SHUT_RDWR)
            finally:
                connection.detach()

    def close(self) -> None:
        if self._reading is not None:
            self._reading.remove_reader(self.socket.getsockopt(zmq.FD))
            self._reading = None
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close(0)
            self._monitor = None
        self.socket.close()

    # ----------------------------------------------------------------------------------------------------------------- parts
    def _prepare_tcp(self, url: str, server_key: keys.KeyPair | None) -> None:
        for option, value in {
            zmq.TCP_KEEPALIVE: 1, zmq.HEARTBEAT_IVL: HEARTBEAT_MS, zmq.HEARTBEAT_TIMEOUT: 3 * HEARTBEAT_MS, zmq.IPV6: int("[" in url),
        }.items():  # fmt: skip
            self.socket.setsockopt(option, value)
        if self._authenticator is not None:
            assert server_key is not None
            self.socket.setsockopt(zmq.CURVE_SERVER, 1)
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(server_key.secret))
            self.socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
            self.socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it ZeroMQ lets every key in when nobody answers its question

    def _permit(self, path: Path) -> None:
        """The socket is the user's alone (the umask has made it so), or the group's as well."""
        try:
            if self._group is None:
                os.chmod(path, 0o600)
                return
            os.chown(path, -1, self._group)
            os.chmod(path, 0o660)
        except OSError as error:
            raise InvalidInput(
                f"cannot give {path} to its group: {error.strerror}", hint="socket_group: the service's user must be in it"
            ) from None

    def _member(self, frame: zmq.Frame) -> Caller:
        """A user of the group by name; the kernel says which: the address of an ipc peer is ``HOST:UID:GID:PID``."""
        try:
            uid = int(str(frame.get("Peer-Address")).split(":")[-3])
        except (zmq.ZMQError, ValueError, IndexError):
            return Caller("local:unknown", "reader")
        if uid in (0, os.geteuid()):
            return Caller(LOCAL, "operator", f"uid {uid}")
        return Caller(f"local:{_user(uid)}", self._local_role, f"uid {uid}")


def group_id(name: str) -> int:
    """The number of a group. Raises `InvalidInput`."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidInput(f"socket_group: no group {name!r} on this machine", hint=f"sudo groupadd --system {name}") from None


def clear(path: Path) -> None:
    """Make room for the socket: a dead daemon's is removed, anything else stays and is an error."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidInput(f"cannot listen on {path}: {error.strerror}", hint="choose another address with --bind") from None
    if not stat.S_ISSOCK(mode):
        raise InvalidInput(f"{path} exists and is not a socket", hint="move it away, or choose another address with --bind")
    path.unlink()


@lru_cache(1024)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
