"""The commands collect and train-online: jobs that act in an environment and write their steps into a dataset."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from offrl.cli import completion, options
from offrl.cli.connecting import connect
from offrl.cli.job_options import options_of
from offrl.cli.output import Json
from offrl.cli.submit import report_queued
from offrl.cli.values import count, settings
from offrl.job import CollectSpec, TrainOnlineSpec


def register(app: typer.Typer) -> None:
    """Put the commands of this file into ``app``."""
    app.command()(collect)
    app.command("train-online")(train_online)


@options_of(CollectSpec)
def collect(
    env: options.Env,
    into: Annotated[
        str,
        typer.Option(
            "--into",
            metavar="NAME",
            help="A new dataset, or an existing one of the same environment.",
            autocompletion=completion.datasets,
        ),
    ],
    policy: Annotated[
        str,
        typer.Option(
            "--policy", metavar="random|normal|job:ID|FILE.onnx", help="Policy that chooses the actions; for a job, its newest checkpoint."
        ),
    ] = "random",
    priority: options.Priority = 0,
    after: options.After = None,
    key: options.Key = None,
    wait: options.Wait = False,
    as_json: Json = False,
    **job_options: Any,
) -> None:
    """Run a policy and store its steps in a dataset. Prints the job's id."""

    with connect() as client:
        job = client.collect(env, policy, into=into, priority=priority, after=after or (), key=key, **job_options)
        report_queued(client, job, wait=wait, as_json=as_json)


@options_of(TrainOnlineSpec)
def train_online(
    algorithm: options.Algorithm,
    env: options.Env,
    into: Annotated[
        str | None,
        typer.Option(
            "--into",
            metavar="NAME",
            help="A new dataset, or an existing one of the same environment; optional with ppo.",
            autocompletion=completion.datasets,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", parser=count, metavar="S", help="Seed. [default: 0]")] = None,
    sets: options.Sets = None,
    config: options.Config = None,
    priority: options.Priority = 0,
    after: options.After = None,
    key: options.Key = None,
    wait: options.Wait = False,
    as_json: Json = False,
    **job_options: Any,
) -> None:
    """Train an algorithm while it acts in an environment; all collected steps are kept as a dataset. Prints the job's id."""

    with connect() as client:
        job = client.train_online(
            algorithm,
            env=env,
            into=into,
            seed=seed,
            config=settings(config, sets or []),
            priority=priority,
            after=after or (),
            key=key,
            **job_options,
        )
        report_queued(client, job, wait=wait, as_json=as_json)
