"""Commands about policies: fetch one from a job, evaluate one in an environment."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from offrl import streams
from offrl.cli import completion, options
from offrl.cli.connecting import connect
from offrl.cli.output import Json, destination, emit, live, number, pairs, say
from offrl.cli.values import count, real


def register(app: typer.Typer) -> None:
    """Put the commands of this file into ``app``."""
    app.command()(fetch)
    app.command()(evaluate)


def fetch(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", autocompletion=completion.jobs)],
    out: Annotated[
        str | None, typer.Option("--out", metavar="PATH", help="Target path; - is stdout. [default: policy.onnx, or the kind's own name]")
    ] = None,
    force: options.Force = False,
    kind: Annotated[str, typer.Option("--kind", metavar="K", help="onnx, torchscript, checkpoint or metrics.")] = "onnx",
    seed: Annotated[
        int | None, typer.Option("--seed", parser=count, metavar="S", help="Seed, if the job has several. [default: the first]")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Take the step with the highest mean return in evaluations.")] = False,
    step: Annotated[
        int | None, typer.Option("--step", parser=count, metavar="K", help="A step with a checkpoint. [default: the newest]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Download a job's policy. The job may be running, or may have failed."""
    with connect() as client, destination(out, "policy", "what is fetched", as_json) as target:
        path, artifact = client.job(job).fetch_artifact(target, kind, seed=seed, best=best, step=step, force=force)
    if out == "-" or (not as_json and streams.is_stdout(path)):  # the path would follow the file's own bytes
        return
    if as_json:
        emit({"path": str(path), "sha256": artifact.sha256, "bytes": artifact.size, "job": job, "kind": kind})
    else:
        say(path)


def evaluate(
    policy: Annotated[str, typer.Argument(metavar="POLICY.onnx", help="A fetched policy.")],
    env: Annotated[str | None, typer.Option("--env", metavar="ID", help="A gymnasium id. [default: the policy's own]")] = None,
    episodes: Annotated[int, typer.Option("--episodes", parser=count, metavar="N", help="Number of episodes.")] = 20,
    seed: Annotated[int, typer.Option("--seed", parser=count, metavar="S", help="Episode i starts with env.reset(seed=S+i).")] = 1000,
    policy_input: Annotated[
        str | None,
        typer.Option("--policy-input", metavar="NAME", help="Input tensor of the observation, in an ONNX file of another program."),
    ] = None,
    policy_output: Annotated[
        str | None, typer.Option("--policy-output", metavar="NAME", help="Output tensor of the action, in such a file.")
    ] = None,
    policy_argmax: Annotated[
        bool, typer.Option("--policy-argmax", help="The output tensor holds a score for each discrete action: take the highest.")
    ] = False,
    target_return: Annotated[
        float | None,
        typer.Option("--target-return", parser=real, metavar="R", help="Return that a transformer aims for. [default: the policy's own]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a policy in an environment on this machine; needs only onnxruntime."""
    from offrl.errors import InvalidInput
    from offrl.foreign import opened
    from offrl.rollout import evaluate as run

    loaded = opened(policy, policy_input, policy_output, policy_argmax)
    where = env or loaded.env_id
    if where is None:
        raise InvalidInput(f"{policy} does not say which environment it is for", hint="name it with --env ID")
    with _bar(episodes) as done:
        result = run(loaded, where, episodes, seed, target_return=target_return, on_episode=done)
    if as_json:
        emit(result.as_json())
        return
    low, high = min(result.returns), max(result.returns)
    latency = result.latency_us
    target = [] if result.target_return is None else [("target return", number(result.target_return))]
    pairs(
        [
            ("environment", result.env),
            ("episodes", number(result.episodes)),
            ("return", f"{number(result.return_mean)} +- {number(result.return_std)}  (from {number(low)} to {number(high)})"),
            *target,
            ("latency", f"median {number(latency['median'])} us, 99 % within {number(latency['p99'])} us per action"),
        ]
    )


def _bar(episodes: int) -> Any:
    """Return a context whose value is called with the number of finished episodes; its value is None if stderr is not a terminal."""
    if not live(sys.stderr):
        return nullcontext(None)
    return _rich_bar(episodes)


def _rich_bar(episodes: int) -> Any:
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar() -> Any:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("episodes", total=episodes)
            yield lambda done: progress.update(task, completed=done)

    return bar()
