"""Run a worker as a process of this machine, in its own session, with control lines on its stdin and event lines on its stdout.

A pidfd reports the exit while the process is still a zombie, so its process group (compiler processes, data loaders) can be killed before
the system can reuse the number. The subprocess class of asyncio would wait until every process has closed the stdout pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

MARK = "OFFRLD_WORKER"  # environment variable, "JOB:STATE_DIR", by which a daemon finds the processes that an earlier one left
SPARE = "spare-"  # prefix of the name that replaces the job for a worker without one; `assign` records its job
MAX_LINE = 8 << 20  # longer event lines are dropped: a worker's output must not fill the daemon's memory
DRAIN_S = 2.0  # longest wait for the rest of stdout after the exit


class LocalWorker:
    """A started worker. `send` and `close_stdin` write to it; `wait` returns its return code (negative: the signal)."""

    def __init__(self, process: subprocess.Popen[bytes], on_line: Callable[[bytes], None], name: str = "") -> None:
        self.pid = process.pid
        self.name = name
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._stdout = _Lines(on_line)
        self._stdin: asyncio.WriteTransport | None = None
        self._read_transport: asyncio.ReadTransport | None = None
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._finishing: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Connect both pipes to the event loop."""
        self._stdin, _ = await self._loop.connect_write_pipe(asyncio.Protocol, self._process.stdin)
        self._read_transport, _ = await self._loop.connect_read_pipe(lambda: self._stdout, self._process.stdout)

    @property
    def ended(self) -> bool:
        """Whether the process is known to be gone."""
        return self._exited.done() or self._finishing is not None

    def listen(self, on_line: Callable[[bytes], None]) -> None:
        """Pass the further lines of its stdout to ``on_line``: a spare worker has received its job."""
        self._stdout.on_line = on_line

    def send(self, message: dict[str, Any]) -> None:
        """Send one control line; do nothing if the worker is gone."""
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.write(json.dumps(message).encode() + b"\n")

    def close_stdin(self) -> None:
        """Close the worker's stdin, as if the daemon were gone: the worker writes a checkpoint and ends."""
        if self._stdin is not None:
            self._stdin.close()

    def kill(self) -> None:
        """Send SIGKILL to the whole process group; do nothing after the end."""
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def dump_stacks(self) -> None:
        """Send SIGUSR1: a worker then writes the stacks of its threads into its log. Any other program ends."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)

    async def wait(self) -> int:
        """Return the return code, after the last line of stdout was delivered."""
        return await asyncio.shield(self._exited)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.kill()  # the leader is a zombie: the system cannot have reused its group number yet
        code = self._process.wait()
        self._finishing = self._loop.create_task(self._finish(code))

    async def _finish(self, code: int) -> None:
        try:
            if self._read_transport is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stdout.ended.wait(), DRAIN_S)
                self._read_transport.close()
            if self._stdin is not None and not self._stdin.is_closing():
                self._stdin.abort()
        finally:
            if not self._exited.done():
                self._exited.set_result(code)


class _Lines(asyncio.Protocol):
    """Splits a byte stream into lines."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self.on_line = on_line
        self._parts = bytearray()
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._parts += data
        if b"\n" in data:
            *lines, rest = self._parts.split(b"\n")
            self._parts = bytearray(rest)
            for line in lines:
                self.on_line(bytes(line))
        elif len(self._parts) > MAX_LINE:
            self._parts.clear()

    def connection_lost(self, error: Exception | None) -> None:
        if self._parts:
            self.on_line(bytes(self._parts))
        self.ended.set()


class LocalExecutor:
    """Starts workers on this machine. Tests replace ``command`` and ``describe_command`` with other programs."""

    def __init__(
        self,
        command: Sequence[str] = (sys.executable, "-m", "offrld.worker"),
        describe_command: Sequence[str] = (sys.executable, "-m", "offrld.worker.describe"),
    ) -> None:
        self.command = tuple(command)
        self.describe_command = tuple(describe_command)

    async def start(
        self,
        state_dir: Path,
        job: str,
        *,
        folder: Path,
        log: Path,
        on_line: Callable[[bytes], None],
        describe: bool = False,
        question: str | None = None,
    ) -> LocalWorker:
        """Start the worker of ``job`` in ``folder`` with its stderr appended to ``log``. Raises `OSError` if the system refuses.

        ``describe``: start the describe worker instead, with an optional ``question`` that it answers.
        """
        command = (*self.describe_command, *([] if question is None else [question])) if describe else self.command
        return await self._start(command, state_dir, job, folder, log, on_line)

    async def start_spare(self, state_dir: Path, *, folder: Path, log: Path, on_line: Callable[[bytes], None]) -> LocalWorker:
        """Start a worker that loads what train jobs need and waits for one. Call `assign` before its start message. Raises `OSError`."""
        return await self._start((*self.command, "--spare"), state_dir, f"{SPARE}{secrets.token_hex(6)}", folder, log, on_line)

    async def _start(
        self, command: Sequence[str], state_dir: Path, name: str, folder: Path, log: Path, on_line: Callable[[bytes], None]
    ) -> LocalWorker:
        environment = dict(os.environ)
        environment[MARK] = f"{name}:{state_dir}"
        environment["PYTHONSAFEPATH"] = "1"  # modules never come from the run folder
        for variable in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):  # these are for the daemon, not for the worker
            environment.pop(variable, None)
        with log.open("ab") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=folder,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
        worker = LocalWorker(process, on_line, name)
        await worker.connect()
        return worker


def assign(state_dir: Path, spare: str, job: str) -> None:
    """Record which job a spare worker gets: its environment, which `leftovers` reads, can no longer change. Raises `OSError`."""
    file = _assigned(state_dir, spare)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    file.write_text(job)  # not synced: a power cut ends the worker too


def unassign(state_dir: Path, spare: str) -> None:
    """Remove the record of `assign`: the worker and its process group are gone."""
    with contextlib.suppress(OSError):
        _assigned(state_dir, spare).unlink(missing_ok=True)


def unassign_ended(state_dir: Path) -> None:
    """Remove the records of `assign` whose processes are gone: a daemon that was killed could not."""
    with contextlib.suppress(FileNotFoundError):
        notes = [entry.name for entry in os.scandir(_assigned(state_dir, SPARE).parent)]
        living = {name for name, _pid in _marked(state_dir)}
        for name in notes:
            if name not in living:
                unassign(state_dir, name)


def _assigned(state_dir: Path, spare: str) -> Path:
    return state_dir / "run" / "workers" / spare


def leftovers(state_dir: Path) -> dict[str, list[int]]:
    """Map job -> ids of the processes that an earlier daemon of this state folder started and did not end."""
    processes: dict[str, list[int]] = {}
    for name, pid in _marked(state_dir):
        job = name
        if name.startswith(SPARE) and "/" not in name:
            with contextlib.suppress(OSError):  # it has no job yet
                job = _assigned(state_dir, name).read_text() or name
        processes.setdefault(job, []).append(pid)
    return processes


def _marked(state_dir: Path) -> Iterator[tuple[str, int]]:
    """Yield name and process id of all processes with the `MARK` of this state folder."""
    prefix, ours = f"{MARK}=".encode(), os.fsencode(state_dir)
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = Path(entry.path, "environ").read_bytes().split(b"\0")
        except OSError:  # another user's, or gone meanwhile
            continue
        for variable in variables:
            name, _, folder = variable.removeprefix(prefix).partition(b":")
            if variable.startswith(prefix) and folder == ours:
                yield os.fsdecode(name), int(entry.name)


async def end_leftovers(state_dir: Path, job: str, pids: list[int], grace_s: float) -> None:
    """Send SIGTERM, on which a train worker writes a checkpoint; after ``grace_s`` kill the processes. Return when all are gone."""
    loop = asyncio.get_running_loop()
    handles: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(OSError):
                handles[pid] = os.pidfd_open(pid)
        # A number may have been reused before its pidfd was opened: list the processes again, now that the pidfds hold the numbers.
        still = leftovers(state_dir).get(job, [])
        for number, grace in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            for pid, handle in handles.items():
                if pid in still:
                    with contextlib.suppress(OSError):
                        signal.pidfd_send_signal(handle, number)
            gone = [_gone(loop, handle) for pid, handle in handles.items() if pid in still]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*gone), grace)
                return
    finally:
        for handle in handles.values():
            os.close(handle)


async def _gone(loop: asyncio.AbstractEventLoop, handle: int) -> None:
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
