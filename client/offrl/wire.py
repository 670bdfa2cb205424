"""Every request, reply and event between client and daemon as one typed schema; the protocol's version; encode and decode.

A message is one msgpack map of at most `MAX_MESSAGE` bytes. On the socket (client DEALER, daemon ROUTER) a request is the frames
``[id, body]`` and its reply ``[id, body]`` with the same id, so a late reply is never taken for another's. The field ``data`` of a request
may follow as a frame of its own, ``[id, body, data]``, which neither side copies.

    request  {"protocol": 2, "type": "ping", ...fields of the request}
    reply    {"protocol": 2, "ok": true, "result": {...}}   or   {"protocol": 2, "ok": false, "error": {"code", "message", "hint"}}

Requests are strict (an unknown field is an error, "3" and true are no numbers); replies may grow keys, which an older client ignores.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, PlainValidator, TypeAdapter, ValidationError

from offrl import message as messages
from offrl.errors import InvalidMessage, ProtocolMismatch, from_wire, to_wire
from offrl.explained import explained
from offrl.job import JobId, JobSpec, JobState, Name
from offrl_store.errors import OffrlError

PROTOCOL = 2  # 2: data in a frame of its own, settings that 1 did not have
CHUNK = 1 << 20  # bytes of data in one upload or download message
MAX_MESSAGE = CHUNK + (1 << 16)  # larger ones are dropped by the socket
COUNT = 2**63 - 1  # largest number that a file or the queue can hold
LIST_BYTES = MAX_MESSAGE - (1 << 16)  # of the entries of one part of a list; there is room for one of `ENTRY_BYTES` beside them
ENTRY_BYTES = 1 << 15  # of one entry of a list
ERROR_TEXT = 4_000  # characters of an error's message
RelativePath = Annotated[str, Field(min_length=1, max_length=1024)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _chunk(value: Any) -> bytes | memoryview:
    if not isinstance(value, bytes | memoryview):
        raise ValueError("must be bytes")
    if len(value) > CHUNK:
        raise ValueError(f"must be at most {CHUNK} bytes")
    return value


Chunk = Annotated[Any, PlainValidator(_chunk)]  # bytes or a memoryview of bytes, at most `CHUNK`


# ---------------------------------------------------------------------------------------------------------------- replies
class Reply(BaseModel):
    """What a request is answered with; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Done(Reply):
    """The effect is durable; nothing more to say."""


class Pong(Reply):
    version: str
    protocol: int
    state_dir: str
    uptime_s: float
    caller: str = ""  # whom the daemon takes the client for, and what that one may do
    role: str = ""


class AlgorithmList(Reply):
    algorithms: list[dict[str, Any]]  # name, summary, actions, paper, presets, config: {field: {type, default, help, ...}}
    problems: list[str] = []  # "name: what is wrong" of what installed packages give


class AuditEntries(Reply):
    """A part of the audit log, oldest first: {n, time, caller, role, address, action, ..., outcome}."""

    entries: list[dict[str, Any]]
    more: bool  # ask again after the last ``n``


class Submitted(Reply):
    job: str
    created: bool = True  # False: the key named a job that was there already


class JobInfo(Reply):
    """One job as `offrl status --json` shows it. Keys may be added, never renamed."""

    job: str
    kind: str
    state: JobState
    reason: str = ""  # why it failed, was cancelled or waits
    error: dict[str, str] | None = None  # {code, message, hint} of a failed job, or of the crash after which it waits to go on
    algorithm: str | None = None
    dataset: str | None = None
    snapshot: str | None = None  # of the dataset, which the job has pinned
    steps: int = 0  # updates asked for (import jobs: episodes, 0 when unknown)
    step: int = 0  # updates done
    updates_per_second: float | None = None
    eta_s: float | None = None
    metrics: dict[str, dict[str, float]] = {}  # name -> {seed -> latest value}
    seeds: list[int] = []
    priority: int = 0
    after: list[str] = []
    attempt: int = 0
    start_at: float | None = None  # not before this time, as asked for (seconds since the epoch, as all times)
    retry_at: float | None = None  # after a crash: when the next attempt may start
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    owner: str | None = None  # name of the key that submitted it, or "local"
    pinned: bool = False  # retention passes over it
    rerun_of: str | None = None  # the job that it repeats
    spec: dict[str, Any] = {}

    def __repr_args__(self) -> Any:
        """What tells something: neither defaults nor the specification, whose main values stand beside it."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name != "spec" and (field.is_required() or value != field.default):
                yield name, value.value if isinstance(value, JobState) else value


class Pause(Reply):
    """The whole queue is paused: nothing new starts."""

    by: str  # name of the key, or "local"
    at: float  # since when, seconds since the epoch
    reason: str = ""


class QueueInfo(Reply):
    """The queue as `offrl queue status --json` shows it."""

    paused: Pause | None = None
    counts: dict[str, int]  # queued, running and paused jobs of all kinds
    owners: dict[str, dict[str, int]]  # the same by owner; "": of before jobs had owners
    next_start: float | None = None  # when the next job that waits for a time may start
    limits: dict[str, int]  # setting -> jobs, 0: any number
    next: str | None = None  # the owners come in parts: ask again with this ``after``; None: that was the last


class JobList(Reply):
    jobs: list[JobInfo]  # in order of submission, without their specs (`GetJob` has it)
    left_off: int = 0  # older ones that did not fit into the limit or into one message
    before: int | None = None  # where older jobs are left: ask again with this ``before``; None: that was the last part


class Encoded(Reply):
    """A reply whose message is made already: the same one goes to many, or most of it is as it was before."""

    body: bytes


class Event(Reply):
    """One numbered event of a job. ``n`` counts from 1 without gaps; a follower asks for those after its cursor."""

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
    cursor: int  # give this to the next request
    ended: bool  # the job has ended and no event after `cursor` exists


class LogPart(Reply):
    data: bytes
    offset: int  # where the next part begins
    ended: bool


MAX_SKIPPED = 200  # episodes left out that a dataset's information names


class SkippedEpisode(BaseModel):
    """An episode that an import left out."""

    episode: int  # its place in the source, from 0
    row: int | None = None  # of the source's array, or of the episode
    why: str


class DatasetInfo(Reply):
    """One dataset as `offrl datasets show --json` shows it."""

    name: str
    episodes: int
    transitions: int  # steps but for the last ones of cut episodes whose next observation is missing
    steps: int | None = None  # None: of before they were counted
    bytes: int
    fields: dict[str, Any]
    snapshot: str
    returns: dict[str, float]  # mean, std, min, max
    metadata: dict[str, Any] = {}
    pinned_by: list[str] = []
    skipped: list[SkippedEpisode] = []  # of the last import with --skip-bad: the first `MAX_SKIPPED` left out
    skipped_episodes: int = 0  # how many were left out
    owner: str | None = None  # who added it; None: of before datasets had owners, an operator's
    trimmed: list[str] = []  # keys of which only a part is here: an entry of a list, and a message, have a size


class DatasetList(Reply):
    datasets: list[DatasetInfo]
    next: str | None = None  # ask again with this ``after``; None: that was the last part


class UploadInfo(Reply):
    """One upload as `offrl uploads ls --json` shows it."""

    upload: str
    owner: str | None  # who began it; None: of a daemon of before
    files: int
    size: int  # bytes in all
    bytes: int  # that have arrived
    finished: bool  # whole, and not imported yet
    age_s: float  # since anybody went on with it
    job: str | None = None  # the unfinished job that reads it


class UploadList(Reply):
    uploads: list[UploadInfo]  # those that nobody went on with for longest first
    next: str | None = None  # ask again with this ``after``; None: that was the last part


class UploadOpened(Reply):
    upload: str
    received: dict[str, int]  # path -> bytes already there, for going on after a broken connection


class Received(Reply):
    received: int  # bytes of that file that the daemon has kept; `FinishUpload` makes them durable


class Artifact(Reply):
    """A file that a job made; its bytes follow with `ReadArtifact`."""

    job: str  # the job that holds it (an export job, where one had to be started)
    ready: bool  # False: wait for that job, then ask again
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
    jobs: list[PrunedJob]  # those that ended first come first
    more: bool  # ask again


class BackupBegun(Reply):
    """The state is frozen: ask for its files, the list of them first, then end it."""

    backup: str
    list: str  # of its files, a line of JSON with path and size for each
    list_size: int
    files: int
    bytes: int
    version: str  # of offrld
    schema_version: int  # of the queue
    time: float
    state_dir: str
    keys: bool  # whether the daemon's keys are among them


class Gpu(Reply):
    """One card; what it does not tell is None."""

    index: int
    name: str
    percent: float | None = None  # of the time in which it did something
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class MachineInfo(Reply):
    """The machine that the daemon runs on; what the system does not tell is None."""

    host: str
    cpus: int  # that the daemon may use
    load: list[float]  # over 1, 5 and 15 minutes
    cpu_percent: float | None = None  # of all processors, since the look before
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None  # that a process could get
    disk_bytes: int  # of the disk that holds the state folder
    disk_free_bytes: int
    daemon_cpu_percent: float | None = None  # of one processor, since the look before
    daemon_memory_bytes: int
    gpus: list[Gpu] = []


class History(Reply):
    """The curve of a metric, the mean over the seeds, oldest value first."""

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
    jobs: list[JobInfo]  # running, queued in the order in which they will run, paused, the last that ended
    left_off: int = 0  # unfinished jobs that did not fit into the limit
    history: dict[str, History] = {}  # running job -> its curve
    paused: Pause | None = None  # the whole queue is
    spare: str | None = None  # the worker that is kept warm: ready, starting; None: there is none
    uploads: int = 0  # under way
    machine: MachineInfo


class Check(Reply):
    """One thing that `offrl doctor` looked at."""

    name: str
    status: Literal["ok", "warn", "fail"]
    message: str
    hint: str = ""  # what to do


class CheckList(Reply):
    time: float  # of the daemon's clock, seconds since the epoch
    checks: list[Check]
    versions: dict[str, str] = {}  # of what the daemon, or its worker, uses


class Setting(Reply):
    """One setting of the daemon as it runs."""

    name: str  # dotted, as in offrld.toml
    value: Any
    default: Any  # None where it depends on the machine
    source: Literal["default", "file", "environment", "command line"]
    type: str
    help: str


class SettingList(Reply):
    file: str  # where offrld.toml is looked for
    settings: list[Setting]


# --------------------------------------------------------------------------------------------------------------- requests
class Request(BaseModel):
    """Base of all requests; ``reply`` is the model of the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    reply: ClassVar[type[Reply]] = Done
    later: ClassVar[tuple[str, ...]] = ()  # fields that came after the request: an older daemon is not sent one that is None


class Ping(Request):
    reply = Pong
    type: Literal["ping"] = "ping"


class Algorithms(Request):
    reply = AlgorithmList
    type: Literal["algorithms"] = "algorithms"


class ReadAudit(Request):
    """The audit log from the time ``since`` (seconds since the epoch) on, behind number ``after``."""

    reply = AuditEntries
    type: Literal["read_audit"] = "read_audit"
    since: Annotated[float, Field(ge=0.0)] = 0.0
    after: Annotated[int, Field(ge=0, le=COUNT)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 1000


class Submit(Request):
    reply = Submitted
    type: Literal["submit"] = "submit"
    spec: JobSpec
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    after: Annotated[list[JobId], Field(max_length=100)] = []
    key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    start_at: Annotated[float, Field(ge=0.0, le=1e11)] | None = None  # not before that time, seconds since the epoch
    start_in_s: Annotated[float, Field(ge=0.0, le=1e9)] | None = None  # or not before so long, by the daemon's clock


class Rerun(Request):
    """Repeat a train or train-online job: its settings as they were, its seeds, its dataset's snapshot, what it took from other jobs."""

    reply = Submitted
    type: Literal["rerun"] = "rerun"
    job: JobId
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    after: Annotated[list[JobId], Field(max_length=100)] = []
    key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    start_at: Annotated[float, Field(ge=0.0, le=1e11)] | None = None
    start_in_s: Annotated[float, Field(ge=0.0, le=1e9)] | None = None
    into: Name | None = None  # the new dataset of what a train-online job gathers


class ListJobs(Request):
    reply = JobList
    type: Literal["list_jobs"] = "list_jobs"
    kind: Literal["train", "import", "export", "dataset_export", "collect", "train_online", "all"] | None = None  # None: all but imports
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000
    before: Annotated[int, Field(ge=0, le=COUNT)] | None = None  # older ones than in the part before
    later: ClassVar = ("before",)


class GetJob(Request):
    reply = JobInfo
    type: Literal["get_job"] = "get_job"
    job: JobId


class GetEvents(Request):
    """Events after ``cursor``; waits up to ``wait_s`` for the first one."""

    reply = Events
    type: Literal["get_events"] = "get_events"
    job: JobId
    cursor: Annotated[int, Field(ge=0, le=COUNT)] = 0
    wait_s: Annotated[float, Field(ge=0.0, le=30.0)] = 0.0
    limit: Annotated[int, Field(ge=1, le=1000)] = 500


class ReadLog(Request):
    reply = LogPart
    type: Literal["read_log"] = "read_log"
    job: JobId
    offset: Annotated[int, Field(ge=0, le=COUNT)] = 0
    wait_s: Annotated[float, Field(ge=0.0, le=30.0)] = 0.0


class ControlJob(Request):
    """Cancel, pause, resume, retry, start, pin, unpin or remove a job. Answered when the effect is durable; `pause` and `cancel` of a
    running job are answered when they are recorded, and the job's events tell when its worker has ended."""

    reply = JobInfo
    type: Literal["control_job"] = "control_job"
    job: JobId
    action: Literal["cancel", "pause", "resume", "retry", "start", "pin", "unpin", "remove"]
    steps: Annotated[int, Field(ge=1, le=10**12)] | None = None  # of resume: the job's new number of updates in all


class GetQueue(Request):
    reply = QueueInfo
    type: Literal["get_queue"] = "get_queue"
    after: Annotated[str, Field(max_length=200)] | None = None  # owners behind the last one of the part before
    later: ClassVar = ("after",)


class ControlQueue(Request):
    """Pause or resume the whole queue: running jobs go on, nothing new starts but what `ControlJob` tells to start."""

    reply = QueueInfo
    type: Literal["control_queue"] = "control_queue"
    action: Literal["pause", "resume"]
    reason: Annotated[str, Field(max_length=500)] = ""


class ListDatasets(Request):
    """All datasets by name; each without what does not fit into an entry of a list (`GetDataset` has it)."""

    reply = DatasetList
    type: Literal["list_datasets"] = "list_datasets"
    after: Name | None = None  # those behind the last one of the part before
    later: ClassVar = ("after",)


class GetDataset(Request):
    reply = DatasetInfo
    type: Literal["get_dataset"] = "get_dataset"
    name: Name


class RemoveDataset(Request):
    type: Literal["remove_dataset"] = "remove_dataset"
    name: Name


class FileEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    path: RelativePath  # relative, "/" between parts, no ".." and no leading "/"
    size: Annotated[int, Field(ge=0, le=COUNT)]
    sha256: Sha256


class OpenUpload(Request):
    """Begin an upload of one or many files, or go on with one that has the same id."""

    reply = UploadOpened
    type: Literal["open_upload"] = "open_upload"
    upload: JobId  # chosen by the client (a random id), so that it can resume
    files: Annotated[list[FileEntry], Field(min_length=1, max_length=5_000), FailFast()]


class WriteChunk(Request):
    reply = Received
    type: Literal["write_chunk"] = "write_chunk"
    upload: JobId
    path: RelativePath
    offset: Annotated[int, Field(ge=0, le=COUNT)]
    data: Chunk
    crc32: Annotated[int, Field(ge=0, lt=2**32)]


class FinishUpload(Request):
    """Check sizes and SHA-256 of all files; from here on an import job may use the upload."""

    type: Literal["finish_upload"] = "finish_upload"
    upload: JobId


class ListUploads(Request):
    """The uploads of the caller, of everybody where it is an operator."""

    reply = UploadList
    type: Literal["list_uploads"] = "list_uploads"
    after: JobId | None = None


class RemoveUpload(Request):
    """Delete an upload, of the caller's own or by an operator. Refused while an unfinished job reads it."""

    type: Literal["remove_upload"] = "remove_upload"
    upload: JobId


class OpenArtifact(Request):
    """Find (or have made) a file of a job. ``best`` takes the step with the highest mean return of the evaluations."""

    reply = Artifact
    type: Literal["open_artifact"] = "open_artifact"
    job: JobId
    kind: Literal["onnx", "torchscript", "checkpoint", "metrics", "dataset"] = "onnx"
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    best: bool = False
    step: Annotated[int, Field(ge=0, le=COUNT)] | None = None


class ReadArtifact(Request):
    reply = Data
    type: Literal["read_artifact"] = "read_artifact"
    job: JobId
    path: RelativePath
    offset: Annotated[int, Field(ge=0, le=COUNT)]
    size: Annotated[int, Field(ge=1, le=CHUNK)]


class Overview(Request):
    """The service at one glance: one read of the queue, for a display that asks again and again."""

    reply = OverviewInfo
    type: Literal["overview"] = "overview"
    limit: Annotated[int, Field(ge=1, le=500)] = 50  # jobs
    metric: Annotated[str, Field(min_length=1, max_length=100)] | None = None  # None: each job's most telling one
    points: Annotated[int, Field(ge=1, le=500)] = 60  # of a curve


class Checkup(Request):
    """Let the daemon look at itself, or (``devices``) have a worker load torch and compute on every device."""

    reply = CheckList
    type: Literal["checkup"] = "checkup"
    part: Literal["service", "devices"] = "service"


class Prune(Request):
    """Delete, or only list, the ended jobs that are not kept: by the settings' numbers, or by these; 0: any number, for ever."""

    reply = Pruned
    type: Literal["prune"] = "prune"
    jobs: Annotated[int, Field(ge=0, le=COUNT)] | None = None
    days: Annotated[float, Field(ge=0.0)] | None = None
    dry_run: bool = False


class BeginBackup(Request):
    """Freeze a consistent set of queue, datasets and jobs to be copied; ``keys``: those of the daemon as well."""

    reply = BackupBegun
    type: Literal["begin_backup"] = "begin_backup"
    keys: bool = False


class ReadBackup(Request):
    reply = Data
    type: Literal["read_backup"] = "read_backup"
    backup: JobId
    path: RelativePath
    offset: Annotated[int, Field(ge=0, le=COUNT)]
    size: Annotated[int, Field(ge=1, le=CHUNK)]


class EndBackup(Request):
    type: Literal["end_backup"] = "end_backup"
    backup: JobId


class GetSettings(Request):
    reply = SettingList
    type: Literal["get_settings"] = "get_settings"


AnyRequest = Annotated[
    Ping
    | Algorithms
    | ReadAudit
    | Submit
    | Rerun
    | ListJobs
    | GetJob
    | GetEvents
    | ReadLog
    | ControlJob
    | GetQueue
    | ControlQueue
    | ListDatasets
    | GetDataset
    | RemoveDataset
    | OpenUpload
    | WriteChunk
    | FinishUpload
    | ListUploads
    | RemoveUpload
    | OpenArtifact
    | ReadArtifact
    | Overview
    | Checkup
    | Prune
    | BeginBackup
    | ReadBackup
    | EndBackup
    | GetSettings,
    Field(discriminator="type"),
]
_REQUEST = TypeAdapter(AnyRequest)


# ------------------------------------------------------------------------------------------------------- encode and decode
def encode_request(request: Request) -> bytes:
    """The bytes of a request."""
    return messages.pack({"protocol": PROTOCOL, **request.model_dump(exclude=_unsaid(request))})


def encode_frames(request: Request) -> list[bytes | memoryview]:
    """The same as ``[body]``, or ``[body, data]`` where the request has data."""
    if (data := getattr(request, "data", None)) is None:
        return [encode_request(request)]
    return [messages.pack({"protocol": PROTOCOL, **request.model_dump(exclude={"data"})}), data]


def _unsaid(request: Request) -> set[str]:
    return {name for name in request.later if getattr(request, name) is None}


def decode_request(body: bytes, data: bytes | memoryview | None = None) -> Request:
    """The request in ``body``, with the field ``data`` from a frame of its own; `ProtocolMismatch` for another version, `InvalidMessage`
    naming the field for anything else wrong."""
    message = messages.unpack_request(body)
    version = message.pop("protocol", None)
    if type(version) is not int or version != PROTOCOL:
        raise ProtocolMismatch(
            f"the client speaks protocol {messages.shown(version)}, this daemon {PROTOCOL}", hint=_older(version, "client", "daemon")
        )
    if data is not None:
        if "data" in message:
            raise InvalidMessage("the data came twice: in the message and in a frame of its own")
        message["data"] = data
    try:
        return _REQUEST.validate_python(message, strict=True)
    except ValidationError as error:
        raise invalid_message(error) from None


_SAME = "install the same version of offrl on both sides, and see that OFFRL_URL names an offrld"


def _older(version: Any, other: str, this: str) -> str:
    """What to do where the other side speaks ``version``."""
    if type(version) is not int:
        return _SAME
    return f"install the same version of offrl on both sides: the {other if version < PROTOCOL else this}'s is the older one"


def encode_reply(reply: Reply) -> bytes:
    """The bytes of a good reply."""
    if isinstance(reply, Encoded):
        return reply.body
    return messages.pack_reply({"protocol": PROTOCOL, "ok": True, "result": reply.model_dump()})


def encoded_job(job: JobInfo) -> bytes:
    """A job as `encoded_list` puts it into a list."""
    return messages.pack_reply(job.model_dump())


def encoded_list(name: str, entries: list[bytes], **others: Any) -> Encoded:
    """A good reply whose last field ``name`` is a list of entries that are packed already."""
    return Encoded(body=messages.pack_around({"protocol": PROTOCOL, "ok": True, "result": {**others, name: []}}, entries))


def encode_error(error: OffrlError) -> bytes:
    """The bytes of an error reply."""
    told = {name: value if len(value) <= ERROR_TEXT else value[:ERROR_TEXT] + "..." for name, value in to_wire(error).items()}
    return messages.pack_reply({"protocol": PROTOCOL, "ok": False, "error": told})


def decode_reply(body: bytes, model: type[Reply]) -> Reply:
    """The reply in ``body`` as ``model``; raises the error that it carries."""
    try:
        message = messages.unpack(body)
    except InvalidMessage as error:
        raise ProtocolMismatch(f"what the daemon answers cannot be read: {error.message}", hint=_SAME) from None
    if (version := message.get("protocol")) != PROTOCOL:
        raise ProtocolMismatch(
            f"the daemon speaks protocol {messages.shown(version)}, this client {PROTOCOL}", hint=_older(version, "daemon", "client")
        )
    if message.get("ok") is not True:
        error = message.get("error") or {}
        raise from_wire(str(error.get("code", "internal")), str(error.get("message", "no message")), str(error.get("hint", "")))
    try:
        return model.model_validate(message.get("result"))
    except ValidationError as error:
        raise ProtocolMismatch(f"the daemon's answer does not fit: {invalid_message(error).message}", hint=_SAME) from None


def invalid_message(error: ValidationError) -> InvalidMessage:
    """One line for the first thing that is wrong: the field, the value, what was expected."""
    return InvalidMessage(str(explained(error)))
