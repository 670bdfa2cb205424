"""Commands about jobs: status, logs, wait, cancel, pause, resume, retry, start, pin, unpin, rm, prune, rerun."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offrl.cli import completion
from offrl.cli.connecting import connect
from offrl.cli.output import Json, emit, live, moment, number, pairs, rich_table, say, seconds, size, table, talk, write
from offrl.cli.queue import paused
from offrl.cli.submit import next_step
from offrl.cli.values import count, real
from offrl.job import unit

if TYPE_CHECKING:
    from offrl.client import Client, Job
    from offrl.wire import JobInfo

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", autocompletion=completion.jobs)]
HEADERS = ["job", "state", "algorithm", "dataset", "step", "per second", "left", "metrics"]
RIGHT = ["step", "per second", "left"]
DROP = ["per second", "left", "dataset", "algorithm", "metrics"]  # columns that a narrow terminal omits, in this order
LOOK_S = 1.0  # between two requests of `status --watch` without JOB


def register(app: typer.Typer) -> None:
    """Put the commands of this file into ``app``."""
    for command in (status, logs, wait, cancel, pause, resume, retry, start, pin, unpin, rm, prune, rerun):
        app.command()(command)


def status(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Show this job; by default all jobs but imports.", autocompletion=completion.jobs)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until the job ends (without JOB: until the queue is empty).")] = False,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="K", help="train, import, export, dataset_export, collect, train_online or all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a job, or list them all."""
    from offrl.client import Job

    with connect() as client:
        if job is None:
            infos = _watch_all(client, kind, as_json) if watch else _infos(client, kind)
            emit(infos) if as_json else table(HEADERS, [_row(info) for info in infos], right=RIGHT, drop=DROP)
            if (pause := client.queue().paused) is not None and not as_json:
                talk(paused(pause))
            return
        watched = Job(client, job)
        info = watched.info()
        if watch and not info.state.ended:
            _watch(client, watched)
            info = watched.info()
        emit(info) if as_json else _print(info)


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Print a job's log."""

    with connect() as client:
        logged = client.job(job)
        if as_json:
            emit({"job": job, "log": "".join(logged.log(follow=True)) if follow else logged.log()})
            return
        held = ""  # the first half of a CR LF
        for piece in logged.log(follow=True) if follow else [logged.log()]:
            piece = held + piece
            held = "\r" if piece.endswith("\r") else ""
            write(piece.removesuffix("\r"))
        write(held)


def wait(job: JobArgument, as_json: Json = False) -> None:
    """Wait until a job has ended; exit status 1 if it failed or was cancelled."""
    from offrl.client import Job

    with connect() as client:
        awaited = Job(client, job)
        if not awaited.info().state.ended:
            _watch(client, awaited)
        info = awaited.wait()
        if as_json:
            emit(info)
        else:
            say(f"{info.job} {info.state.value}")
            next_step(client, info)


def cancel(job: JobArgument, as_json: Json = False) -> None:
    """End a job; `retry` queues it again."""
    _control(job, "cancel", as_json)


def pause(job: JobArgument, as_json: Json = False) -> None:
    """Checkpoint a job and end its worker; `resume` continues it."""
    _control(job, "pause", as_json)


def resume(
    job: JobArgument,
    steps: Annotated[
        int | None,
        typer.Option("--steps", parser=count, metavar="N", help="New total number of updates; lets a succeeded job continue."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Queue a paused job again, or a succeeded one for more steps; it continues from its checkpoint."""
    _control(job, "resume", as_json, steps=steps)


def retry(job: JobArgument, as_json: Json = False) -> None:
    """Queue a failed or cancelled job again; it continues from its checkpoint."""
    _control(job, "retry", as_json)


def start(job: JobArgument, as_json: Json = False) -> None:
    """Start a queued or paused job next, even before its start time or while the queue is paused."""
    _control(job, "start", as_json)


def pin(job: JobArgument, as_json: Json = False) -> None:
    """Keep a job: retention and `rm` do not delete it."""
    _control(job, "pin", as_json)


def unpin(job: JobArgument, as_json: Json = False) -> None:
    """Undo `pin`."""
    _control(job, "unpin", as_json)


def rm(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of jobs.", autocompletion=completion.jobs)],
    as_json: Json = False,
) -> None:
    """Delete ended jobs and their files. Jobs that cannot be deleted are reported; the first failure sets the exit status."""
    from offrl.client import Job
    from offrl.errors import OffrlError

    removed, refused = [], []
    with connect() as client:
        for job in jobs:
            try:
                removed.append({**Job(client, job).rm().model_dump(mode="json"), "removed": True})
            except OffrlError as error:
                refused.append(error)
                if len(jobs) > 1:
                    talk(f"not removed: {error.message}")
                continue
            if not as_json:
                say(f"removed {job}")
    if refused:
        raise refused[0]
    if as_json:
        emit(removed[0] if len(jobs) == 1 else removed)


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the jobs.")] = False,
    keep: Annotated[
        int | None,
        typer.Option("--jobs", parser=count, metavar="N", help="Keep the last N ended jobs of each owner and kind; 0 keeps all."),
    ] = None,
    days: Annotated[
        float | None, typer.Option("--days", parser=real, metavar="D", help="Keep jobs that ended less than D days ago; 0 keeps all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Delete ended jobs that exceed the daemon's [keep] settings, or the limits given here. Operators only."""

    with connect() as client:
        pruned = client.prune(jobs=keep, days=days, dry_run=dry_run)
    if as_json:
        emit(pruned)
        return
    rows = [
        [gone.job, gone.state.value, gone.algorithm or gone.kind, gone.dataset or "", moment(gone.finished_at), size(gone.bytes), gone.why]
        for gone in pruned
    ]
    headers = ["job", "state", "algorithm", "dataset", "ended", "size", "why"]
    table(headers, rows, right=["size"], drop=["algorithm", "dataset", "ended"])
    total = size(sum(gone.bytes for gone in pruned))
    talk(f"{len(pruned)} jobs {'would be deleted' if dry_run else 'deleted'}, {total}")


def rerun(
    job: JobArgument,
    into: Annotated[str | None, typer.Option("--into", metavar="NAME", help="New dataset for the steps of a train-online job.")] = None,
    priority: Annotated[int, typer.Option("--priority", parser=count, metavar="P", help="Jobs with a higher priority run first.")] = 0,
    key: Annotated[str | None, typer.Option("--key", metavar="K", help="Submission key: the same key never queues a second job.")] = None,
    as_json: Json = False,
) -> None:
    """Repeat a train or train-online job with the settings, seeds and snapshot of its run folder. Prints the new job's id."""

    with connect() as client:
        new = client.rerun(job, into=into, priority=priority, key=key)
    emit({"job": new.id}) if as_json else say(new.id)


# ------------------------------------------------------------------------------------------------------------------- plumbing
def _control(job: str, action: str, as_json: bool, **options: Any) -> None:
    from offrl.client import Job

    with connect() as client:
        info = getattr(Job(client, job), action)(**options)
    if as_json:
        emit(info)
    else:
        pinned = {"pin": ", pinned", "unpin": ", not pinned"}.get(action, "")
        say(f"{job} {info.state.value}{pinned}" + (f" ({info.reason})" if info.reason else ""))


def _watch(client: Client, job: Job) -> None:
    """Show a job's events until it has ended; of the past ones only the newest, which holds the current state."""
    from offrl import wire
    from offrl.cli.progress import display

    with display(job.id, unit(job.info().kind)) as see:
        cursor, newest = 0, None
        while True:
            part = client.request(wire.GetEvents(job=job.id, cursor=cursor, limit=1000))
            if not part.events:
                break
            cursor, newest = part.cursor, part.events[-1]
        if newest is not None:
            see(newest)
        try:
            for event in job.follow(cursor):
                see(event)
        except KeyboardInterrupt:
            talk(f"stopped watching; the job continues: offrl wait {job.id}")
            raise


def _watch_all(client: Client, kind: str | None, as_json: bool) -> list[JobInfo]:
    """Show the table of jobs until none is queued or running; return the last infos."""
    if live(sys.stdout) and not as_json:
        from rich.live import Live

        with Live(auto_refresh=False, transient=True) as display:  # the last table is printed by the caller
            while True:
                infos = _infos(client, kind)
                rows, width = [_row(info) for info in infos], display.console.width
                display.update(rich_table(HEADERS, rows, width, right=RIGHT, drop=DROP), refresh=True)
                if _idle(infos):
                    return infos
                time.sleep(LOOK_S)
    seen: dict[str, str] = {}
    while True:
        infos = _infos(client, kind)
        for info in infos:
            if seen.get(info.job) != info.state:
                seen[info.job] = info.state
                talk(f"{info.job} {info.state.value}  {info.step:,}/{info.steps:,}")
        if _idle(infos):
            return infos
        time.sleep(LOOK_S)


def _infos(client: Client, kind: str | None) -> list[JobInfo]:
    return [job.last for job in client.jobs(kind) if job.last is not None]


def _idle(infos: list[JobInfo]) -> bool:
    return not any(info.state in ("queued", "running") for info in infos)


def _row(info: JobInfo) -> list[str]:
    from offrl.cli.progress import main_metrics

    running = info.state == "running"
    done = f"{info.step:,}/{info.steps:,}" if info.steps else ""
    metrics = "  ".join(main_metrics(info.metrics, 2)) or (info.reason if info.state != "succeeded" else "")
    what = info.algorithm or info.kind
    left = seconds(info.eta_s) if running else ""
    return [info.job, info.state.value, what, info.dataset or "", done, number(info.updates_per_second), left, metrics]


def _print(info: Any) -> None:
    values = [("job", info.job), ("kind", info.kind), ("state", info.state.value)]
    if info.reason:
        values.append(("reason", info.reason))
    if info.error and info.error.get("hint"):
        values.append(("hint", info.error["hint"]))
    if info.owner:
        values.append(("owner", info.owner))
    if info.algorithm:
        values.append(("algorithm", info.algorithm))
    if info.dataset:
        values.append(("dataset", info.dataset))
    values.append(("step", f"{info.step:,} of {info.steps:,}" if info.steps else f"{info.step:,}"))
    if info.updates_per_second:
        values.append((f"{unit(info.kind)}/s", number(info.updates_per_second)))
    if info.eta_s is not None and info.state == "running":
        values.append(("left", seconds(info.eta_s)))
    if info.seeds:
        values.append(("seeds", " ".join(map(str, info.seeds))))
    if info.after:
        values.append(("after", " ".join(info.after)))
    if info.start_at is not None:
        values.append(("starts", f"not before {moment(info.start_at)}"))
    if info.pinned:
        values.append(("pinned", "yes"))
    if info.rerun_of:
        values.append(("rerun of", info.rerun_of))
    pairs(values)
    if info.metrics:
        seeds = sorted({seed for by_seed in info.metrics.values() for seed in by_seed}, key=lambda seed: (len(seed), seed))
        say()
        headers = ["metric", *[f"seed {seed}" for seed in seeds]]
        rows = [[name, *[number(by_seed.get(seed)) for seed in seeds]] for name, by_seed in sorted(info.metrics.items())]
        table(headers, rows, right=headers[1:])
