"""The standard streams of a command: they may be closed, full, a pipe that nobody reads any more, or of an encoding without our letters.

`run` prepares them, does the work, and turns what they refuse into one line and an exit status. Where stderr cannot be written, what
would have gone there is lost, and nothing else.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any

from offrl import printable
from offrl_store.errors import OffrlError

READER_GONE = 141  # as a shell shows a process that SIGPIPE has ended
SHOWN = 80  # characters of what could not be written


class OutputFailed(OffrlError):
    """What a command prints cannot be written."""

    code = "output_failed"


class ReaderGone(OutputFailed):
    """The other end of the pipe is closed."""

    exit_status = READER_GONE


def run(work: Callable[[], int], *, needs_stdout: bool = True) -> int:
    """Do ``work`` with streams that can be used; its exit status, 1 where stdout cannot be written, `READER_GONE` where nobody reads it.

    ``needs_stdout``: without a stdout the work is not begun, so that nothing is done whose result nobody would see.
    """
    there = _prepare()
    try:
        if needs_stdout and not there:
            raise OutputFailed("stdout is closed", hint="redirect it to a file or to /dev/null")
        try:
            status = work()
        except SystemExit as error:  # of argparse
            status = error.code if isinstance(error.code, int) else 1
        sys.stdout.flush()
        return status
    except OutputFailed as error:
        if not isinstance(error, ReaderGone):
            print(f"error: {printable.line(error)}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left is flushed at the end of the process: to nowhere
        return error.exit_status


def _prepare() -> bool:
    """Put streams of our own in the place of Python's; whether stdout was open."""
    there = []
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
            there.append(True)
        except OSError:  # the next file that is opened would take its number, and be written by whatever prints
            os.dup2(os.open(os.devnull, mode), number)
            there.append(False)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.stderr, at_once=True)
    return there[1]


def _text(raw: io.FileIO, former: Any, *, at_once: bool = False) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=former.encoding if former is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=at_once or raw.isatty(),
    )


def is_stdout(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is what stdout goes into, /dev/stdout for example."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:
        return False


def _lost(data: bytes) -> str:
    """What of the output is lost, the number of a job for example; of a policy or another file nothing that a terminal could show."""
    text = data.decode(errors="replace")
    if any(ord(sign) < 32 and not sign.isspace() for sign in text):
        return "redirect stdout to another place"
    text = " ".join(text.split())
    return f"lost: {text if len(text) <= SHOWN else text[:SHOWN] + '...'}"


class _Stdout(io.FileIO):
    def write(self, data: Any) -> int:
        while True:
            try:
                written = super().write(data)
            except OSError as error:
                if error.errno == errno.EPIPE:
                    raise ReaderGone("nobody reads stdout any more") from None
                raise OutputFailed(f"cannot write to stdout: {error.strerror}", hint=_lost(bytes(data[: 4 * SHOWN]))) from None
            if written is not None:
                return written
            select.select([], [self], [])  # it does not block, and another program has not read enough yet


class _Stderr(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError:
            return len(data)
        return len(data) if written is None else written


__all__ = ["READER_GONE", "OutputFailed", "ReaderGone", "is_stdout", "run"]
