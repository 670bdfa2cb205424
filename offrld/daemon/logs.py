"""The log: one line for each event, with the job that it is about, as text or JSON on stderr, or as fields in systemd's journal.

`about` names the job for everything logged inside it, including by tasks and threads started there. The log never holds the contents of
requests: it has ids, names, numbers and reasons, but no data, settings of jobs, or keys.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

JOURNAL = "/run/systemd/journal/socket"
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}  # of syslog
_job: contextvars.ContextVar[str | None] = contextvars.ContextVar("job", default=None)


@contextmanager
def about(job: str | None) -> Iterator[None]:
    """Mark everything logged inside as about this job; None changes nothing."""
    if job is None:
        yield
        return
    token = _job.set(job)
    try:
        yield
    finally:
        _job.reset(token)


def setup(level: str, form: Literal["text", "json"]) -> None:
    """Send the log of this process to stderr, or to the journal if systemd has connected stderr to it."""
    handler: logging.Handler
    if _is_journal():
        handler = JournalHandler() if form == "text" else Stream(Json(), priorities=True)
    else:
        handler = Stream(Json() if form == "json" else Text(with_time=True))
    handler.addFilter(_note_job)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _note_job(record: logging.LogRecord) -> bool:
    """Note the job when the record is created: another thread may write it."""
    if not hasattr(record, "job"):
        record.job = _job.get()
    return True


class Text(logging.Formatter):
    """``2026-11-21T03:38:56.123Z info offrld.supervisor: attempt 1 job=ID``; a traceback follows, indented.

    Control characters are escaped: the name of a dataset cannot forge a line.
    """

    def __init__(self, *, with_time: bool) -> None:
        super().__init__()
        self._with_time = with_time

    def format(self, record: logging.LogRecord) -> str:
        head = f"{timestamp(record)} " if self._with_time else ""
        job = getattr(record, "job", None)
        message = escaped(record.getMessage())
        line = f"{head}{record.levelname.lower()} {record.name}: {message}" + (f" job={job}" if job and job not in message else "")
        trace = traceback(self, record)
        return "\n".join([line, *(f"    {escaped(part)}" for part in trace.splitlines())])


class Json(logging.Formatter):
    """``{"time", "level", "logger", "message", "job", "traceback"}``, the last two only if they exist."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if job := getattr(record, "job", None):
            line["job"] = job
        if trace := traceback(self, record):
            line["traceback"] = trace
        return json.dumps(line, ensure_ascii=True)


class Stream(logging.StreamHandler):
    """Lines on stderr; with ``priorities`` each has the prefix of sd-daemon(3), ``<3>`` for an error."""

    def __init__(self, formatter: logging.Formatter, *, priorities: bool = False) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(formatter)
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._priorities:
            return text
        return "\n".join(f"<{priority(record)}>{line}" for line in text.splitlines())


class JournalHandler(logging.Handler):
    """Entries with fields (OFFRLD_JOB, LOGGER, PRIORITY) in systemd's journal, by its native protocol: `journalctl OFFRLD_JOB=ID`.

    Entries that the journal refuses (too long for one datagram, or no journal) go to stderr.
    """

    def __init__(self, path: str = JOURNAL) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)  # a journal that hangs must not stop the event loop
        self._otherwise = Stream(Text(with_time=False), priorities=True)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.sendto(entry(record), self._path)
        except OSError:
            self._otherwise.handle(record)

    def close(self) -> None:
        self._socket.close()
        super().close()


def entry(record: logging.LogRecord) -> bytes:
    """Encode an entry of the journal: ``NAME=value`` lines; for a value of several lines NAME, its length as 64 bits, and the value."""
    message = record.getMessage()
    if trace := traceback(logging.Formatter(), record):
        message += "\n" + trace
    fields = {
        "MESSAGE": message,
        "PRIORITY": str(priority(record)),
        "SYSLOG_IDENTIFIER": "offrld",
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
    }
    if job := getattr(record, "job", None):
        fields["OFFRLD_JOB"] = job
    parts = []
    for name, value in fields.items():
        data = value.encode(errors="backslashreplace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def priority(record: logging.LogRecord) -> int:
    """Return syslog's priority for a record's level."""
    return next((number for level, number in sorted(PRIORITIES.items(), reverse=True) if record.levelno >= level), 7)


def timestamp(record: logging.LogRecord) -> str:
    """Return the record's time in UTC, to the millisecond."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def escaped(text: str) -> str:
    """Return ``text`` on one line, with control characters escaped."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the traceback of a record, or "" without one."""
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] is not None else ""


def _is_journal() -> bool:
    """Whether stderr is the journal's stream, which systemd names in $JOURNAL_STREAM (device:inode)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stat = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(stat.st_dev), str(stat.st_ino))
