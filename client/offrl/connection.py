"""One DEALER socket to the daemon: it sends requests, matches replies by id, and survives a restart of the daemon.

A forked process cannot use the sockets of its parent: each connection reconnects there on first use.

The socket's monitor reports a lost connection at once, without a timeout. Repeatable requests are then sent again when the daemon is
back; the others raise `ConnectionLost`.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import zmq

from offrl import address, keys, wire
from offrl.errors import InvalidInput, NoDaemon, NotAllowed
from offrl.wire import ReplyT, reply_type

HEARTBEAT_MS = 20_000  # three missed heartbeats: the daemon's machine is gone
HANDSHAKE_S = 5.0  # longer than any live daemon's input/output thread needs
RETRY_S = 0.1  # between two attempts to reach a lost daemon
WINDOW = 8  # requests in flight of a stream: 8 MiB of chunks
LARGE = 1 << 16  # bytes of a message from which a copy costs more than zero-copy
AT_ONCE_MS = 20  # most replies arrive sooner: one system call waits for them, without a look at the monitor

# Plain numbers: a lookup of pyzmq's enum takes longer than ZeroMQ's answer.
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)
_UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
_DOWN = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class ConnectionLost(NoDaemon):
    """The connection broke between a request and its reply; the request may or may not have taken effect."""


class Connection:
    """A connection for one thread at a time (a lock makes the others wait).

    Args:
        url: a checked address.
        timeout: seconds to wait for a reply.
        patience: seconds to wait for a daemon that went away during use, for example for its restart.
        key: the key file for a tcp address; by default the one that `offrl.keys.find` finds.
        lost: called with True when the daemon is gone and the client waits for it, with False when it is back.

    Raises:
        NoDaemon: no daemon answers at ``url``.
        NotAllowed: the socket belongs to somebody else, the daemon does not know the key, it is a different daemon from the one that the
            key file names, or there is no key.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 60.0,
        patience: float = 60.0,
        key: str | os.PathLike[str] | None = None,
        lost: Callable[[bool], None] | None = None,
    ) -> None:
        self.url, self.timeout, self.patience, self._key_file = url, timeout, patience, key
        self._on_lost = lost
        self._ids = itertools.count(1)
        self._lock = threading.RLock()
        self._closed = False
        self._context: zmq.Context | None = None
        self._socket: zmq.Socket | None = None
        self._monitor: zmq.Socket | None = None
        _living.add(self)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    # ---------------------------------------------------------------------------------------------------------------- requests
    def request(self, request: wire.Request[ReplyT], *, timeout: float | None = None, again: bool | None = None) -> ReplyT:
        """Send a request and return its reply; raise the error that the daemon sent.

        Args:
            again: whether to send the request again if the connection broke before the reply; by default if it is repeatable.

        Raises:
            NoDaemon: no reply within ``timeout``, or the daemon went away and did not come back within the patience.
            ConnectionLost: the daemon went away, and the request is not repeatable.
            ProtocolMismatch: the daemon speaks another protocol.
        """
        if again is None:
            again = request.repeatable
        with self._lock:
            give_up: float | None = None
            while True:
                try:
                    self._stay_connected()
                    ident = b"%d" % next(self._ids)
                    self._send(ident, _encoded(request))
                    body = self._receive(ident, {}, (ident,), self.timeout if timeout is None else timeout)
                    return wire.decode_reply(body, reply_type(request))
                except ConnectionLost:
                    if not again:
                        raise
                    if give_up is not None and time.monotonic() >= give_up:
                        raise
                    give_up = give_up or time.monotonic() + self.patience
                    self.wait_for_daemon(give_up)

    def stream(self, requests: Iterable[wire.Request[ReplyT]], *, timeout: float | None = None, window: int = WINDOW) -> Iterator[ReplyT]:
        """Yield the replies to many requests in order, with up to ``window`` requests in flight.

        Raises `ConnectionLost` if the daemon goes away meanwhile; no request is repeated.
        """
        with self._lock:
            self._stay_connected()
            waiting: deque[tuple[bytes, wire.Request[ReplyT]]] = deque()
            replies: dict[bytes, bytes] = {}
            source = iter(requests)
            more = True
            while more or waiting:
                while more and len(waiting) < window:
                    request = next(source, None)
                    if request is None:
                        more = False
                        break
                    ident = b"%d" % next(self._ids)
                    self._send(ident, _encoded(request))
                    waiting.append((ident, request))
                if waiting:
                    ident, request = waiting[0]
                    body = self._receive(ident, replies, {i for i, _ in waiting}, self.timeout if timeout is None else timeout)
                    waiting.popleft()
                    yield wire.decode_reply(body, reply_type(request))

    def wait_for_daemon(self, give_up: float) -> None:
        """Reconnect to a lost daemon; raise `NoDaemon` if it is not back at the time ``give_up`` (of `time.monotonic`)."""
        with self._lock:
            reported = False
            while True:
                try:
                    self._connect()
                    if reported and self._on_lost is not None:
                        self._on_lost(False)
                    return
                except NoDaemon:
                    if time.monotonic() >= give_up:
                        raise
                    if not reported and self._on_lost is not None:
                        reported = True
                        self._on_lost(True)
                time.sleep(RETRY_S)

    # ----------------------------------------------------------------------------------------------------------------- socket
    def _connect(self) -> None:
        """Open a socket and complete the handshake with a daemon."""
        self._drop()
        if self._closed:
            raise NoDaemon("this client is closed", hint="make a new offrl.Client()")
        if self._context is None:
            self._context = zmq.Context()
            self._context.set(zmq.IO_THREADS, 1)
        key = self._key()
        for last in (False, True):
            address.probe(self.url)
            if (failure := self._handshake(self._context, key)) is None:
                return
            self._drop()
            if last or isinstance(failure, NoDaemon):
                raise failure
            time.sleep(RETRY_S)  # a daemon that is stopping also aborts handshakes

    def _key(self) -> keys.ClientKey | None:
        """Return the key for a tcp address. Without a key only this machine is allowed: nothing crosses a network in the clear."""
        if not self.url.startswith("tcp://"):
            return None
        path = keys.find(self.url, self._key_file)
        if path is None:
            if not _own_machine(self.url):
                raise self._no_key()
            return None
        key = keys.read_client(path)
        if not key.server:
            raise NotAllowed(
                f"the key file {path} does not name the daemon's public key", hint='`offrl keys server` prints it there: add server = "..."'
            )
        return key

    def _no_key(self) -> NotAllowed:
        where = keys.config_dir() / "offrl.key"
        return NotAllowed(
            f"the daemon at {self.url} accepts registered keys only; neither OFFRL_KEY nor {where} is a key file", hint=keys.NEW_HINT
        )

    def _handshake(self, context: zmq.Context, key: keys.ClientKey | None) -> NoDaemon | NotAllowed | None:
        """Open a socket and return what went wrong before the daemon proved its identity and let us in; None: nothing."""
        self._socket = socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE)
        # No automatic reconnection: ZeroMQ would send queued chunks of a file to the new daemon, without the chunks before them.
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.SNDTIMEO, 100)
        socket.setsockopt(zmq.RCVTIMEO, AT_ONCE_MS)
        if self.url.startswith("tcp://["):
            socket.setsockopt(zmq.IPV6, 1)
        if self.url.startswith("tcp://"):
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        if key is not None:
            socket.setsockopt(zmq.CURVE_SERVERKEY, bytes.fromhex(key.server))
            socket.setsockopt(zmq.CURVE_PUBLICKEY, bytes.fromhex(key.public))
            socket.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(key.secret))
        self._monitor = monitor = socket.get_monitor_socket(_UP | _DOWN)
        monitor.setsockopt(zmq.LINGER, 0)
        socket.connect(self.url)
        end = time.monotonic() + HANDSHAKE_S
        event = 0
        if monitor.poll(max(0, int((end - time.monotonic()) * 1000) + 1)):
            event = _event(monitor)
        if event == _UP:
            return None
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and key is not None:
            return NotAllowed(
                f"the daemon at {self.url} does not accept the key {key.name!r} ({key.path})",
                hint=f"on its machine: offrl keys add {key.name} {key.public} --role ROLE",
            )
        spoken = address.mechanism(self.url) if event and self.url.startswith("tcp://") else ""
        if key is None and spoken == "CURVE":
            return self._no_key()
        if key is not None and spoken == "NULL":
            return NotAllowed(
                f"what listens at {self.url} has no keys, and {key.path} is for a daemon that has",
                hint="it is not that daemon; one that was started with --insecure is used with an empty OFFRL_KEY",
            )
        if key is not None and spoken == "CURVE":
            return NotAllowed(
                f"what listens at {self.url} is not the daemon that {key.path} names: its key is another",
                hint="compare `server` in that file with what `offrl keys server` prints on the daemon's machine",
            )
        return NoDaemon(
            f"what listens at {self.url} does not answer as offrld does", hint="check the address; a daemon that hangs must be restarted"
        )

    def _lost(self) -> bool:
        """Whether the monitor reports a broken connection."""
        if (monitor := self._monitor) is None:
            return True
        lost = False
        while not lost and monitor.getsockopt(_EVENTS) & _READABLE:  # type: ignore[operator]  # this option is an int
            lost = bool(_event(monitor) & _DOWN)
        return lost

    def _stay_connected(self) -> None:
        """Reconnect if the connection broke while idle; a missing daemon is an error at once."""
        if self._lost():
            self._connect()

    def _send(self, ident: bytes, frames: list[bytes | memoryview]) -> None:
        if (socket := self._socket) is None:
            raise self._gone()
        end = time.monotonic() + self.timeout
        while True:
            try:
                socket.send_multipart([ident, *frames], copy=len(frames[-1]) < LARGE)
                return
            except zmq.Again:  # no peer, or a peer that does not read
                if self._lost():
                    raise self._gone() from None
                if time.monotonic() >= end:
                    raise self._silent(self.timeout) from None

    def _receive(self, ident: bytes, replies: dict[bytes, bytes], wanted: Collection[bytes], timeout: float) -> bytes:
        """Return the body of the reply to ``ident``; keep other wanted replies in ``replies`` and drop late ones."""
        socket, monitor = self._socket, self._monitor
        if socket is None or monitor is None:
            raise self._gone()
        end = time.monotonic() + timeout
        poller: zmq.Poller | None = None
        while ident not in replies:
            try:
                frames = socket.recv_multipart(0 if poller is None else zmq.NOBLOCK)
                if len(frames) == 2 and frames[0] in wanted:
                    replies[frames[0]] = frames[1]
                continue
            except zmq.Again:
                if poller is None:
                    poller = zmq.Poller()
                    poller.register(socket, zmq.POLLIN)
                    poller.register(monitor, zmq.POLLIN)
            ready = dict(poller.poll(max(0, int((end - time.monotonic()) * 1000) + 1)))
            if socket in ready:
                continue
            if monitor in ready:
                if _event(monitor) & _DOWN:
                    raise self._gone()
            elif time.monotonic() >= end:
                raise self._silent(timeout)
        return replies.pop(ident)

    def _gone(self) -> ConnectionLost:
        self._drop()
        return ConnectionLost(f"the daemon at {self.url} went away before it answered", hint="see with `offrl status` whether it was done")

    def _silent(self, timeout: float) -> NoDaemon:
        return NoDaemon(
            f"no answer from {self.url} within {timeout:g} s", hint="see the daemon's log; a daemon that hangs must be restarted"
        )

    def _drop(self) -> None:
        if self._socket is not None:
            if self._monitor is not None:
                self._socket.disable_monitor()
                self._monitor.close(0)
            self._socket.close(0)
        self._socket = self._monitor = None

    def close(self) -> None:
        """Close the socket and drop replies in flight. May be called twice."""
        with self._lock:
            self._closed = True
            self._drop()
            if self._context is not None:
                self._context.term()
                self._context = None

    @property
    def closed(self) -> bool:
        return self._closed

    def _forked(self) -> None:
        """Reset in a forked process: the lock may be held by a thread of the parent, and the threads of the sockets exist only there."""
        _inherited.append((self._context, self._monitor, self._socket))
        self._lock = threading.RLock()
        self._context = self._socket = self._monitor = None


_living: weakref.WeakSet[Connection] = weakref.WeakSet()
# Sockets of the parent process; closing them here would wait for threads that exist only there.
_inherited: list[tuple[zmq.Context | None, zmq.Socket | None, zmq.Socket | None]] = []


def _after_fork() -> None:
    for connection in list(_living):
        connection._forked()


os.register_at_fork(after_in_child=_after_fork)


def _event(monitor: zmq.Socket) -> int:
    """Return the next event of a socket's monitor."""
    return int.from_bytes(monitor.recv_multipart()[0][:2], "little")


def _own_machine(url: str) -> bool:
    host = url.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _encoded(request: wire.Request[Any]) -> list[bytes | memoryview]:
    """Return the frames of a request; raise `InvalidInput` if it is too large, because the daemon would drop the connection."""
    try:
        frames = wire.encode_frames(request)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(
            f"a value of the request cannot be sent: {error}", hint="settings are numbers, texts, true, false, and lists"
        ) from None
    if len(frames[0]) > wire.MAX_MESSAGE:
        raise InvalidInput(
            f"the {request.type} request has {len(frames[0]):,} bytes, {wire.MAX_MESSAGE:,} are the limit",
            hint="fewer or shorter file names or settings",
        )
    return frames


__all__ = ["Connection", "ConnectionLost"]
