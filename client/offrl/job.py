"""What a job is: its specification as submitted, its states, and which state may follow which.

``queued -> running -> succeeded | failed | cancelled``, with ``paused`` beside ``queued`` and ``running``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

from offrl_store.errors import InvalidInput

# Names of datasets and keys: they become folder names, so no separators, no leading dot, nothing that a shell would read.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
JOB_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
JobId = Annotated[str, Field(pattern=JOB_PATTERN)]
# A job whose result another one takes, and which of its seeds (the first trained where none is named): JOB or JOB:SEED.
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
        """True where nothing happens any more (unless the job is retried)."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


MAIN_METRICS = ("return_mean", "validation_loss", "critic_loss", "loss", "actor_loss")  # metrics worth the room, in this order


def main_metric(metrics: Iterable[str]) -> str | None:
    """The one that tells most of how a job goes, None where there is none."""
    return min(metrics, key=lambda name: (MAIN_METRICS.index(name) if name in MAIN_METRICS else len(MAIN_METRICS), name), default=None)


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}),
    # running -> queued: the daemon came back, or the worker's attempt was lost, and the job resumes from its checkpoint
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.PAUSED, JobState.QUEUED}),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset({JobState.QUEUED}),  # resume with more steps
    JobState.FAILED: frozenset({JobState.QUEUED}),  # retry
    JobState.CANCELLED: frozenset({JobState.QUEUED}),  # retry
}


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainSpec(_Spec):
    """Train an algorithm on a dataset's snapshot."""

    kind: Literal["train"] = "train"
    algorithm: Annotated[str, Field(min_length=1, max_length=100)]
    dataset: Name
    steps: Annotated[int, Field(ge=1, le=10**12)] = 100_000  # gradient updates
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1024), FailFast()] = [0]
    config: dict[str, Any] = {}  # dotted setting -> value, as in --set
    preset: Annotated[str, Field(max_length=100)] | None = None
    eval_env: Annotated[str, Field(max_length=200)] | None = None  # gymnasium id
    eval_episodes: Annotated[int, Field(ge=1, le=100_000)] = 20
    eval_every: Annotated[int, Field(ge=1, le=10**12)] | None = None  # updates; None: at the end only
    early_stop: Annotated[int, Field(ge=1, le=10**6)] | None = None  # end after so many evaluations without a better one
    early_stop_delta: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0  # better: by more than this
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # share of the episodes held out
    runner: Literal["auto", "eager", "compile", "graph"] = "auto"
    device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1  # CPU threads of torch
    gpu_memory_mb: Annotated[int, Field(ge=1, le=1 << 30)] | None = None  # of a card, set aside for the job; None: the service estimates
    start: Taken | None = None  # JOB[:SEED] whose networks this one starts from
    transfer: Literal["all", "policy", "critics"] = "all"  # which of them
    fresh_optimizer: bool = False  # optimisers begin anew


POLICY_PATTERN = rf"^(random|normal|upload|job:{TAKEN_PATTERN[1:-1]})$"


class _Steps(_Spec):
    """What acts in an environment and puts its steps into a dataset, a new one or one that is there, of the same environment."""

    env: Annotated[str, Field(min_length=1, max_length=200)]  # gymnasium id
    dataset: Name
    steps: Annotated[int, Field(ge=1, le=10**12)]  # of the environment
    limit: Annotated[int, Field(ge=1, le=10**12)] | None = None  # transitions of a new dataset: the oldest episodes go beyond them
    epsilon: Annotated[float, Field(ge=0.0, le=1.0)] | None = None  # probability of a uniform action
    epsilon_end: Annotated[float, Field(ge=0.0, le=1.0)] | None = None  # to which it falls, within
    epsilon_steps: Annotated[int, Field(ge=1, le=10**12)] | None = None
    noise: Annotated[float, Field(ge=0.0, le=100.0)] | None = None  # deviation of normal noise, in units of half the bounds' distance
    max_episode_steps: Annotated[int, Field(ge=1, le=10**9)] | None = None  # an episode is cut after so many
    step_timeout_s: Annotated[float, Field(gt=0.0, le=86_400.0)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] = 1  # CPU threads of torch


class CollectSpec(_Steps):
    """Collect steps of a policy."""

    kind: Literal["collect"] = "collect"
    policy: Annotated[str, Field(max_length=100, pattern=POLICY_PATTERN)] = "random"  # or normal, job:JOB[:SEED], upload
    upload: JobId | None = None  # of the policy file, where policy is upload
    # Of an uploaded file of another program: the tensors of observation and action, and whether the latter are scores. `offrl.foreign`.
    policy_input: Annotated[str, Field(max_length=200)] | None = None
    policy_output: Annotated[str, Field(max_length=200)] | None = None
    policy_argmax: bool = False
    sample: bool = False  # draw the actions of a job's policy; else greedy ones
    ratio: Annotated[float, Field(gt=0.0, le=1.0)] | None = None  # of the job's last mean return: act as its checkpoint nearest to it
    envs: Annotated[int, Field(ge=1, le=4096)] = 1  # side by side
    processes: bool = False  # each environment in a process of its own
    seed: Seed = 0
    device: Literal["cpu"] = "cpu"


class TrainOnlineSpec(_Steps):
    """Train an algorithm while it acts in an environment; everything gathered is kept as a dataset."""

    kind: Literal["train_online"] = "train_online"
    algorithm: Annotated[str, Field(min_length=1, max_length=100)]
    steps: Annotated[int, Field(ge=1, le=10**12)] = 1_000_000
    dataset: Name | None = None  # None: nothing is kept (of what learns from its own play only)
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1)] = [0]
    config: dict[str, Any] = {}  # dotted setting -> value, as in --set
    preset: Annotated[str, Field(max_length=100)] | None = None
    envs: Annotated[int, Field(ge=1, le=4096)] = 1  # side by side, of what learns from its own play
    processes: bool = False  # each of them in a process of its own
    random_steps: Annotated[int, Field(ge=0, le=10**12)] = 0  # first steps with uniform actions
    update_start: Annotated[int, Field(ge=0, le=10**12)] = 0  # no update at or before this step
    update_interval: Annotated[int, Field(ge=1, le=10**9)] = 1  # updates after every so many steps
    updates: Annotated[int, Field(ge=1, le=10**6)] = 1  # at each of these times
    offline: Name | None = None  # dataset that is mixed into the batches
    offline_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    eval_env: Annotated[str, Field(max_length=200)] | None = None
    eval_episodes: Annotated[int, Field(ge=1, le=100_000)] = 10
    eval_every: Annotated[int, Field(ge=1, le=10**12)] | None = None  # steps; None: ten times, and at the end
    eval_epsilon: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    eval_sample: bool = False  # draw the actions in evaluations
    device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = "auto"
    gpu_memory_mb: Annotated[int, Field(ge=1, le=1 << 30)] | None = None
    start: Taken | None = None  # JOB[:SEED] whose networks this one starts from
    transfer: Literal["all", "policy", "critics"] = "all"
    fresh_optimizer: bool = False


def taken(text: str) -> tuple[str, int | None]:
    """The job and the seed of JOB or JOB:SEED; `InvalidInput` for anything else."""
    if re.fullmatch(TAKEN_PATTERN, text) is None:
        raise InvalidInput(f"{text!r} names no job", hint="give JOB, or JOB:SEED")
    job, _, seed = text.partition(":")
    return job, int(seed) if seed else None


class ImportSpec(_Spec):
    """Read a finished upload, a path below an import root of the daemon, or what a name stands for (`offrl.named`), into a new dataset or
    onto an existing one."""

    kind: Literal["import"] = "import"
    dataset: Name
    upload: JobId | None = None
    path: Annotated[str, Field(max_length=4096)] | None = None
    named: Annotated[str, Field(max_length=200)] | None = None  # cartpole-replay, breakout-mixed-v0, hopper-medium-v2, ...
    format: Annotated[str, Field(max_length=40)] | None = None  # None: found from the content
    append: bool = False
    options: dict[Annotated[str, Field(max_length=100)], Any] = {}  # of the format
    skip_bad: bool = False  # leave out episodes that cannot be used, and say which
    once: bool = False  # of a recorder's segment: append what is not there yet


class ExportSpec(_Spec):
    """Make a policy file from a checkpoint of a train job (made by the daemon when `fetch` asks for one that is not there)."""

    kind: Literal["export"] = "export"
    job: JobId
    seed: Seed | None = None  # None: the first trained
    step: Annotated[int, Field(ge=0, lt=2**63)] | None = None  # None: the newest checkpoint
    format: Literal["onnx", "torchscript"] = "onnx"


class DatasetExportSpec(_Spec):
    """Write a dataset in a file format that others read; the client fetches the result."""

    kind: Literal["dataset_export"] = "dataset_export"
    dataset: Name
    format: Literal["d4rl", "npz", "store", "minari", "d3rlpy", "d3rlpy-v1", "robomimic", "torchrl", "gen_dgrl", "atari", "lerobot"]


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
