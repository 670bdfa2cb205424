"""The command top: the service at a glance, refreshed on a terminal, printed once elsewhere."""

from __future__ import annotations

import itertools
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offrl.cli.connecting import connect
from offrl.cli.output import Json, emit, live, number, say, seconds, size, table
from offrl.cli.queue import paused
from offrl.cli.values import count, real

if TYPE_CHECKING:
    from offrl.wire import History, JobInfo, OverviewInfo

BARS = "▁▂▃▄▅▆▇█"
HEADERS = ["job", "state", "algorithm", "dataset", "progress", "step", "per second", "left", "metric"]
RIGHT = ["progress", "step", "per second", "left"]
DROP = ["step", "per second", "dataset", "algorithm", "left", "metric"]  # columns that a narrow terminal omits, in this order
BARS_FROM = 70  # columns of a terminal that shows bars
LEAST_S = 0.2  # shortest interval
HEAD_LINES = 7  # lines of the display that are not jobs


def register(app: typer.Typer) -> None:
    """Put the command of this file into ``app``."""
    app.command()(top)


def top(
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="Metric to plot, or updates_per_second. [default: chosen per job]")
    ] = None,
    interval: Annotated[float, typer.Option("--interval", parser=real, metavar="S", help="Seconds between two updates.")] = 2.0,
    limit: Annotated[int, typer.Option("--limit", parser=count, metavar="N", help="Maximum number of jobs.")] = 50,
    once: Annotated[bool, typer.Option("--once", help="Print once; the default if stdout is not a terminal.")] = False,
    as_json: Json = False,
) -> None:
    """Show the queue, running jobs and the machine, live; q quits."""
    from offrl.errors import InvalidInput, NoDaemon
    from offrl.explained import build
    from offrl.wire import Overview

    if not LEAST_S <= interval <= 3600:
        raise InvalidInput(f"--interval {interval:g} is out of range", hint=f"from {LEAST_S} to 3600 seconds")
    request = build(Overview, metric=metric, limit=limit)
    with connect(timeout=10.0, patience=0.0) as client:
        if once or as_json or not live(sys.stdout):
            info = client.request(request)
            emit(info) if as_json else _print(info)
            return
        from rich.console import Console
        from rich.live import Live

        console = Console()
        with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as display:
            note, info = "", client.request(request)
            while True:
                display.update(_screen(info, note, console.size), refresh=True)
                if pressed(interval) in ("q", "Q", "\x1b", "\x03"):
                    return
                try:
                    info, note = client.request(request), ""
                except NoDaemon as error:  # perhaps the daemon restarts
                    note = f"{time.strftime('%H:%M:%S')}  {error.message}; trying again"


# -------------------------------------------------------------------------------------------------------------------- content
def head(info: OverviewInfo) -> list[str]:
    """Return the lines above the jobs: the service, the queue, the machine, its GPUs."""
    machine = info.machine
    states = [
        f"{info.counts[state]} {state}"
        for state in ("running", "queued", "paused", "succeeded", "failed", "cancelled")
        if info.counts.get(state)
    ]
    spare = f"  spare worker {info.spare}" if info.spare else ""
    uploads = f"  {info.uploads} uploads" if info.uploads else ""
    queue = f"  {paused(info.paused)}" if info.paused is not None else ""
    lines = [
        f"offrld {info.version} on {machine.host}  up {seconds(info.uptime_s)}  {info.state_dir}",
        f"jobs    {', '.join(states) or 'none'}{uploads}{spare}{queue}",
        f"cpu     {meter(machine.cpu_percent)} of {machine.cpus}  load {' '.join(f'{value:.2f}' for value in machine.load)}"
        f"  daemon {number(machine.daemon_cpu_percent, 2) or '-'}% {size(machine.daemon_memory_bytes)}",
    ]
    if machine.memory_bytes and machine.memory_free_bytes is not None:
        used = machine.memory_bytes - machine.memory_free_bytes
        lines.append(f"memory  {meter(100 * used / machine.memory_bytes)} {size(used)} of {size(machine.memory_bytes)}")
    used = machine.disk_bytes - machine.disk_free_bytes
    lines.append(f"disk    {meter(100 * used / max(1, machine.disk_bytes))} {size(machine.disk_free_bytes)} free")
    for gpu in machine.gpus:
        line = f"gpu {gpu.index:<3} {meter(gpu.percent)}"
        if gpu.memory_bytes is not None and gpu.memory_used_bytes is not None:
            line += f" {size(gpu.memory_used_bytes)} of {size(gpu.memory_bytes)}"
        line += f"  {gpu.temperature_c:.0f} C" if gpu.temperature_c is not None else ""
        line += f"  {gpu.power_w:.0f} W" if gpu.power_w is not None else ""
        lines.append(f"{line}  {gpu.name}")
    return lines


def rows(info: OverviewInfo, *, bars: bool = True) -> list[list[str]]:
    """Return one row for each job, with its progress as a bar or as a percentage."""
    return [_row(job, info.history.get(job.job), bars) for job in info.jobs]


def meter(percent: float | None, width: int = 20) -> str:
    """``[########            ]  40%``"""
    if percent is None:
        return f"[{' ' * width}]   ?%"
    full = round(width * min(max(percent, 0.0), 100.0) / 100.0)
    return f"[{'#' * full}{' ' * (width - full)}] {percent:3.0f}%"


def sparkline(values: list[float], width: int = 24) -> str:
    """Draw values as a row of bars from the lowest to the highest; neighbours are averaged if there are more than ``width``."""
    if not values:
        return ""
    if len(values) > width:
        edges = [round(index * len(values) / width) for index in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    if not high > low:
        return BARS[len(BARS) // 2] * len(values)
    return "".join(BARS[min(int((value - low) / (high - low) * len(BARS)), len(BARS) - 1)] for value in values)


def _row(job: JobInfo, history: History | None, bars: bool) -> list[str]:
    running = job.state == "running"
    share = 100.0 * job.step / job.steps if job.steps else None
    bar = ""
    if share is not None and not (job.state.ended and job.state != "succeeded"):
        bar = meter(share, 12) if bars else f"{share:.0f}%"
    if history is not None:
        note = f"{history.metric} {number(history.values[-1])}  {sparkline(history.values)}"
    else:
        note = job.reason if job.state != "succeeded" else ""
    step = f"{job.step:,}/{job.steps:,}" if job.steps else ""
    rate = number(job.updates_per_second) if running else ""
    left = seconds(job.eta_s) if running else ""
    return [job.job, job.state.value, job.algorithm or job.kind, job.dataset or "", bar, step, rate, left, note]


def _print(info: OverviewInfo) -> None:
    for line in [*head(info), ""]:
        say(line)
    table(HEADERS, rows(info), right=RIGHT, drop=DROP)
    if info.left_off:
        say(f"and {info.left_off} more")


def _screen(info: OverviewInfo, note: str, space: Any) -> Any:
    """Make the display as an object of rich that fits the terminal."""
    from rich.console import Group
    from rich.text import Text

    from offrl import printable
    from offrl.cli.output import rich_table

    lines = head(info)
    room = max(1, space.height - len(lines) - HEAD_LINES + 2)
    shown = rows(info, bars=space.width >= BARS_FROM)
    parts: list[Any] = [Text(printable.line(line), no_wrap=True, overflow="ellipsis") for line in lines]
    parts.append(rich_table(HEADERS, shown[:room], space.width, right=RIGHT, drop=DROP))
    more = info.left_off + max(0, len(shown) - room)
    parts.append(Text((f"and {more} more   " if more else "") + (printable.line(note) or "q quits"), style="dim"))
    return Group(*parts)


# ----------------------------------------------------------------------------------------------------------------------- keys
@contextmanager
def _keys() -> Iterator[Any]:
    """Yield a function that waits up to a number of seconds for a key and returns it, or ""; restore the terminal afterwards."""
    if not sys.stdin.isatty():

        def wait(limit: float) -> str:
            time.sleep(limit)
            return ""

        yield wait
        return
    import os
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(limit: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], limit)
        if not ready:
            return ""
        data = os.read(descriptor, 64)
        return data.decode(errors="replace")[0] if data else "q"  # the terminal is gone

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
