"""The worker processes of a collector, and the pipes to them.

Processes are spawned, never forked: environments and policies are made there. A worker that fails is reported once, by a `WorkerFailed`
that names it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from offrl.errors import InvalidInput, WorkerFailed, from_wire
from offrld.collect.transport import pack, unpack
from offrld.collect.worker_process import serve

END_S = 5.0  # for a worker to end after it was asked to


class WorkerPool:
    """One process for each environment maker.

    Args:
        policy, factory: what acts, or the function that makes it in each process.
        options: of each worker's `Collector`.
        seed: a worker resets its first environment with it, plus the number of environments of the workers before it.
        envs: environments of one worker.
        timeout_s: a worker that sends nothing for longer has failed.
        lost: called before the error of a failed worker is raised.

    Attributes:
        processes: the processes, in the order of the makers.
        stop: 1 while workers should end their batches early.
        width: environments of one worker.

    Raises:
        InvalidInput: something cannot be sent to a new process, or a worker's collector refuses an argument.
        WorkerFailed: a worker ended while it started.
    """

    def __init__(
        self,
        makers: Sequence[Any],
        policy: Any,
        factory: Callable[[], Any] | None,
        options: Mapping[str, Any],
        *,
        seed: int,
        envs: int,
        timeout_s: float,
        lost: Callable[[], None],
    ) -> None:
        self.count, self.width = len(makers), envs
        self._timeout_s, self._lost = timeout_s, lost
        context = multiprocessing.get_context("spawn")
        self.stop = context.RawValue("b", 0)
        self.processes: list[Any] = []
        self._pipes: list[Connection] = []
        try:
            for number, maker in enumerate(makers):
                arguments = (self.stop, maker, policy, factory, {**options, "seed": seed + number * envs})
                self._start(context, number, arguments)
            for number in range(self.count):
                self.width = self.receive(number)[0]["envs"]
        except BaseException:
            self.close()
            raise

    def _start(self, context: Any, number: int, arguments: tuple[Any, ...]) -> None:
        mine, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, *arguments), name=f"collector {number}", daemon=True)
        try:
            process.start()
        except Exception as error:  # any error of pickling: it is about an argument of the caller
            mine.close()
            raise InvalidInput(
                f"environment or policy cannot be sent to a new process: {error}",
                hint="name a function of a module, or give policy_factory",
            ) from None
        finally:
            theirs.close()
        self.processes.append(process)
        self._pipes.append(mine)

    def send(self, number: int, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] = {}) -> None:
        """Send a worker a command."""
        try:
            self._pipes[number].send_bytes(pack(message, arrays))
        except OSError:
            self.receive(number)  # raises the error that the worker sent before its end
            raise

    def receive(self, number: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Wait for a worker's next message; raises the worker's error, or `WorkerFailed`."""
        pipe = self._pipes[number]
        try:
            if not pipe.poll(self._timeout_s):
                raise self._failure(number, f"has sent nothing for {self._timeout_s:g} s")
            message, arrays = unpack(bytearray(pipe.recv_bytes()))  # a bytearray makes the arrays writable
        except (EOFError, ConnectionResetError):
            self.processes[number].join(END_S)
            raise self._failure(number, f"has ended: {_ending(self.processes[number].exitcode)}") from None
        if "error" in message:
            error = message["error"]
            self._lost()
            raise from_wire(error["code"], f"worker {number}: {error['message']}", error["hint"])
        return message, arrays

    def first_of(self, numbers: set[int]) -> int:
        """Wait until one of these workers has sent a message; returns its number."""
        ready = set(wait([self._pipes[number] for number in sorted(numbers)], self._timeout_s))
        for number in sorted(numbers):
            if self._pipes[number] in ready:
                return number
        raise self._failure(min(numbers), f"has sent nothing for {self._timeout_s:g} s")

    def _failure(self, number: int, what: str) -> WorkerFailed:
        self._lost()
        return WorkerFailed(f"worker {number} of {self.count} {what}", hint="its steps up to the last batch are kept")

    def close(self) -> None:
        """End the workers: those that do not end when asked are terminated, then killed. May be called twice."""
        processes, pipes = self.processes, self._pipes
        self.processes, self._pipes = [], []
        self.stop.value = 1
        for pipe in pipes:
            try:
                pipe.send_bytes(pack({"do": "stop"}, {}))
            except OSError:
                continue  # it has ended already
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(END_S)
            if process.is_alive():
                process.terminate()
                process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()


def _ending(status: int | None) -> str:
    if status is None:
        return "it has closed its pipe and does not end"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


__all__ = ["WorkerPool"]
