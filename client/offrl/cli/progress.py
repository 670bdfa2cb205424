"""A job's progress while it runs: a live bar if stderr is a terminal, else a few plain lines that suit a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from offrl import printable
from offrl.cli.output import live, number, seconds, talk
from offrl.job import MAIN_METRICS, JobState

LINE_S = 5.0  # between two plain lines, unless the state or an evaluation is new
LEAST_TEXT = 60  # columns for the text beside a bar
LEAST_BAR = 8


def show(events: Iterable[Any], label: str, unit: str = "updates") -> None:
    """Show a job's events until they end."""
    with display(label, unit) as see:
        for event in events:
            see(event)


@contextmanager
def display(label: str, unit: str = "updates") -> Iterator[Callable[[Any], None]]:
    """Yield a function that shows one event; ``unit``: the unit of the job's steps."""
    label = printable.line(label)
    if not live(sys.stderr):
        yield _Lines(label, unit).see
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

    console = Console(stderr=True)
    room = console.width - len(label) - 2
    bar_width = min(30, max(0, room - LEAST_TEXT))  # the bar shrinks first: the text beside it has the same information
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), TextColumn("{task.fields[text]}", markup=False)]
    if bar_width >= LEAST_BAR:
        columns.insert(1, BarColumn(bar_width=bar_width))
    with Progress(*columns, console=console, transient=False, refresh_per_second=4) as bar:
        task = bar.add_task(label, total=None, text="")
        last: dict[str, dict[str, float]] = {}

        def see(event: Any) -> None:
            if event.type == "message":
                console.print(printable.line(event.message), markup=False, highlight=False, emoji=False)
                return
            last.update(event.metrics)
            text = str(event.state) if event.type == "state" else said(event, last, unit)
            width = console.width - len(label) - (bar_width + 3 if len(columns) == 3 else 2)
            bar.update(task, completed=event.step or None, total=event.steps or None, text=_cut(text, width), description=label)

        yield see


def _cut(text: str, width: int) -> str:
    """Cut a text to ``width`` columns at its end, which holds the least important part."""
    text = printable.line(text)
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def said(event: Any, metrics: dict[str, dict[str, float]], unit: str = "updates") -> str:
    """``5%  1,000/20,000  2,340 updates/s  8 s left  return_mean 181.2``"""
    parts = [f"{100 * event.step // event.steps}%  {event.step:,}/{event.steps:,}" if event.steps else f"{event.step:,}"]
    if event.updates_per_second:
        parts.append(f"{number(event.updates_per_second)} {unit}/s")
    if event.eta_s is not None and event.step < event.steps:
        parts.append(f"{seconds(event.eta_s)} left")
    return "  ".join([*parts, *main_metrics(metrics)])


def main_metrics(metrics: dict[str, dict[str, float]], limit: int = 3) -> list[str]:
    """Return the most informative metrics as ``name value``, each the mean over the seeds."""
    names = sorted(metrics, key=lambda name: (MAIN_METRICS.index(name) if name in MAIN_METRICS else len(MAIN_METRICS), name))
    return [f"{name} {number(sum(metrics[name].values()) / len(metrics[name]))}" for name in names if metrics[name]][:limit]


@contextmanager
def bytes_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows the bytes done and their total; it is silent if stderr is not a terminal."""
    if not live(sys.stderr):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(_cut(label, console.width - LEAST_TEXT), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """Plain lines: every change of state, every message, every evaluation, and progress every few seconds.

    The error that ends the command reports why a job failed.
    """

    def __init__(self, label: str, unit: str) -> None:
        self._label, self._unit = label, unit
        self._at = -LINE_S
        self._state = ""
        self._last = ""  # the line after the last step: printed once, with the next change of state
        self._metrics: dict[str, dict[str, float]] = {}

    def see(self, event: Any) -> None:
        if event.type == "message":
            talk(f"{self._label}: {event.message}")
        elif event.type == "state":
            self._change(event)
        else:
            self._metrics.update(event.metrics)
            text, now = said(event, self._metrics, self._unit), time.monotonic()
            if event.steps and event.step >= event.steps:
                self._last = text
            elif now - self._at >= LINE_S or "return_mean" in event.metrics:
                self._at = now
                talk(f"{self._label}: {text}")

    def _change(self, event: Any) -> None:
        if self._last:
            talk(f"{self._label}: {self._last}")
            self._last = ""
        if event.state != self._state:
            self._state = event.state
            why = event.message if event.state != JobState.FAILED else ""
            talk(f"{self._label}: {event.state}" + (f": {why}" if why else ""))
