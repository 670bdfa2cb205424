"""The command submit: queue a train job, and with --wait stay until it has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from offrl.cli import completion, options
from offrl.cli.connecting import connect
from offrl.cli.output import Json, emit, say, talk
from offrl.cli.values import count, real, seed_list, settings
from offrl.cli.values import start as start_time
from offrl.errors import InvalidInput
from offrl.job import TRAINS, unit
from offrl.printable import counted

if TYPE_CHECKING:
    from offrl.client import Client, Job
    from offrl.wire import JobInfo


def register(app: typer.Typer) -> None:
    """Put the command of this file into ``app``."""
    app.command()(submit)


def submit(
    algorithm: options.Algorithm,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            metavar="NAME|FILE",
            help="A dataset, or a file or folder that is imported first.",
            autocompletion=completion.datasets,
        ),
    ],
    steps: Annotated[int | None, typer.Option("--steps", parser=count, metavar="N", help="Gradient updates. [default: 100000]")] = None,
    seed: Annotated[int | None, typer.Option("--seed", parser=count, metavar="S", help="One seed. [default: 0]")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="0-7", help="Several, trained side by side: 0-7 or 0,2,5.")] = None,
    sets: options.Sets = None,
    config: options.Config = None,
    preset: options.Preset = None,
    eval_env: options.EvalEnv = None,
    eval_episodes: Annotated[
        int | None, typer.Option("--eval-episodes", parser=count, metavar="N", help="Episodes per evaluation. [default: 20]")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option("--eval-every", parser=count, metavar="K", help="Evaluate every K updates, and at the end.")
    ] = None,
    early_stop: Annotated[
        int | None,
        typer.Option("--early-stop", parser=count, metavar="N", help="End after N evaluations in a row without a better mean return."),
    ] = None,
    early_stop_delta: Annotated[
        float | None, typer.Option("--early-stop-delta", parser=real, metavar="D", help="Better: by more than D. [default: 0]")
    ] = None,
    validation: Annotated[
        float | None, typer.Option("--validation", parser=real, metavar="0.1", help="Share of the episodes held out.")
    ] = None,
    priority: options.Priority = 0,
    after: options.After = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="WHEN", help="Do not start it before: +2h, or a time as 2026-11-30T22:00.")
    ] = None,
    key: options.Key = None,
    runner: Annotated[str | None, typer.Option("--runner", metavar="R", help="auto, eager, compile or graph. [default: auto]")] = None,
    device: options.Device = None,
    threads: options.Threads = None,
    gpu_memory: options.GpuMemory = None,
    start: options.Start = None,
    transfer: options.Transfer = None,
    fresh_optimizer: options.FreshOptimizer = False,
    wait: options.Wait = False,
    as_json: Json = False,
) -> None:
    """Train an algorithm on a dataset. Prints the job's id."""
    if seed is not None and seeds is not None:
        raise InvalidInput(f"both --seed {seed} and --seeds {seeds} were given", hint="give one of them")
    if start is None and (transfer is not None or fresh_optimizer):
        raise InvalidInput("--transfer and --fresh-optimizer are about --from JOB, which is missing", hint="name the job to start from")
    chosen = seed_list(seeds) if seeds is not None else None
    values, begin = settings(config, sets or []), start_time(at)

    with connect() as client, _import_hint(dataset):
        job = client.submit(
            algorithm,
            dataset=dataset,
            steps=steps,
            seed=seed,
            seeds=chosen,
            config=values,
            preset=preset,
            eval_env=eval_env,
            eval_episodes=eval_episodes,
            eval_every=eval_every,
            early_stop=early_stop,
            early_stop_delta=early_stop_delta,
            validation=validation,
            priority=priority,
            after=after or (),
            key=key,
            runner=runner,
            device=device,
            threads=threads,
            start=start,
            transfer=transfer,
            fresh_optimizer=fresh_optimizer or None,
            gpu_memory_mb=gpu_memory,
            **begin,
        )
        told(client, job, wait=wait, as_json=as_json)


@contextmanager
def _import_hint(dataset: str) -> Iterator[None]:
    """An error about a file that is imported on the way may recommend options that `offrl datasets add` has, not this command."""
    try:
        yield
    except InvalidInput as error:
        if os.path.exists(dataset) and any(option in error.hint for option in ("--map", "--option", "--format", "--skip-bad")):
            error.hint = f"import it by itself, `offrl datasets add NAME {dataset}`, and there {error.hint}"
        raise


def told(client: Client, job: Job, *, wait: bool, as_json: bool) -> None:
    """Print the id of a job that was queued, and with ``wait`` stay until it has ended."""
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
            talk(f"not waiting any more; the job goes on: offrl wait {job.id}")
            raise
        emit(info) if as_json else next_step(client, info)


def accepted(info: JobInfo) -> str:
    """What a job that was queued will do: ``bc on hopper, 100,000 updates, seeds 0 1``."""
    what = f"{info.algorithm} on {info.dataset}" if info.algorithm else f"{info.kind} into {info.dataset}"
    seeds = f", seeds {' '.join(map(str, info.seeds))}" if len(info.seeds) > 1 else ""
    return f"{what}, {counted(info.steps, unit(info.kind)[:-1])}{seeds}"


def next_step(client: Client, info: JobInfo) -> None:
    """What can be done with the result of a job."""
    if info.kind in TRAINS and client.algos(info.algorithm).get("has_policy", True):
        talk(f"fetch its policy: offrl fetch {info.job}")
    elif info.dataset and info.kind == "collect":
        talk(f"look at its dataset: offrl datasets show {info.dataset}")
