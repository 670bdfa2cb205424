"""The ROUTER loop: takes requests from the socket, answers each from a task of its own, so that a slow one holds up nobody.

Frames of a request are ``[client, id, body]``, of its reply the same. Whatever arrives, the loop goes on: what cannot be understood gets
an error reply where there is somebody to reply to.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path

import zmq
import zmq.asyncio

from offrl import wire
from offrl.errors import InternalError, InvalidInput, InvalidMessage
from offrl_store.errors import OffrlError
from offrld.daemon.app import App
from offrld.daemon.handlers import HANDLERS
from offrld.daemon.logs import about

PER_CLIENT = 64      # requests of one client that are being answered; more are refused
IN_ALL = 4096
ID_BYTES = 64
BURST = 64           # messages taken from the socket before other tasks get a turn
LAST_S = 2.0         # for answers under way when the daemon stops
log = logging.getLogger("offrld.server")


class Busy(OffrlError):
    """More requests at once than are taken."""

    code = "busy"


class Server:
    """The socket of the daemon. ``bind``, then ``run`` until it is cancelled, then ``close``."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._context = zmq.asyncio.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: Counter[bytes] = Counter()

    def bind(self, url: str) -> str:
        """Listen on ``url``; returns the address with the port that a 0 stood for. `InvalidInput` where the system refuses."""
        socket = self._socket
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE)
        socket.setsockopt(zmq.RCVHWM, PER_CLIENT)
        socket.setsockopt(zmq.SNDHWM, 4 * PER_CLIENT)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.setsockopt(zmq.BACKLOG, 512)
        path = Path(url.removeprefix("ipc://")) if url.startswith("ipc://") else None
        if path is not None:
            _clear(path)
        try:
            socket.bind(url)
        except zmq.ZMQError as error:
            raise InvalidInput(f"cannot listen on {url}: {error.strerror}", hint="choose another address with --bind") from None
        if path is not None:
            os.chmod(path, 0o600)
        return socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def run(self) -> None:
        """Answer requests for ever."""
        taken = 0
        while True:
            frames = await self._socket.recv_multipart()
            try:
                await self._take(frames)
            except Exception:
                log.exception("a request was dropped")
            taken += 1
            if taken % BURST == 0:
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Give the answers under way a moment, then close."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close()
        self._context.term()

    async def _take(self, frames: list[bytes]) -> None:
        client = frames[0]
        if len(frames) != 3 or len(frames[1]) > ID_BYTES:
            number = frames[1] if len(frames) > 2 and len(frames[1]) <= ID_BYTES else b""
            error = InvalidMessage(f"a request has the frames [id, body], this one has {len(frames) - 1}, the id at most {ID_BYTES} bytes")
            await self._send(client, number, wire.encode_error(error))
            return
        number, body, began = frames[1], frames[2], time.perf_counter()
        try:
            if self._open[client] >= PER_CLIENT or len(self._tasks) >= IN_ALL:
                raise Busy(f"{self._open[client]} requests of this client are being answered", hint="wait for some of the answers")
            request = wire.decode_request(body)
        except Exception as error:
            self._answered("invalid", began, error)
            await self._send(client, number, _error(error, "a request"))
            if not self._open[client]:
                del self._open[client]
            return
        with about(getattr(request, "job", None)):
            try:
                reply = HANDLERS[type(request)](self._app, request)
            except Exception as error:
                self._answered(request.type, began, error)
                await self._send(client, number, _error(error, request.type))
                return
            if isinstance(reply, wire.Reply):
                self._answered(request.type, began)
                await self._send(client, number, wire.encode_reply(reply))
                return
            self._open[client] += 1
            task = asyncio.get_running_loop().create_task(self._answer(client, number, request.type, reply, began))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, client: bytes, number: bytes, name: str, reply: Awaitable[wire.Reply], began: float) -> None:
        failed: Exception | None = None
        try:
            answer = wire.encode_reply(await reply)
            if len(answer) > wire.MAX_MESSAGE:
                raise InternalError(f"the answer to {name} has {len(answer)} bytes, more than fit into a message")
        except Exception as error:
            failed = error
            answer = _error(error, name)
        finally:
            self._open[client] -= 1
            if self._open[client] <= 0:
                del self._open[client]
        self._answered(name, began, failed)
        await self._send(client, number, answer)

    def _answered(self, name: str, began: float, error: Exception | None = None) -> None:
        """Count a request, and log it where somebody looks for a fault."""
        outcome = "ok" if error is None else error.code if isinstance(error, OffrlError) else "internal"
        seconds = time.perf_counter() - began
        self._app.observer.request_answered(name, outcome, seconds)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("request type=%s outcome=%s ms=%.2f", name, outcome, 1000 * seconds)

    async def _send(self, client: bytes, number: bytes, answer: bytes) -> None:
        try:
            await self._socket.send_multipart([client, number, answer])
        except zmq.ZMQError as error:
            log.debug("an answer was not sent: %s", error)


def _error(error: Exception, name: str) -> bytes:
    """The error reply; what is not an error for the user is logged with its traceback."""
    if not isinstance(error, OffrlError):
        if isinstance(error, OSError) and error.errno == 28:
            from offrl.errors import DiskFull

            return wire.encode_error(DiskFull(f"the daemon's disk is full: {error.filename or name}", hint="free some space there"))
        log.error("%s failed", name, exc_info=error)
        error = InternalError(f"{name} failed in the daemon: {type(error).__name__}", hint="the daemon's log holds the traceback")
    return wire.encode_error(error)


def _clear(path: Path) -> None:
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
