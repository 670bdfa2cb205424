"""Commands about the whole queue: pause, resume, status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from offrl.cli.connecting import connect
from offrl.cli.output import Json, emit, moment, pairs

if TYPE_CHECKING:
    from offrl.wire import Pause, QueueInfo


def register(group: typer.Typer) -> None:
    """Put the commands of this file into ``group``."""
    for command in (pause, resume, status):
        group.command()(command)


def pause(
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Shown to users whose jobs wait.")] = "", as_json: Json = False
) -> None:
    """Start no further jobs; running jobs continue."""

    with connect() as client:
        _print(client.pause_queue(reason), as_json)


def resume(as_json: Json = False) -> None:
    """Start jobs again."""

    with connect() as client:
        _print(client.resume_queue(), as_json)


def status(as_json: Json = False) -> None:
    """Show whether the queue is paused, and the number of jobs by owner."""

    with connect() as client:
        _print(client.queue(), as_json)


def paused(pause: Pause) -> str:
    """Who has paused the queue, when and why, in one line."""
    return f"the queue is paused by {pause.by} since {moment(pause.at)}" + (f": {pause.reason}" if pause.reason else "")


def _print(info: QueueInfo, as_json: bool) -> None:
    if as_json:
        emit(info)
        return
    values = [("queue", "running" if info.paused is None else paused(info.paused).removeprefix("the queue is "))]
    values.append(("jobs", _counts(info.counts)))
    values += [(owner or "(no owner)", _counts(counts)) for owner, counts in sorted(info.owners.items())]
    if info.next_start is not None:
        values.append(("next start", moment(info.next_start)))
    values += [(name, str(value) if value else "unlimited") for name, value in info.limits.items()]
    pairs(values)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"
