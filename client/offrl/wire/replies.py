"""Every reply of the daemon. A reply may gain fields with a default; none is renamed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from offrl.job import JobState

MAX_SKIPPED = 200  # skipped episodes that a dataset's information names


class Reply(BaseModel):
    """Base of all replies; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Done(Reply):
    """The change is safely on disk; there is no result."""


class Pong(Reply):
    version: str
    protocol: int
    state_dir: str
    uptime_s: float
    caller: str = ""  # the user that the daemon sees the client as
    role: str = ""  # of the caller


class AlgorithmList(Reply):
    algorithms: list[dict[str, Any]]  # name, summary, actions, paper, presets, config: {field: {type, default, help, ...}}
    problems: list[str] = []  # "name: what is wrong" for each unusable algorithm of an installed package


class AuditEntries(Reply):
    """A part of the audit log, oldest first: {n, time, caller, role, address, action, ..., outcome}."""

    entries: list[dict[str, Any]]
    more: bool  # request the next part with the last ``n`` as ``after``


class Submitted(Reply):
    job: str
    created: bool = True  # False: a job with this key existed


class JobInfo(Reply):
    """One job as `offrl status --json` shows it. Keys may be added, never renamed."""

    job: str
    kind: str
    state: JobState
    reason: str = ""  # why it failed, was cancelled or waits
    error: dict[str, str] | None = None  # {code, message, hint} of a failed job, or of the crash that it is about to recover from
    algorithm: str | None = None
    dataset: str | None = None
    snapshot: str | None = None  # of the dataset; the job pins it
    steps: int = 0  # target number of updates (import jobs: episodes, 0 while unknown)
    step: int = 0  # updates done
    updates_per_second: float | None = None
    eta_s: float | None = None
    metrics: dict[str, dict[str, float]] = {}  # name -> {seed -> latest value}
    seeds: list[int] = []
    priority: int = 0
    after: list[str] = []
    attempt: int = 0
    start_at: float | None = None  # earliest start (all times are seconds since the epoch)
    retry_at: float | None = None  # after a crash: earliest start of the next attempt
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    owner: str | None = None  # name of the key that submitted it, or "local"
    pinned: bool = False  # retention skips it
    rerun_of: str | None = None  # the job that it repeats
    spec: dict[str, Any] = {}

    def __repr_args__(self) -> Any:
        """Show the fields that differ from their defaults, without the specification, whose main values are fields too."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name != "spec" and (field.is_required() or value != field.default):
                yield name, value.value if isinstance(value, JobState) else value


class Pause(Reply):
    """The whole queue is paused: no new job starts."""

    by: str  # name of the key, or "local"
    at: float  # start of the pause, seconds since the epoch
    reason: str = ""


class QueueInfo(Reply):
    """The queue as `offrl queue status --json` shows it."""

    paused: Pause | None = None
    counts: dict[str, int]  # queued, running and paused jobs of all kinds
    owners: dict[str, dict[str, int]]  # the same by owner; "" owns the jobs that are older than ownership
    next_start: float | None = None  # time of the next scheduled start
    limits: dict[str, int]  # setting -> jobs, 0: unlimited
    next: str | None = None  # the owners come in parts: pass this as ``after`` for the next one; None: last part


class JobList(Reply):
    jobs: list[JobInfo]  # in order of submission, without their specs (`GetJob` has it)
    left_off: int = 0  # older jobs beyond the limit or the size of one message
    before: int | None = None  # pass this as ``before`` for older jobs; None: last part


class Encoded(Reply):
    """A reply that is encoded already, because many clients get it or most of it is unchanged."""

    body: bytes


class Event(Reply):
    """One numbered event of a job. ``n`` counts from 1 without gaps; a follower requests those after its cursor."""

    n: int
    job: str
    time: float
    type: Literal["state", "progress", "message"]
    state: JobState
    step: int = 0
    steps: int = 0
    updates_per_second: float | None = None
    eta_s: float | None = None
    metrics: dict[str, dict[str, float]] = {}
    message: str = ""


class Events(Reply):
    events: list[Event]
    cursor: int  # of the next request
    ended: bool  # the job has ended and no event after `cursor` exists


class LogPart(Reply):
    data: bytes
    offset: int  # of the next part
    ended: bool


class SkippedEpisode(BaseModel):
    """An episode that an import skipped."""

    episode: int  # index in the source
    row: int | None = None  # in the source's array, or in the episode
    why: str


class DatasetInfo(Reply):
    """One dataset as `offrl datasets show --json` shows it."""

    name: str
    episodes: int
    transitions: int  # steps without the last ones of cut episodes whose next observation is missing
    steps: int | None = None  # None: the dataset is older than this count
    bytes: int
    fields: dict[str, Any]
    snapshot: str
    returns: dict[str, float]  # mean, std, min, max
    metadata: dict[str, Any] = {}
    pinned_by: list[str] = []
    skipped: list[SkippedEpisode] = []  # by the last import with --skip-bad: the first `MAX_SKIPPED`
    skipped_episodes: int = 0  # all skipped episodes of that import
    owner: str | None = None  # who added it; None: older than ownership, operators own it
    trimmed: list[str] = []  # shortened keys: an entry of a list and a message have a size limit


class DatasetList(Reply):
    datasets: list[DatasetInfo]
    next: str | None = None  # pass this as ``after`` for the next part; None: last part


class UploadInfo(Reply):
    """One upload as `offrl uploads ls --json` shows it."""

    upload: str
    owner: str | None  # who opened it; None: opened by an older daemon
    files: int
    size: int  # bytes, when complete
    bytes: int  # received
    finished: bool  # complete, not imported yet
    age_s: float  # since the last write
    job: str | None = None  # the unfinished job that reads it


class UploadList(Reply):
    uploads: list[UploadInfo]  # longest idle first
    next: str | None = None  # pass this as ``after`` for the next part; None: last part


class UploadOpened(Reply):
    upload: str
    received: dict[str, int]  # path -> bytes received, for resuming after a broken connection


class Received(Reply):
    received: int  # bytes of this file that the daemon holds; `FinishUpload` makes them durable


class Artifact(Reply):
    """A file that a job made; `ReadArtifact` returns its bytes."""

    job: str  # the job that holds it (an export job if one had to be started)
    ready: bool  # False: wait for that job, then repeat the request
    path: str = ""  # relative to the run folder
    name: str = ""  # file name to offer
    size: int = 0
    sha256: str = ""


class Data(Reply):
    data: bytes


class PrunedJob(Reply):
    """A job that retention deletes."""

    job: str
    kind: str
    state: JobState
    algorithm: str | None = None
    dataset: str | None = None
    finished_at: float | None = None
    bytes: int  # of its run folder on the disk
    why: str


class Pruned(Reply):
    jobs: list[PrunedJob]  # oldest end first
    more: bool  # repeat the request for the rest


class BackupBegun(Reply):
    """The state is frozen: read the list of files, then the files, then end the backup."""

    backup: str
    list: str  # path of the list of files: one line of JSON with path and size for each
    list_size: int
    files: int
    bytes: int
    version: str  # of offrld
    schema_version: int  # of the queue
    time: float
    state_dir: str
    keys: bool  # whether the daemon's keys are included


class Gpu(Reply):
    """One GPU; a value that it does not report is None."""

    index: int
    name: str
    percent: float | None = None  # utilisation
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class MachineInfo(Reply):
    """The machine that the daemon runs on; a value that the system does not report is None."""

    host: str
    cpus: int  # that the daemon may use
    load: list[float]  # over 1, 5 and 15 minutes
    cpu_percent: float | None = None  # of all processors, since the previous look
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None  # available to a new process
    disk_bytes: int  # of the disk that holds the state folder
    disk_free_bytes: int
    daemon_cpu_percent: float | None = None  # of one processor, since the previous look
    daemon_memory_bytes: int
    gpus: list[Gpu] = []


class History(Reply):
    """The curve of a metric: means over the seeds, oldest first."""

    metric: str
    steps: list[int]
    values: list[float]


class OverviewInfo(Reply):
    """The service at one glance, as `offrl top --json` shows it."""

    time: float  # of the daemon's clock, seconds since the epoch
    version: str
    state_dir: str
    uptime_s: float
    counts: dict[str, int]  # state -> jobs, of all kinds
    jobs: list[JobInfo]  # running, queued in order of execution, paused, recently ended
    left_off: int = 0  # unfinished jobs beyond the limit
    history: dict[str, History] = {}  # running job -> its curve
    paused: Pause | None = None  # set while the whole queue is paused
    spare: str | None = None  # the warm spare worker: ready or starting; None: no spare worker
    uploads: int = 0  # in progress
    machine: MachineInfo


class Check(Reply):
    """One finding of `offrl doctor`."""

    name: str
    status: Literal["ok", "warn", "fail"]
    message: str
    hint: str = ""  # what to do


class CheckList(Reply):
    time: float  # of the daemon's clock, seconds since the epoch
    checks: list[Check]
    versions: dict[str, str] = {}  # of the packages that the daemon, or its worker, uses


class Setting(Reply):
    """One setting of the daemon as it runs."""

    name: str  # dotted, as in offrld.toml
    value: Any
    default: Any  # None if it depends on the machine
    source: Literal["default", "file", "environment", "command line"]
    type: str
    help: str


class SettingList(Reply):
    file: str  # path of offrld.toml, which need not exist
    settings: list[Setting]
