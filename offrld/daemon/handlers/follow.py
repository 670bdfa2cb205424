"""Requests that wait for news of a job: its next events, the next lines of its log."""

from __future__ import annotations

import asyncio
from pathlib import Path

from offrl import wire
from offrld.daemon.app import App
from offrld.daemon.queue import events
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.hub import wait
from offrld.daemon.queue.job_record import find

LOG_PART = 1 << 19  # bytes of a log in one reply
LOOK_S = 0.5  # between two looks at a growing log


async def get_events(app: App, request: wire.GetEvents) -> wire.Encoded:
    """Return the events after the cursor; wait up to ``wait_s`` for the first one."""
    deadline = asyncio.get_running_loop().time() + request.wait_s
    with app.hub.watch(request.job) as news:
        while True:
            news.clear()
            has_news, message = await app.hub.read(
                request.job, (request.cursor, request.limit), lambda: app.database.read(_part, request.job, request.cursor, request.limit)
            )
            left = deadline - asyncio.get_running_loop().time()
            if has_news or left <= 0:
                return message
            await wait(news, left)


def _part(db: Connection, job: str, cursor: int, limit: int) -> tuple[bool, wire.Encoded]:
    """Return whether there is news of the job, and the message, which all who follow the job share."""
    part, cursor, ended = events.after(db, job, cursor, limit)
    return bool(part) or ended, wire.Encoded(body=wire.encode_reply(wire.Events(events=part, cursor=cursor, ended=ended)))


async def read_log(app: App, request: wire.ReadLog) -> wire.LogPart:
    """Return the log from ``offset`` on; wait up to ``wait_s`` for something new."""
    deadline = asyncio.get_running_loop().time() + request.wait_s
    path = app.state.run(request.job).log
    with app.hub.watch(request.job) as news:
        while True:
            news.clear()
            job = await app.database.read(find, request.job)  # before the look at the file: an ended job writes nothing more
            data = await asyncio.to_thread(_read, path, request.offset)
            offset = request.offset + len(data)
            ended = job.state.ended and len(data) < LOG_PART
            left = deadline - asyncio.get_running_loop().time()
            if data or ended or left <= 0:
                return wire.LogPart(data=data, offset=offset, ended=ended)
            await wait(news, min(left, LOOK_S) if job.state == "running" else left)


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(LOG_PART)
    except FileNotFoundError:
        return b""
