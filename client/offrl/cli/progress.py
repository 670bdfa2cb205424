"""A job's progress while it runs: a live bar where stderr is a terminal, else plain lines that say no more than a log can bear."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from offrl.cli.output import number, seconds, talk
from offrl.job import MAIN_METRICS

LINE_S = 5.0  # between two plain lines, unless something new is to be said


def show(events: Iterable[Any], label: str) -> None:
    """Go through a job's events and show them until they end."""
    with display(label) as see:
        for event in events:
            see(event)


@contextmanager
def display(label: str) -> Iterator[Callable[[Any], None]]:
    """A function that shows one event."""
    if not sys.stderr.isatty():
        yield _Lines(label).see
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True), transient=False, refresh_per_second=4) as bar:
        task = bar.add_task(label, total=None, text="")
        last: dict[str, dict[str, float]] = {}

        def see(event: Any) -> None:
            if event.type == "message":
                bar.console.print(event.message, markup=False, highlight=False)
                return
            last.update(event.metrics)
            text = str(event.state) if event.type == "state" else said(event, last)
            bar.update(task, completed=event.step or None, total=event.steps or None, text=text, description=label)

        yield see


def said(event: Any, metrics: dict[str, dict[str, float]]) -> str:
    """``1,000/20,000  2,340 updates/s  8 s left  return_mean 181.2``"""
    parts = [f"{event.step:,}/{event.steps:,}" if event.steps else f"{event.step:,}"]
    if event.updates_per_second:
        parts.append(f"{number(event.updates_per_second)} updates/s")
    if event.eta_s is not None and event.step < event.steps:
        parts.append(f"{seconds(event.eta_s)} left")
    return "  ".join([*parts, *main_metrics(metrics)])


def main_metrics(metrics: dict[str, dict[str, float]], limit: int = 3) -> list[str]:
    """The first few metrics as ``name value``, each the mean over the seeds."""
    names = sorted(metrics, key=lambda name: (MAIN_METRICS.index(name) if name in MAIN_METRICS else len(MAIN_METRICS), name))
    return [f"{name} {number(sum(metrics[name].values()) / len(metrics[name]))}" for name in names if metrics[name]][:limit]


@contextmanager
def bytes_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows bytes done of a total; silent where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """Plain lines: every change of state, every message, progress every few seconds, and every evaluation."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._at = -LINE_S
        self._state = ""
        self._metrics: dict[str, dict[str, float]] = {}

    def see(self, event: Any) -> None:
        if event.type == "message":
            talk(f"{self._label}: {event.message}")
            return
        if event.type == "state":
            if event.state != self._state:
                self._state = event.state
                talk(f"{self._label}: {event.state}" + (f": {event.message}" if event.message else ""))
            return
        self._metrics.update(event.metrics)
        now = time.monotonic()
        if now - self._at >= LINE_S or "return_mean" in event.metrics or (event.steps and event.step >= event.steps):
            self._at = now
            talk(f"{self._label}: {said(event, self._metrics)}")
