"""The commands collect and train-online: jobs that act in an environment and put their steps into a dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from offrl.cli import completion, options
from offrl.cli.connecting import connect
from offrl.cli.output import Json
from offrl.cli.submit import told
from offrl.cli.values import count, real, settings

Into = Annotated[
    str,
    typer.Option(
        "--into", metavar="NAME", help="The dataset: a new one, or one of the same environment.", autocompletion=completion.datasets
    ),
]


def register(app: typer.Typer) -> None:
    """Put the commands of this file into ``app``."""
    app.command()(collect)
    app.command("train-online")(train_online)


def collect(
    env: options.Env,
    into: Into,
    steps: Annotated[int, typer.Option("--steps", parser=count, metavar="N", help="Steps of the environment.")],
    policy: Annotated[
        str, typer.Option("--policy", metavar="random|normal|job:ID|FILE.onnx", help="What acts; of a job its newest checkpoint.")
    ] = "random",
    policy_input: options.PolicyInput = None,
    policy_output: options.PolicyOutput = None,
    policy_argmax: options.PolicyArgmax = False,
    sample: Annotated[bool, typer.Option("--sample", help="Draw a job's actions instead of taking the greedy ones.")] = False,
    ratio: Annotated[
        float | None,
        typer.Option("--ratio", parser=real, metavar="X", help="Act as the job's checkpoint whose return is nearest to X of the last one."),
    ] = None,
    envs: Annotated[int | None, typer.Option("--envs", parser=count, metavar="K", help="Environments side by side. [default: 1]")] = None,
    processes: options.Processes = False,
    seed: Annotated[
        int | None, typer.Option("--seed", parser=count, metavar="S", help="The i-th environment is seeded with S + i. [default: 0]")
    ] = None,
    limit: options.Limit = None,
    epsilon: options.Epsilon = None,
    epsilon_end: options.EpsilonEnd = None,
    epsilon_steps: options.EpsilonSteps = None,
    noise: options.Noise = None,
    max_episode_steps: options.MaxEpisode = None,
    step_timeout: options.StepTimeout = None,
    threads: options.Threads = None,
    priority: options.Priority = 0,
    after: options.After = None,
    key: options.Key = None,
    wait: options.Wait = False,
    as_json: Json = False,
) -> None:
    """Collect steps of a policy into a dataset. Prints the job's id."""

    with connect() as client:
        job = client.collect(
            env,
            policy,
            into=into,
            steps=steps,
            policy_input=policy_input,
            policy_output=policy_output,
            policy_argmax=policy_argmax or None,
            sample=sample or None,
            ratio=ratio,
            envs=envs,
            processes=processes or None,
            seed=seed,
            limit=limit,
            epsilon=epsilon,
            epsilon_end=epsilon_end,
            epsilon_steps=epsilon_steps,
            noise=noise,
            max_episode_steps=max_episode_steps,
            step_timeout_s=step_timeout,
            threads=threads,
            priority=priority,
            after=after or (),
            key=key,
        )
        told(client, job, wait=wait, as_json=as_json)


def train_online(
    algorithm: options.Algorithm,
    env: options.Env,
    into: Annotated[
        str | None,
        typer.Option(
            "--into",
            metavar="NAME",
            help="The dataset: a new one, or one of the same environment; of ppo optional.",
            autocompletion=completion.datasets,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", parser=count, metavar="N", help="Steps of the environment. [default: 1000000]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", parser=count, metavar="S", help="[default: 0]")] = None,
    envs: Annotated[
        int | None, typer.Option("--envs", parser=count, metavar="K", help="Of ppo: environments side by side. [default: 1]")
    ] = None,
    processes: options.Processes = False,
    random_steps: Annotated[
        int | None, typer.Option("--random-steps", parser=count, metavar="N", help="Uniform actions in the first steps.")
    ] = None,
    update_start: Annotated[
        int | None, typer.Option("--update-start", parser=count, metavar="N", help="No update at or before this step. [default: 0]")
    ] = None,
    update_interval: Annotated[
        int | None, typer.Option("--update-interval", parser=count, metavar="N", help="Updates after every N steps. [default: 1]")
    ] = None,
    updates: Annotated[
        int | None, typer.Option("--updates", parser=count, metavar="N", help="At each of those times. [default: 1]")
    ] = None,
    sets: options.Sets = None,
    config: options.Config = None,
    preset: options.Preset = None,
    start: options.Start = None,
    transfer: options.Transfer = None,
    fresh_optimizer: options.FreshOptimizer = False,
    offline: Annotated[
        str | None, typer.Option("--offline", metavar="NAME", help="Mix this dataset into the batches.", autocompletion=completion.datasets)
    ] = None,
    offline_share: Annotated[
        float | None, typer.Option("--offline-share", parser=real, metavar="X", help="Its share of them. [default: 0.5]")
    ] = None,
    eval_env: options.EvalEnv = None,
    eval_episodes: Annotated[
        int | None, typer.Option("--eval-episodes", parser=count, metavar="N", help="Episodes per evaluation. [default: 10]")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option("--eval-every", parser=count, metavar="N", help="Evaluate every N steps. [default: ten times]")
    ] = None,
    eval_epsilon: Annotated[
        float | None,
        typer.Option("--eval-epsilon", parser=real, metavar="E", help="Probability of a uniform action in evaluations. [default: 0]"),
    ] = None,
    eval_sample: Annotated[bool, typer.Option("--eval-sample", help="Draw the actions in evaluations; else greedy ones.")] = False,
    limit: options.Limit = None,
    epsilon: options.Epsilon = None,
    epsilon_end: options.EpsilonEnd = None,
    epsilon_steps: options.EpsilonSteps = None,
    noise: options.Noise = None,
    max_episode_steps: options.MaxEpisode = None,
    step_timeout: options.StepTimeout = None,
    device: options.Device = None,
    threads: options.Threads = None,
    gpu_memory: options.GpuMemory = None,
    priority: options.Priority = 0,
    after: options.After = None,
    key: options.Key = None,
    wait: options.Wait = False,
    as_json: Json = False,
) -> None:
    """Train an algorithm while it acts in an environment; what it gathers is kept as a dataset. Prints the job's id."""

    with connect() as client:
        job = client.train_online(
            algorithm,
            env=env,
            into=into,
            steps=steps,
            seed=seed,
            config=settings(config, sets or []),
            start=start,
            preset=preset,
            random_steps=random_steps,
            update_start=update_start,
            update_interval=update_interval,
            updates=updates,
            transfer=transfer,
            fresh_optimizer=fresh_optimizer or None,
            offline=offline,
            offline_share=offline_share,
            eval_env=eval_env,
            eval_episodes=eval_episodes,
            eval_every=eval_every,
            eval_epsilon=eval_epsilon,
            eval_sample=eval_sample or None,
            envs=envs,
            processes=processes or None,
            limit=limit,
            epsilon=epsilon,
            epsilon_end=epsilon_end,
            epsilon_steps=epsilon_steps,
            noise=noise,
            max_episode_steps=max_episode_steps,
            step_timeout_s=step_timeout,
            device=device,
            threads=threads,
            gpu_memory_mb=gpu_memory,
            priority=priority,
            after=after or (),
            key=key,
        )
        told(client, job, wait=wait, as_json=as_json)
