"""What a job is: its specification with all options, its states and transitions, and a table of the kinds of job.

``queued -> running -> succeeded | failed | cancelled``, with ``paused`` beside ``queued`` and ``running``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

from offrl.export_formats import ExportFormat
from offrl.job_options import Option
from offrl_store.errors import InvalidInput

# Names of datasets and keys become folder names: no separators, no leading dot, nothing special to a shell.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
JOB_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
JobId = Annotated[str, Field(pattern=JOB_PATTERN)]
# A job whose result another one uses, and which of its seeds (by default the first): JOB or JOB:SEED.
TAKEN_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}(:[0-9]{1,10})?$"
Taken = Annotated[str, Field(pattern=TAKEN_PATTERN)]
POLICY_SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt"}  # format of a policy file -> the end of its name
DEVICE_PATTERN = r"^(auto|cpu|cuda(:[0-9]{1,4})?)$"
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class JobState(StrEnum):
    """The state of a job; `TRANSITIONS` says which may follow."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the job is over (unless it is retried)."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


MAIN_METRICS = ("return_mean", "validation_loss", "critic_loss", "loss", "actor_loss")  # most informative first


def main_metric(metrics: Iterable[str]) -> str | None:
    """Return the most informative metric, None if there is no metric."""
    return min(metrics, key=lambda name: (MAIN_METRICS.index(name) if name in MAIN_METRICS else len(MAIN_METRICS), name), default=None)


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}),
    # running -> queued: the daemon restarted, or the worker was lost; the job resumes from its checkpoint
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.PAUSED, JobState.QUEUED}),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset({JobState.QUEUED}),  # resume with more steps
    JobState.FAILED: frozenset({JobState.QUEUED}),  # retry
    JobState.CANCELLED: frozenset({JobState.QUEUED}),  # retry
}


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# ------------------------------------------------------------------------------------------------ options of several kinds of job
Steps = Annotated[int, Field(ge=1, le=10**12)]
Preset = Annotated[
    Annotated[str, Field(max_length=100)] | None,
    Option("Named group of settings.", "P", more="`offrl algos NAME` lists them."),
]
EvalEpisodes = Annotated[int, Field(ge=1, le=100_000), Option("Episodes per evaluation.", "N")]
Device = Annotated[str, Field(pattern=DEVICE_PATTERN), Option("Device to train on: auto, cpu, cuda or cuda:N.", "D")]
Threads = Annotated[int, Field(ge=1, le=1024), Option("CPU threads for torch.", "N")]
GpuMemory = Annotated[
    int | None,
    Field(ge=1, le=1 << 30),
    Option("GPU memory to reserve for the job.", "MB", unit="MB", flag="--gpu-memory", default="estimated"),
]
Start = Annotated[
    Taken | None,
    Option(
        "Start from the networks of this job, once it has succeeded.",
        "JOB[:SEED]",
        flag="--from",
        more="Its last checkpoint is used. Each seed takes its own networks, or the first seed's. The scalers of observations and actions"
        " come along.",
    ),
]
Transfer = Annotated[
    Literal["all", "policy", "critics"],
    Option("Networks that --from copies.", "T", more="`critics` are critic, q and value."),
]
FreshOptimizer = Annotated[bool, Option("With --from: reset the optimizer state.")]


class TrainSpec(_Spec):
    """Train an algorithm on a dataset's snapshot."""

    kind: Literal["train"] = "train"
    algorithm: Annotated[str, Field(min_length=1, max_length=100)]
    dataset: Name
    steps: Annotated[Steps, Option("Gradient updates.", "N")] = 100_000
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1024), FailFast()] = [0]
    config: dict[str, Any] = {}  # dotted setting -> value, as in --set
    preset: Preset = None
    eval_env: Annotated[
        Annotated[str, Field(max_length=200)] | None,
        Option(
            "Evaluate in this gymnasium environment.",
            "ID",
            more="Each seed's policy is evaluated at the end, and every `--eval-every` updates. Adds the metrics `return_mean` and"
            " `return_std`.",
        ),
    ] = None
    eval_episodes: EvalEpisodes = 20
    eval_every: Annotated[Steps | None, Option("Evaluate every K updates, and at the end.", "K", default="at the end only")] = None
    early_stop: Annotated[
        int | None,
        Field(ge=1, le=10**6),
        Option(
            "Finish after N evaluations in a row without a better mean return.",
            "N",
            more="Needs `--eval-every`. The job succeeds; `fetch --best` returns the best checkpoint's policy. With"
            " `offrld/procgen-GAME-validation-v0`, N = 10 and D = 0.1, this is gen_dgrl's early stopping.",
        ),
    ] = None
    early_stop_delta: Annotated[
        float,
        Field(ge=0.0, allow_inf_nan=False),
        Option("Smallest increase of the mean return that counts as better.", "D"),
    ] = 0.0
    validation: Annotated[float, Field(ge=0.0, lt=1.0), Option("Share of the episodes held out for validation metrics.", "X")] = 0.0
    runner: Annotated[Literal["auto", "eager", "compile", "graph"], Option("How updates are executed.", "R")] = "auto"
    device: Device = "auto"
    threads: Threads = 1
    gpu_memory_mb: GpuMemory = None
    start: Start = None
    transfer: Transfer = "all"
    fresh_optimizer: FreshOptimizer = False


POLICY_PATTERN = rf"^(random|normal|upload|job:{TAKEN_PATTERN[1:-1]})$"


class _Steps(_Spec):
    """Act in an environment and write the steps into a dataset: a new one, or an existing one of the same environment."""

    env: Annotated[str, Field(min_length=1, max_length=200)]  # gymnasium id
    dataset: Name | None
    steps: Annotated[Steps, Option("Steps of the environment.", "N")]
    limit: Annotated[
        Steps | None,
        Option("Maximum transitions of a new dataset; the oldest episodes are dropped.", "N"),
    ] = None
    epsilon: Annotated[
        float | None,
        Field(ge=0.0, le=1.0),
        Option(
            "Probability of a uniform random action; with --epsilon-end, its initial value.",
            "E",
            more="The decay is linear; it starts at 1 by default.",
        ),
    ] = None
    epsilon_end: Annotated[float | None, Field(ge=0.0, le=1.0), Option("Final value of --epsilon.", "E")] = None
    epsilon_steps: Annotated[Steps | None, Option("Steps over which --epsilon decays to --epsilon-end.", "N")] = None
    noise: Annotated[
        float | None,
        Field(ge=0.0, le=100.0),
        Option("Standard deviation of normal noise on continuous actions, scaled to bounds of -1 and 1.", "STD"),
    ] = None
    max_episode_steps: Annotated[int | None, Field(ge=1, le=10**9), Option("Truncate episodes at this length and reset.", "N")] = None
    step_timeout_s: Annotated[
        float | None,
        Field(gt=0.0, le=86_400.0),
        Option("Fail if a step takes longer than S seconds; collected data is kept.", "S", unit="seconds", flag="--step-timeout"),
    ] = None
    threads: Threads = 1


class CollectSpec(_Steps):
    """Run a policy and store its steps in a dataset."""

    kind: Literal["collect"] = "collect"
    dataset: Name
    policy: Annotated[str, Field(max_length=100, pattern=POLICY_PATTERN)] = "random"  # or normal, job:JOB[:SEED], upload
    upload: JobId | None = None  # of the policy file if policy is "upload"
    policy_input: Annotated[
        Annotated[str, Field(max_length=200)] | None,
        Option(
            "Input tensor of the observation, in an ONNX file of another program.",
            "NAME",
            more="For example of Stable-Baselines3 or d3rlpy. Continuous actions are clipped to the environment's bounds.",
        ),
    ] = None
    policy_output: Annotated[
        Annotated[str, Field(max_length=200)] | None, Option("Output tensor of the action, in such a file.", "NAME")
    ] = None
    policy_argmax: Annotated[bool, Option("The output tensor holds a score for each discrete action: take the highest.")] = False
    sample: Annotated[bool, Option("Sample from a job's stochastic policy; the default is greedy actions.")] = False
    ratio: Annotated[
        float | None,
        Field(gt=0.0, le=1.0),
        Option(
            "Act with the checkpoint whose mean return is nearest to X times the job's last one.",
            "X",
            more="For a job with evaluations; 0.5 gives medium data.",
        ),
    ] = None
    envs: Annotated[
        int, Field(ge=1, le=4096), Option("Number of parallel environments.", "K", more="Their actions are computed together.")
    ] = 1
    processes: Annotated[bool, Option("Run each environment in its own process.")] = False
    seed: Annotated[Seed, Option("Seed; environment i is first reset with S + i.", "S")] = 0
    device: Literal["cpu"] = "cpu"


class TrainOnlineSpec(_Steps):
    """Train an algorithm while it acts in an environment; all collected steps are kept as a dataset."""

    kind: Literal["train_online"] = "train_online"
    algorithm: Annotated[str, Field(min_length=1, max_length=100)]
    steps: Annotated[Steps, Option("Steps of the environment.", "N", more="`ppo` rounds up to whole rollouts.")] = 1_000_000
    dataset: Name | None = None  # None: the steps are not kept (of an algorithm that learns from its own rollouts)
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1)] = [0]
    config: dict[str, Any] = {}  # dotted setting -> value, as in --set
    preset: Preset = None
    envs: Annotated[int, Field(ge=1, le=4096), Option("With ppo: number of parallel environments.", "K")] = 1
    processes: Annotated[bool, Option("With ppo: run each environment in its own process.")] = False
    random_steps: Annotated[int, Field(ge=0, le=10**12), Option("Uniform random actions in the first N steps.", "N")] = 0
    update_start: Annotated[
        int,
        Field(ge=0, le=10**12),
        Option("No updates up to step N.", "N", more="Updates also wait until there are more transitions than one batch."),
    ] = 0
    update_interval: Annotated[int, Field(ge=1, le=10**9), Option("Steps between two rounds of updates.", "N")] = 1
    updates: Annotated[int, Field(ge=1, le=10**6), Option("Updates in each round.", "N")] = 1
    offline: Annotated[Name | None, Option("Dataset of the same environment to mix into every batch.", "NAME")] = None
    offline_share: Annotated[float, Field(gt=0.0, lt=1.0), Option("Share of --offline in a batch.", "X")] = 0.5
    eval_env: Annotated[
        Annotated[str, Field(max_length=200)] | None,
        Option("Evaluate the greedy policy in this gymnasium environment.", "ID"),
    ] = None
    eval_episodes: EvalEpisodes = 10
    eval_every: Annotated[Steps | None, Option("Evaluate every N steps, and at the end.", "N", default="a tenth of the run")] = None
    eval_epsilon: Annotated[float, Field(ge=0.0, le=1.0), Option("Probability of a uniform random action in evaluations.", "E")] = 0.0
    eval_sample: Annotated[bool, Option("Sample actions in evaluations; the default is greedy actions.")] = False
    device: Device = "auto"
    gpu_memory_mb: GpuMemory = None
    start: Start = None
    transfer: Transfer = "all"
    fresh_optimizer: FreshOptimizer = False


def taken(text: str) -> tuple[str, int | None]:
    """Return job and seed of JOB or JOB:SEED; raise `InvalidInput` for anything else."""
    if re.fullmatch(TAKEN_PATTERN, text) is None:
        raise InvalidInput(f"{text!r} names no job", hint="pass JOB, or JOB:SEED")
    job, _, seed = text.partition(":")
    return job, int(seed) if seed else None


class ImportSpec(_Spec):
    """Import a finished upload, a path below an import root of the daemon, or a named dataset (`offrl.named`) as a new dataset, or append
    it to an existing one."""

    kind: Literal["import"] = "import"
    dataset: Name
    upload: JobId | None = None
    path: Annotated[str, Field(max_length=4096)] | None = None
    named: Annotated[str, Field(max_length=200)] | None = None  # cartpole-replay, breakout-mixed-v0, hopper-medium-v2, ...
    format: Annotated[str, Field(max_length=40)] | None = None  # None: detected from the content
    append: bool = False
    options: dict[Annotated[str, Field(max_length=100)], Any] = {}  # of the format
    skip_bad: bool = False  # skip bad episodes and report them
    once: bool = False  # of a recorder's segment: append only the missing episodes


class ExportSpec(_Spec):
    """Make a policy file from a checkpoint of a train job; the daemon submits it if `fetch` needs a file that does not exist yet."""

    kind: Literal["export"] = "export"
    job: JobId
    seed: Seed | None = None  # None: the first trained
    step: Annotated[int, Field(ge=0, lt=2**63)] | None = None  # None: the newest checkpoint
    format: Literal["onnx", "torchscript"] = "onnx"


class DatasetExportSpec(_Spec):
    """Write a dataset in another file format; the client downloads the result."""

    kind: Literal["dataset_export"] = "dataset_export"
    dataset: Name
    format: ExportFormat


Spec = TrainSpec | ImportSpec | ExportSpec | DatasetExportSpec | CollectSpec | TrainOnlineSpec
JobSpec = Annotated[Spec, Field(discriminator="kind")]


@dataclass(frozen=True)
class Kind:
    """What client, daemon and worker need to know about a kind of job."""

    spec: type[Spec]
    worker: str  # module whose ``run(job)`` does the work: a dotted name, because only a worker may import it
    lane: Literal["train", "light"] = "light"  # light: short jobs, which never wait behind a training
    act: str = "submit"  # in a refusal: "NAME may not ACT"
    trains: bool = False  # makes networks, metrics and policies; a warm spare worker may run it
    makes_steps: bool = False  # acts in an environment, writes its steps into a dataset, and counts them instead of updates
    writes_dataset: bool = False  # one such job at a time for each dataset
    pins_dataset: bool = False  # reads the snapshot that the dataset has when the job is queued
    pausable: bool = False  # while it runs; it can also be extended
    decodes: bool = False  # reads files whose content nobody has checked: within ``workers.import_memory_mb``
    confined: bool = False  # needs nothing of the machine but the installation and its own input: no network, no other files

    @property
    def name(self) -> str:
        """The kind as specifications, the queue and the command line name it."""
        return str(self.spec.model_fields["kind"].default)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(TrainSpec, "offrld.worker.train", lane="train", trains=True, pins_dataset=True, pausable=True),
        Kind(ImportSpec, "offrld.worker.import_dataset", writes_dataset=True, decodes=True, confined=True),
        Kind(ExportSpec, "offrld.worker.export_policy", confined=True),
        Kind(
            DatasetExportSpec,
            "offrld.worker.dataset_export",
            act="export datasets",
            pins_dataset=True,
            decodes=True,
            confined=True,
        ),
        Kind(
            CollectSpec,
            "offrld.worker.collect_steps",
            lane="train",
            act="collect steps",
            makes_steps=True,
            writes_dataset=True,
            pausable=True,
        ),
        Kind(
            TrainOnlineSpec,
            "offrld.worker.train_online",
            lane="train",
            trains=True,
            makes_steps=True,
            writes_dataset=True,
            pausable=True,
        ),
    )
}


def _kinds(property_name: str) -> tuple[str, ...]:
    return tuple(name for name, kind in KINDS.items() if getattr(kind, property_name))


TRAINS, MAKES_STEPS, PAUSABLE = _kinds("trains"), _kinds("makes_steps"), _kinds("pausable")
WRITES_DATASET, PINS_DATASET = _kinds("writes_dataset"), _kinds("pins_dataset")
if TYPE_CHECKING:
    JobKind = str
else:
    JobKind = Literal[tuple(KINDS)]


def unit(kind: str) -> str:
    """What a job of this kind counts: updates, or steps of its environment."""
    return "steps" if KINDS[kind].makes_steps else "updates"
