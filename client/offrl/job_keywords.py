"""Keywords of `Client` that are options of a job. Generated from `offrl.job` by ``make docs``; do not edit."""

from __future__ import annotations

from typing import Literal, TypedDict


class TrainOptions(TypedDict, total=False):
    """Options of `Client.submit`; None stands for the default."""

    steps: int | None
    """Gradient updates (at least 1; default 100000)."""

    preset: str | None
    """Named group of settings."""

    eval_env: str | None
    """Evaluate in this gymnasium environment."""

    eval_episodes: int | None
    """Episodes per evaluation (1 to 100000; default 20)."""

    eval_every: int | None
    """Evaluate every K updates, and at the end (at least 1; default at the end only)."""

    early_stop: int | None
    """Finish after N evaluations in a row without a better mean return (at least 1)."""

    early_stop_delta: float | None
    """Smallest increase of the mean return that counts as better (at least 0; default 0)."""

    validation: float | None
    """Share of the episodes held out for validation metrics (at least 0, below 1; default 0)."""

    runner: Literal["auto", "eager", "compile", "graph"] | None
    """How updates are executed (default auto)."""

    device: str | None
    """Device to train on: auto, cpu, cuda or cuda:N (default auto)."""

    threads: int | None
    """CPU threads for torch (1 to 1024; default 1)."""

    gpu_memory_mb: int | None
    """GPU memory to reserve for the job (MB; at least 1; default estimated)."""

    transfer: Literal["all", "policy", "critics"] | None
    """Networks that ``start`` copies (default all)."""

    fresh_optimizer: bool | None
    """With ``start``: reset the optimizer state."""


class CollectOptions(TypedDict, total=False):
    """Options of `Client.collect`; None stands for the default."""

    limit: int | None
    """Maximum transitions of a new dataset; the oldest episodes are dropped (at least 1)."""

    epsilon: float | None
    """Probability of a uniform random action; with ``epsilon_end``, its initial value (0 to 1)."""

    epsilon_end: float | None
    """Final value of ``epsilon`` (0 to 1)."""

    epsilon_steps: int | None
    """Steps over which ``epsilon`` decays to ``epsilon_end`` (at least 1)."""

    noise: float | None
    """Standard deviation of normal noise on continuous actions, scaled to bounds of -1 and 1 (0 to 100)."""

    max_episode_steps: int | None
    """Truncate episodes at this length and reset (at least 1)."""

    step_timeout_s: float | None
    """Fail if a step takes longer than S seconds; collected data is kept (seconds; above 0, at most 86400)."""

    threads: int | None
    """CPU threads for torch (1 to 1024; default 1)."""

    policy_input: str | None
    """Input tensor of the observation, in an ONNX file of another program."""

    policy_output: str | None
    """Output tensor of the action, in such a file."""

    policy_argmax: bool | None
    """The output tensor holds a score for each discrete action: take the highest."""

    sample: bool | None
    """Sample from a job's stochastic policy; the default is greedy actions."""

    ratio: float | None
    """Act with the checkpoint whose mean return is nearest to X times the job's last one (above 0, at most 1)."""

    envs: int | None
    """Number of parallel environments (1 to 4096; default 1)."""

    processes: bool | None
    """Run each environment in its own process."""

    seed: int | None
    """Seed; environment i is first reset with S + i (at least 0; default 0)."""


class TrainOnlineOptions(TypedDict, total=False):
    """Options of `Client.train_online`; None stands for the default."""

    steps: int | None
    """Steps of the environment (at least 1; default 1000000)."""

    limit: int | None
    """Maximum transitions of a new dataset; the oldest episodes are dropped (at least 1)."""

    epsilon: float | None
    """Probability of a uniform random action; with ``epsilon_end``, its initial value (0 to 1)."""

    epsilon_end: float | None
    """Final value of ``epsilon`` (0 to 1)."""

    epsilon_steps: int | None
    """Steps over which ``epsilon`` decays to ``epsilon_end`` (at least 1)."""

    noise: float | None
    """Standard deviation of normal noise on continuous actions, scaled to bounds of -1 and 1 (0 to 100)."""

    max_episode_steps: int | None
    """Truncate episodes at this length and reset (at least 1)."""

    step_timeout_s: float | None
    """Fail if a step takes longer than S seconds; collected data is kept (seconds; above 0, at most 86400)."""

    threads: int | None
    """CPU threads for torch (1 to 1024; default 1)."""

    preset: str | None
    """Named group of settings."""

    envs: int | None
    """With ppo: number of parallel environments (1 to 4096; default 1)."""

    processes: bool | None
    """With ppo: run each environment in its own process."""

    random_steps: int | None
    """Uniform random actions in the first N steps (at least 0; default 0)."""

    update_start: int | None
    """No updates up to step N (at least 0; default 0)."""

    update_interval: int | None
    """Steps between two rounds of updates (at least 1; default 1)."""

    updates: int | None
    """Updates in each round (at least 1; default 1)."""

    offline: str | None
    """Dataset of the same environment to mix into every batch."""

    offline_share: float | None
    """Share of ``offline`` in a batch (above 0, below 1; default 0.5)."""

    eval_env: str | None
    """Evaluate the greedy policy in this gymnasium environment."""

    eval_episodes: int | None
    """Episodes per evaluation (1 to 100000; default 10)."""

    eval_every: int | None
    """Evaluate every N steps, and at the end (at least 1; default a tenth of the run)."""

    eval_epsilon: float | None
    """Probability of a uniform random action in evaluations (0 to 1; default 0)."""

    eval_sample: bool | None
    """Sample actions in evaluations; the default is greedy actions."""

    device: str | None
    """Device to train on: auto, cpu, cuda or cuda:N (default auto)."""

    gpu_memory_mb: int | None
    """GPU memory to reserve for the job (MB; at least 1; default estimated)."""

    transfer: Literal["all", "policy", "critics"] | None
    """Networks that ``start`` copies (default all)."""

    fresh_optimizer: bool | None
    """With ``start``: reset the optimizer state."""
