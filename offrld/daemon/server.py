"""The server loop: takes requests from the sockets and answers each in a task of its own, so that a slow one delays nobody.

The frames of a request are ``[client, id, body]`` or ``[client, id, body, data]``, those of its reply ``[client, id, body]``. The loop
survives any message: one that cannot be read gets an error reply. Caller and role are checked before a handler sees the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import time
from collections import Counter
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from offrl import keys, wire
from offrl.errors import InternalError, InvalidMessage
from offrl_store.errors import OffrlError
from offrld.daemon.access import roles
from offrld.daemon.access.caller import LOCAL, SERVICE, Caller, current
from offrld.daemon.app import App
from offrld.daemon.config import Settings
from offrld.daemon.handlers import HANDLERS
from offrld.daemon.logs import about
from offrld.daemon.transport.endpoint import FRAMES, PER_CLIENT, Endpoint
from offrld.daemon.transport.keys import AllowList, Authenticator
from offrld.daemon.transport.memory_guard import MemoryGuard
from offrld.state.folder import SOCKET_LIMIT, refused

PER_KEY = 512  # unanswered requests of one key, over all its connections
IN_ALL = 4096  # unanswered requests
ID_BYTES = 64
BURST, TURN_S = 64, 0.005  # most messages from a socket, and most seconds, before other tasks get a turn
LAST_S = 2.0  # for unfinished replies when the daemon stops
FILES = 65_536  # wanted limit of open files
BULK = 50  # entries (jobs, events) from which on a thread encodes the reply
log = logging.getLogger("offrld.server")

Client = tuple[Endpoint, bytes]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Question:
    """An unanswered request: its client, caller and arrival (``began``), and its size in bytes."""

    client: Client
    number: bytes  # the client's id of the request
    caller: Caller
    sender: Any  # for `Endpoint.caller`
    request: wire.Request[Any]
    began: float
    size: int


class Busy(OffrlError):
    """Too many requests at once."""

    code = "busy"


class Server:
    """The sockets of the daemon. Call ``bind``, ``run`` until cancelled, then ``close``."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._endpoints: list[Endpoint] = []
        self._authenticator: Authenticator | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")  # the default pool deletes folders and computes checksums
        self._open: Counter[Client] = Counter()
        self._of_key: Counter[str] = Counter()
        self._bytes = 0  # of unanswered requests
        self._most_bytes = app.settings.input_memory_mb << 18  # a quarter of the limit: the rest is for ZeroMQ

    def bind(self, settings: Settings) -> str:
        """Listen at the address of the settings; with a tcp address, also on the local socket in the state folder.

        Return the address, with the real port instead of 0. Raises `InvalidInput` if the system refuses the address, `NotAllowed` if others
        can read the daemon's secret key.
        """
        most = min(settings.max_connections, _open_files() // 2)
        local_options = {"group": settings.socket_group, "local_role": settings.local_role, "max_connections": most}
        local = f"ipc://{self._app.state.socket}"
        if not settings.bind.startswith("tcp://"):
            return self._listen(settings.bind, **local_options)
        if settings.insecure:
            address = self._listen(settings.bind, local_role=settings.local_role, max_connections=most)
        else:
            pair = keys.server_pair(self._app.state.root)
            self._authenticator = Authenticator(AllowList(self._app.state.root, self._key_changed, self._app.passes))
            address = self._listen(settings.bind, authenticator=self._authenticator, server_key=pair, max_connections=most)
            log.info("%d keys are accepted; the daemon's public key is %s", len(self._authenticator.allowed), pair.public)
        if len(str(self._app.state.socket).encode()) <= SOCKET_LIMIT:
            self._listen(local, **local_options)
        return address

    async def run(self) -> None:
        """Answer requests for ever."""
        async with asyncio.TaskGroup() as tasks:
            for endpoint in self._endpoints:
                tasks.create_task(self._serve(endpoint))
                tasks.create_task(endpoint.watch())
            tasks.create_task(MemoryGuard(self._app.settings.input_memory_mb << 20, self._disconnect).run())
            if self._authenticator is not None:
                tasks.create_task(self._authenticator.allowed.watch())

    async def close(self) -> None:
        """Wait a moment for unfinished replies, then close."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(endpoint.close() for endpoint in self._endpoints))
        self._encoder.shutdown()

    # ------------------------------------------------------------------------------------------------------------- requests
    async def _serve(self, endpoint: Endpoint) -> None:
        count, spent = 0, 0.0
        while True:
            frames, sender = await endpoint.receive()
            began = time.perf_counter()
            try:
                self._take(endpoint, frames, sender, began)
            except Exception:
                log.exception("a request was dropped")
            count, spent = count + 1, spent + time.perf_counter() - began
            if count == BURST or spent > TURN_S:
                count, spent = 0, 0.0
                await asyncio.sleep(0)

    def _take(self, endpoint: Endpoint, frames: list[bytes], sender: Any, began: float) -> None:
        client = (endpoint, frames[0])
        if not 3 <= len(frames) <= FRAMES or len(frames[1]) > ID_BYTES:
            number = frames[1] if len(frames) > 2 and len(frames[1]) <= ID_BYTES else b""
            error = InvalidMessage(
                f"a request has {len(frames) - 1} frames; expected [id, body] or [id, body, data], with an id of at most {ID_BYTES} bytes"
            )
            self._send(client, number, wire.encode_error(error))
            return
        number = frames[1]
        size = sum(map(len, frames))
        caller, request = SERVICE, None
        try:
            caller = endpoint.caller(sender)
            self._check_room(client, caller, size)
            request = wire.decode_request(*frames[2:])
            roles.check(caller, request)
            token = current.set(caller)
            try:
                with about(getattr(request, "job", None)):
                    reply = HANDLERS[type(request)](self._app, request)
                    if not isinstance(reply, wire.Reply):
                        self._begin(Question(client, number, caller, sender, request, began, size), reply)
                        return
            finally:
                current.reset(token)
            answer = wire.encode_reply(reply)
            self._answered(request.type, began)
        except Exception as error:
            self._answered(request.type if request is not None else "invalid", began, error)
            with about(getattr(request, "job", None)):
                answer = _error(error, request.type if request is not None else "a request")
            if request is not None and isinstance(error, OffrlError) and request.changes():
                self._app.record(caller, request, None, error)
        self._send(client, number, answer)

    def _check_room(self, client: Client, caller: Caller, size: int) -> None:
        count = self._of_key.get(caller.name, 0) if caller.name != LOCAL else 0
        open_here = self._open.get(client, 0)
        if open_here >= PER_CLIENT or count >= PER_KEY or len(self._tasks) >= IN_ALL:
            raise Busy(f"{max(open_here, count)} requests of this client are unanswered", hint="wait for some of the replies")
        if self._bytes + size > self._most_bytes:
            raise Busy(f"requests of {self._bytes >> 20} MB are unanswered", hint="wait, then send it again")

    def _begin(self, question: Question, reply: Awaitable[wire.Reply]) -> None:
        """Answer in a new task, which acts in the caller's name and logs about the request's job."""
        self._open[question.client] += 1
        self._of_key[question.caller.name] += 1
        self._bytes += question.size
        task = asyncio.get_running_loop().create_task(self._answer(question, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, question: Question, reply: Awaitable[wire.Reply]) -> None:
        client, request, caller = question.client, question.request, question.caller
        result: wire.Reply | None = None
        problem: Exception | None = None
        try:
            result = await reply
        except Exception as error:
            problem = error
        finally:
            self._bytes -= question.size
            _take_one(self._open, client)
            _take_one(self._of_key, caller.name)
        if request.changes(result):
            await self._app.record(caller, request, result, problem)
        try:
            if problem is not None:
                raise problem
            assert result is not None
            roles.check(client[0].caller(question.sender), request)  # a key removed in the meantime learns nothing more
            answer = await self._encoded(result)
            if len(answer) > wire.MAX_MESSAGE:
                raise InternalError(f"the reply to {request.type} has {len(answer)} bytes, more than a message can hold")
        except Exception as error:
            problem = error
            answer = _error(error, request.type)
        self._answered(request.type, question.began, problem)
        self._send(client, question.number, answer)

    async def _encoded(self, reply: wire.Reply) -> bytes:
        """Encode a reply. A thousand jobs take 10 ms, during which the loop would answer nobody: a thread encodes them."""
        if any(isinstance(value, list) and len(value) >= BULK for value in reply.__dict__.values()):
            return await asyncio.get_running_loop().run_in_executor(self._encoder, wire.encode_reply, reply)
        return wire.encode_reply(reply)

    def _answered(self, name: str, began: float, error: Exception | None = None) -> None:
        """Count a request, and log it at level debug."""
        outcome = "ok" if error is None else error.code if isinstance(error, OffrlError) else "internal"
        seconds = time.perf_counter() - began
        self._app.observer.request_answered(name, outcome, seconds)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("request type=%s outcome=%s ms=%.2f", name, outcome, 1000 * seconds)

    def _send(self, client: Client, number: bytes, answer: bytes) -> None:
        endpoint, route = client
        endpoint.send([route, number, answer])

    # --------------------------------------------------------------------------------------------------------------- sockets
    def _listen(self, url: str, **options: Any) -> str:
        self._endpoints.append(Endpoint(url, memory_bytes=self._app.settings.input_memory_mb << 20, **options))
        return self._endpoints[-1].address

    def _disconnect(self) -> int:
        return sum(endpoint.disconnect() for endpoint in self._endpoints)

    def _key_changed(self, action: str, name: str, role: str) -> None:
        log.info("%s: %s (%s)", action.replace("_", " "), name, role)
        self._app.audit(action, key=name, key_role=role)


def _take_one(counter: Counter[Key], key: Key) -> None:
    """Lower a count by one; remove a key that reaches 0."""
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


def _error(error: Exception, name: str) -> bytes:
    """Return the error reply; log an unexpected error with its traceback."""
    if isinstance(error, OSError) and (refusal := refused(error, name)) is not None:
        log.error("%s: %s", name, refusal)
        error = refusal
    if not isinstance(error, OffrlError):
        log.error("%s failed", name, exc_info=error)
        error = InternalError(f"{name} failed in the daemon: {type(error).__name__}", hint="the daemon's log holds the traceback")
    return wire.encode_error(error)


def _open_files() -> int:
    """Raise the limit of open files as far as the system allows; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return FILES if soft == resource.RLIM_INFINITY else soft
