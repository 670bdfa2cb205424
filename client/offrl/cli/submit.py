"""The command submit: queue a train job, and with --wait wait until it has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offrl.cli import completion, options
from offrl.cli.connecting import connect
from offrl.cli.job_options import options_of
from offrl.cli.output import Json, emit, say, talk
from offrl.cli.values import count, seed_list, settings
from offrl.cli.values import start as start_time
from offrl.errors import InvalidInput
from offrl.job import TRAINS, TrainSpec, unit
from offrl.printable import counted

if TYPE_CHECKING:
    from offrl.client import Client, Job
    from offrl.wire import JobInfo


def register(app: typer.Typer) -> None:
    """Put the command of this file into ``app``."""
    app.command()(submit)


@options_of(TrainSpec)
def submit(
    algorithm: options.Algorithm,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            metavar="NAME|FILE",
            help="A dataset, or a file or folder to import first.",
            autocompletion=completion.datasets,
        ),
    ],
    seed: Annotated[int | None, typer.Option("--seed", parser=count, metavar="S", help="One seed. [default: 0]")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="0-7", help="Several seeds, trained side by side: 0-7 or 0,2,5.")] = None,
    sets: options.Sets = None,
    config: options.Config = None,
    priority: options.Priority = 0,
    after: options.After = None,
    at: Annotated[str | None, typer.Option("--at", metavar="WHEN", help="Earliest start: +2h, or a time such as 2026-11-30T22:00.")] = None,
    key: options.Key = None,
    wait: options.Wait = False,
    as_json: Json = False,
    **job_options: Any,
) -> None:
    """Train an algorithm on a dataset. Prints the job's id."""
    if seed is not None and seeds is not None:
        raise InvalidInput(f"both --seed {seed} and --seeds {seeds} were given", hint="pass one of them")
    if "start" not in job_options and {"transfer", "fresh_optimizer"} & set(job_options):
        raise InvalidInput("--transfer and --fresh-optimizer need --from JOB", hint="name the job to start from")
    chosen = seed_list(seeds) if seeds is not None else None
    values, start_at = settings(config, sets or []), start_time(at)

    with connect() as client, _import_hint(dataset):
        job = client.submit(
            algorithm,
            dataset=dataset,
            seed=seed,
            seeds=chosen,
            config=values,
            priority=priority,
            after=after or (),
            key=key,
            **start_at,
            **job_options,
        )
        report_queued(client, job, wait=wait, as_json=as_json)


@contextmanager
def _import_hint(dataset: str) -> Iterator[None]:
    """Correct the hint of an error about a file that is imported first: only `offrl datasets add` has the recommended option."""
    try:
        yield
    except InvalidInput as error:
        if os.path.exists(dataset) and any(option in error.hint for option in ("--map", "--option", "--format", "--skip-bad")):
            error.hint = f"import it first with `offrl datasets add NAME {dataset}`; there, {error.hint}"
        raise


def report_queued(client: Client, job: Job, *, wait: bool, as_json: bool) -> None:
    """Print the id of a queued job, and with ``wait`` wait until it has ended."""
    info = job.info()
    if not as_json:
        say(job.id)
        talk(f"{job.id}: {accepted(info)}")
    elif not wait:
        emit({"job": job.id})
    if wait:
        from offrl.cli.progress import show

        try:
            show(job.follow(), job.id, unit(info.kind))
            info = job.wait()
        except KeyboardInterrupt:
            talk(f"stopped waiting; the job continues: offrl wait {job.id}")
            raise
        emit(info) if as_json else next_step(client, info)


def accepted(info: JobInfo) -> str:
    """Describe what a queued job will do: ``bc on hopper, 100,000 updates, seeds 0 1``."""
    what = f"{info.algorithm} on {info.dataset}" if info.algorithm else f"{info.kind} into {info.dataset}"
    seeds = f", seeds {' '.join(map(str, info.seeds))}" if len(info.seeds) > 1 else ""
    return f"{what}, {counted(info.steps, unit(info.kind)[:-1])}{seeds}"


def next_step(client: Client, info: JobInfo) -> None:
    """Say what to do with the result of a job."""
    if info.kind in TRAINS and client.algos(info.algorithm).get("has_policy", True):
        talk(f"fetch its policy: offrl fetch {info.job}")
    elif info.dataset and info.kind == "collect":
        talk(f"look at its dataset: offrl datasets show {info.dataset}")
