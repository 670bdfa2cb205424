"""The commands collect and train-online: jobs that act in an environment and put their steps into a dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from offrl.cli import completion
from offrl.cli.output import Json
from offrl.cli.submit import told
from offrl.cli.values import settings

Env = Annotated[str, typer.Option("--env", metavar="ID", help="The gymnasium environment, made on the daemon's side.")]
Into = Annotated[
    str,
    typer.Option(
        "--into", metavar="NAME", help="The dataset: a new one, or one of the same environment.", autocompletion=completion.datasets
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Transitions of a new dataset: beyond them the oldest episodes go.")
]
Epsilon = Annotated[
    float | None, typer.Option("--epsilon", metavar="E", help="Probability of a uniform action; with --epsilon-end the first.")
]
EpsilonEnd = Annotated[float | None, typer.Option("--epsilon-end", metavar="E", help="To which it falls,")]
EpsilonSteps = Annotated[int | None, typer.Option("--epsilon-steps", metavar="N", help="within so many steps.")]
Noise = Annotated[
    float | None, typer.Option("--noise", metavar="STD", help="Deviation of normal noise on actions whose bounds are -1 and 1.")
]
MaxEpisode = Annotated[int | None, typer.Option("--max-episode-steps", metavar="N", help="Cut an episode after so many steps.")]
StepTimeout = Annotated[
    float | None, typer.Option("--step-timeout", metavar="S", help="Fail, with what is there kept, where a step takes more seconds.")
]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", help="CPU threads of torch. [default: 1]")]
Priority = Annotated[int, typer.Option("--priority", metavar="P", help="A higher one runs first.")]
After = Annotated[
    list[str] | None,
    typer.Option("--after", metavar="JOB", help="Wait until JOB has succeeded; may be repeated.", autocompletion=completion.jobs),
]
Key = Annotated[str | None, typer.Option("--key", metavar="K", help="The same key gives the same job, however often it is sent.")]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until the job has ended; exit status 1 if it fails.")]


def register(app: typer.Typer) -> None:
    """Put the commands of this file into ``app``."""
    app.command()(collect)
    app.command("train-online")(train_online)


def collect(
    env: Env,
    into: Into,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Steps of the environment.")],
    policy: Annotated[
        str, typer.Option("--policy", metavar="random|normal|job:ID|FILE.onnx", help="What acts; of a job its newest checkpoint.")
    ] = "random",
    sample: Annotated[bool, typer.Option("--sample", help="Draw a job's actions instead of taking the greedy ones.")] = False,
    ratio: Annotated[
        float | None, typer.Option("--ratio", metavar="X", help="Act as the job's checkpoint whose return is nearest to X of the last one.")
    ] = None,
    envs: Annotated[int | None, typer.Option("--envs", metavar="K", help="Environments side by side. [default: 1]")] = None,
    processes: Annotated[bool, typer.Option("--processes", help="Each of them in a process of its own.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", metavar="S", help="The i-th environment is seeded with S + i. [default: 0]")] = None,
    limit: Limit = None,
    epsilon: Epsilon = None,
    epsilon_end: EpsilonEnd = None,
    epsilon_steps: EpsilonSteps = None,
    noise: Noise = None,
    max_episode_steps: MaxEpisode = None,
    step_timeout: StepTimeout = None,
    threads: Threads = None,
    priority: Priority = 0,
    after: After = None,
    key: Key = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Collect steps of a policy into a dataset. Prints the job's id."""
    from offrl.client import Client

    with Client() as client:
        job = client.collect(
            env, policy, into=into, steps=steps, sample=sample or None, ratio=ratio, envs=envs, processes=processes or None, seed=seed,
            limit=limit, epsilon=epsilon, epsilon_end=epsilon_end, epsilon_steps=epsilon_steps, noise=noise,
            max_episode_steps=max_episode_steps, step_timeout_s=step_timeout, threads=threads, priority=priority, after=after or (),
            key=key,
        )  # fmt: skip
        told(job, wait=wait, as_json=as_json)


def train_online(
    algorithm: Annotated[str, typer.Argument(metavar="ALGO", help="A name of `offrl algos`.", autocompletion=completion.algorithms)],
    env: Env,
    into: Annotated[
        str | None,
        typer.Option(
            "--into",
            metavar="NAME",
            help="The dataset: a new one, or one of the same environment; of ppo optional.",
            autocompletion=completion.datasets,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Steps of the environment. [default: 1000000]")] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="S", help="[default: 0]")] = None,
    envs: Annotated[int | None, typer.Option("--envs", metavar="K", help="Of ppo: environments side by side. [default: 1]")] = None,
    processes: Annotated[bool, typer.Option("--processes", help="Each of them in a process of its own.")] = False,
    random_steps: Annotated[int | None, typer.Option("--random-steps", metavar="N", help="Uniform actions in the first steps.")] = None,
    update_start: Annotated[
        int | None, typer.Option("--update-start", metavar="N", help="No update at or before this step. [default: 0]")
    ] = None,
    update_interval: Annotated[
        int | None, typer.Option("--update-interval", metavar="N", help="Updates after every N steps. [default: 1]")
    ] = None,
    updates: Annotated[int | None, typer.Option("--updates", metavar="N", help="At each of those times. [default: 1]")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the algorithm; may be repeated.")
    ] = None,
    config: Annotated[str | None, typer.Option("--config", metavar="F.toml", help="A TOML file of settings; --set goes before it.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", metavar="P", help="A named set of settings of the algorithm.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="JOB[:SEED]", help="Go on from the networks of this job; waits for it.")
    ] = None,
    transfer: Annotated[
        str | None, typer.Option("--transfer", metavar="T", help="Of --from: all, policy or critics. [default: all]")
    ] = None,
    fresh_optimizer: Annotated[bool, typer.Option("--fresh-optimizer", help="Of --from: optimisers begin anew.")] = False,
    offline: Annotated[
        str | None, typer.Option("--offline", metavar="NAME", help="Mix this dataset into the batches.", autocompletion=completion.datasets)
    ] = None,
    offline_share: Annotated[float | None, typer.Option("--offline-share", metavar="X", help="Its share of them. [default: 0.5]")] = None,
    eval_env: Annotated[str | None, typer.Option("--eval-env", metavar="ID", help="Evaluate in this environment.")] = None,
    eval_episodes: Annotated[
        int | None, typer.Option("--eval-episodes", metavar="N", help="Episodes per evaluation. [default: 10]")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option("--eval-every", metavar="N", help="Evaluate every N steps. [default: ten times]")
    ] = None,
    eval_epsilon: Annotated[
        float | None, typer.Option("--eval-epsilon", metavar="E", help="Probability of a uniform action in evaluations. [default: 0]")
    ] = None,
    eval_sample: Annotated[bool, typer.Option("--eval-sample", help="Draw the actions in evaluations; else greedy ones.")] = False,
    limit: Limit = None,
    epsilon: Epsilon = None,
    epsilon_end: EpsilonEnd = None,
    epsilon_steps: EpsilonSteps = None,
    noise: Noise = None,
    max_episode_steps: MaxEpisode = None,
    step_timeout: StepTimeout = None,
    device: Annotated[str | None, typer.Option("--device", metavar="D", help="auto, cpu, cuda or cuda:N. [default: auto]")] = None,
    threads: Threads = None,
    gpu_memory: Annotated[
        int | None, typer.Option("--gpu-memory", metavar="MB", help="Memory of a card to set aside for the job. [default: estimated]")
    ] = None,
    priority: Priority = 0,
    after: After = None,
    key: Key = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Train an algorithm while it acts in an environment; what it gathers is kept as a dataset. Prints the job's id."""
    from offrl.client import Client

    with Client() as client:
        job = client.train_online(
            algorithm, env=env, into=into, steps=steps, seed=seed, config=settings(config, sets or []), start=start, preset=preset,
            random_steps=random_steps, update_start=update_start, update_interval=update_interval, updates=updates, transfer=transfer,
            fresh_optimizer=fresh_optimizer or None, offline=offline, offline_share=offline_share, eval_env=eval_env,
            eval_episodes=eval_episodes, eval_every=eval_every, eval_epsilon=eval_epsilon, eval_sample=eval_sample or None, envs=envs,
            processes=processes or None, limit=limit, epsilon=epsilon,
            epsilon_end=epsilon_end, epsilon_steps=epsilon_steps, noise=noise, max_episode_steps=max_episode_steps,
            step_timeout_s=step_timeout, device=device, threads=threads, gpu_memory_mb=gpu_memory, priority=priority, after=after or (),
            key=key,
        )  # fmt: skip
        told(job, wait=wait, as_json=as_json)
