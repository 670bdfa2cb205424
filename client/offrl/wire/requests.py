"""Every request, with what both sides need to know about it as class attributes: the least role, how the audit log treats it, whether the
client may send it again after a broken connection, and, as its type argument, its reply."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, FailFast, Field, PlainValidator

from offrl.job import JobId, JobKind, JobSpec, Name
from offrl.wire.replies import (
    AlgorithmList,
    Artifact,
    AuditEntries,
    BackupBegun,
    CheckList,
    Data,
    DatasetInfo,
    DatasetList,
    Done,
    Events,
    JobInfo,
    JobList,
    LogPart,
    OverviewInfo,
    Pong,
    Pruned,
    QueueInfo,
    Received,
    Reply,
    SettingList,
    Submitted,
    UploadList,
    UploadOpened,
)  # fmt: skip

CHUNK = 1 << 20  # bytes of data in one upload or download message
COUNT = 2**63 - 1  # largest number that a file or the queue can hold
RelativePath = Annotated[str, Field(min_length=1, max_length=1024)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Role = Literal["reader", "submitter", "operator"]


def _chunk(value: Any) -> bytes | memoryview:
    if not isinstance(value, bytes | memoryview):
        raise ValueError("must be bytes")
    if len(value) > CHUNK:
        raise ValueError(f"must be at most {CHUNK} bytes")
    return value


Chunk = Annotated[Any, PlainValidator(_chunk)]  # bytes or a memoryview of bytes, at most `CHUNK`
ReplyT = TypeVar("ReplyT", bound=Reply)


class Request(BaseModel, Generic[ReplyT]):
    """Base of all requests: ``class Submit(Request[Submitted])`` is answered with a `Submitted`.

    A subclass states its ``role``, and the other attributes if they differ from the defaults here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    reply: ClassVar[type[Reply]] = Done  # the type argument
    role: ClassVar[Role | None] = None  # least role that may send it; None: nobody may
    act: ClassVar[str] = ""  # the request in a refusal, "NAME may not ACT"; by default its type
    audited: ClassVar[bool] = True  # it changes something, so the audit log gets an entry; see `changes`
    audit_names: ClassVar[Mapping[str, str]] = {}  # field -> key in the entry, beside those that every entry has
    repeat: ClassVar[Literal["always", "with key", "never"]] = "always"  # may the client send it again after a broken connection
    later: ClassVar[tuple[str, ...]] = ()  # fields younger than the request: left out if None, so that an older daemon accepts it

    type: str

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for base in cls.__mro__:
            if arguments := base.__pydantic_generic_metadata__["args"] if issubclass(base, Request) else ():
                cls.reply = arguments[0]
                return

    def changes(self, reply: Reply | None = None) -> bool:
        """Whether this request, answered with ``reply``, belongs in the audit log."""
        return self.audited

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice has the effect of sending it once."""
        return self.repeat == "always" or (self.repeat == "with key" and getattr(self, "key", None) is not None)


def reply_type(request: Request[ReplyT]) -> type[ReplyT]:
    """Return the model of the reply to ``request``."""
    return cast("type[ReplyT]", request.reply)


class Ping(Request[Pong]):
    role = "reader"
    audited = False

    type: Literal["ping"] = "ping"


class Algorithms(Request[AlgorithmList]):
    role = "reader"
    audited = False

    type: Literal["algorithms"] = "algorithms"


class ReadAudit(Request[AuditEntries]):
    """Read the audit log: entries since the time ``since`` (seconds since the epoch) with numbers above ``after``."""

    role = "operator"
    act = "read the audit log"
    audited = False

    type: Literal["read_audit"] = "read_audit"
    since: Annotated[float, Field(ge=0.0)] = 0.0
    after: Annotated[int, Field(ge=0, le=COUNT)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 1000


class Submit(Request[Submitted]):
    role = "submitter"  # train, collect, import (new or appending), export of a dataset
    repeat = "with key"
    audit_names = {"start_at": "start_at", "start_in_s": "start_in_s"}

    type: Literal["submit"] = "submit"
    spec: JobSpec
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    after: Annotated[list[JobId], Field(max_length=100)] = []
    key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    start_at: Annotated[float, Field(ge=0.0, le=1e11)] | None = None  # earliest start, seconds since the epoch
    start_in_s: Annotated[float, Field(ge=0.0, le=1e9)] | None = None  # the same as a delay, by the daemon's clock


class Rerun(Request[Submitted]):
    """Repeat a train or train-online job: same settings, seeds and snapshot of the dataset, same checkpoints inherited from other jobs."""

    role = "submitter"  # of any job: the original does not change
    act = "rerun jobs"
    repeat = "with key"
    audit_names = {"job": "rerun_of", "start_at": "start_at", "start_in_s": "start_in_s"}

    type: Literal["rerun"] = "rerun"
    job: JobId
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    after: Annotated[list[JobId], Field(max_length=100)] = []
    key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    start_at: Annotated[float, Field(ge=0.0, le=1e11)] | None = None
    start_in_s: Annotated[float, Field(ge=0.0, le=1e9)] | None = None
    into: Name | None = None  # new dataset for the steps of a train-online job


class ListJobs(Request[JobList]):
    role = "reader"
    audited = False
    later = ("before",)

    type: Literal["list_jobs"] = "list_jobs"
    kind: JobKind | Literal["all"] | None = None  # None: all but imports
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000
    before: Annotated[int, Field(ge=0, le=COUNT)] | None = None  # where the previous part ended: older jobs follow


class GetJob(Request[JobInfo]):
    role = "reader"
    audited = False

    type: Literal["get_job"] = "get_job"
    job: JobId


class GetEvents(Request[Events]):
    """Get the events after ``cursor``; wait up to ``wait_s`` for the first one."""

    role = "reader"
    audited = False

    type: Literal["get_events"] = "get_events"
    job: JobId
    cursor: Annotated[int, Field(ge=0, le=COUNT)] = 0
    wait_s: Annotated[float, Field(ge=0.0, le=30.0)] = 0.0
    limit: Annotated[int, Field(ge=1, le=1000)] = 500


class ReadLog(Request[LogPart]):
    role = "reader"
    audited = False

    type: Literal["read_log"] = "read_log"
    job: JobId
    offset: Annotated[int, Field(ge=0, le=COUNT)] = 0
    wait_s: Annotated[float, Field(ge=0.0, le=30.0)] = 0.0


class ControlJob(Request[JobInfo]):
    """Cancel, pause, resume, retry, start, pin, unpin or remove a job.

    The reply follows when the change is durable. `pause` and `cancel` of a running job are answered once they are recorded; the job's
    events show when its worker has ended.
    """

    role = "submitter"  # of its own: `offrld.daemon.access.roles.check_owner`
    repeat = "never"
    audit_names = {"action": "control"}

    type: Literal["control_job"] = "control_job"
    job: JobId
    action: Literal["cancel", "pause", "resume", "retry", "start", "pin", "unpin", "remove"]
    steps: Annotated[int, Field(ge=1, le=10**12)] | None = None  # of resume: the job's new total number of updates


class GetQueue(Request[QueueInfo]):
    role = "reader"
    audited = False
    later = ("after",)

    type: Literal["get_queue"] = "get_queue"
    after: Annotated[str, Field(max_length=200)] | None = None  # last owner of the previous part


class ControlQueue(Request[QueueInfo]):
    """Pause or resume the whole queue. While it is paused, running jobs go on and only an explicit `ControlJob` start begins a new one."""

    role = "operator"
    audit_names = {"action": "control", "reason": "reason"}

    type: Literal["control_queue"] = "control_queue"
    action: Literal["pause", "resume"]
    reason: Annotated[str, Field(max_length=500)] = ""


class ListDatasets(Request[DatasetList]):
    """List all datasets by name, each shortened to the size of a list entry (`GetDataset` returns it whole)."""

    role = "reader"
    audited = False
    later = ("after",)

    type: Literal["list_datasets"] = "list_datasets"
    after: Name | None = None  # last name of the previous part


class GetDataset(Request[DatasetInfo]):
    role = "reader"
    audited = False

    type: Literal["get_dataset"] = "get_dataset"
    name: Name


class RemoveDataset(Request[Done]):
    role = "submitter"  # of its own: `offrld.daemon.access.roles.check_dataset`
    act = "remove datasets"
    repeat = "never"
    audit_names = {"name": "dataset"}

    type: Literal["remove_dataset"] = "remove_dataset"
    name: Name


class FileEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    path: RelativePath  # "/" between parts, no ".." and no leading "/"
    size: Annotated[int, Field(ge=0, le=COUNT)]
    sha256: Sha256


class OpenUpload(Request[UploadOpened]):
    """Open an upload of one or more files, or resume the one with the same id."""

    role = "submitter"
    act = "upload datasets"

    type: Literal["open_upload"] = "open_upload"
    upload: JobId  # a random id chosen by the client, so that it can resume
    files: Annotated[list[FileEntry], Field(min_length=1, max_length=5_000), FailFast()]


class WriteChunk(Request[Received]):
    role = "submitter"
    act = "upload datasets"
    audited = False  # the audit log notes the upload when it is opened and when it is finished

    type: Literal["write_chunk"] = "write_chunk"
    upload: JobId
    path: RelativePath
    offset: Annotated[int, Field(ge=0, le=COUNT)]
    data: Chunk
    crc32: Annotated[int, Field(ge=0, lt=2**32)]


class FinishUpload(Request[Done]):
    """Check sizes and SHA-256 of all files and make them durable; import jobs may then use the upload."""

    role = "submitter"
    act = "upload datasets"

    type: Literal["finish_upload"] = "finish_upload"
    upload: JobId


class ListUploads(Request[UploadList]):
    """List the caller's uploads; an operator sees everybody's."""

    role = "submitter"  # of its own
    act = "list uploads"
    audited = False

    type: Literal["list_uploads"] = "list_uploads"
    after: JobId | None = None


class RemoveUpload(Request[Done]):
    """Delete an upload. Refused while an unfinished job reads it."""

    role = "submitter"  # of its own
    act = "remove uploads"

    type: Literal["remove_upload"] = "remove_upload"
    upload: JobId


class OpenArtifact(Request[Artifact]):
    """Find a file of a job, or start the export that makes it. ``best`` selects the step with the highest mean return in evaluations."""

    role = "reader"  # it may start an export job, in the lane of short jobs

    type: Literal["open_artifact"] = "open_artifact"
    job: JobId
    kind: Literal["onnx", "torchscript", "checkpoint", "metrics", "dataset"] = "onnx"
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    best: bool = False
    step: Annotated[int, Field(ge=0, le=COUNT)] | None = None

    def changes(self, reply: Reply | None = None) -> bool:
        """Only if the file has to be made first."""
        return isinstance(reply, Artifact) and not reply.ready


class ReadArtifact(Request[Data]):
    role = "reader"
    audited = False

    type: Literal["read_artifact"] = "read_artifact"
    job: JobId
    path: RelativePath
    offset: Annotated[int, Field(ge=0, le=COUNT)]
    size: Annotated[int, Field(ge=1, le=CHUNK)]


class Overview(Request[OverviewInfo]):
    """Get the service at a glance, with one read of the queue: for displays that refresh."""

    role = "reader"
    audited = False

    type: Literal["overview"] = "overview"
    limit: Annotated[int, Field(ge=1, le=500)] = 50  # jobs
    metric: Annotated[str, Field(min_length=1, max_length=100)] | None = None  # None: the main metric of each job
    points: Annotated[int, Field(ge=1, le=500)] = 60  # of a curve


class Checkup(Request[CheckList]):
    """Have the daemon check itself, or (``devices``) have a worker load torch and compute on every device."""

    role = "submitter"  # it writes to the disk, and may start a process
    act = "run `offrl doctor`"
    audited = False

    type: Literal["checkup"] = "checkup"
    part: Literal["service", "devices"] = "service"


class Prune(Request[Pruned]):
    """Delete, or only list, the ended jobs that exceed the limits of the settings, or these limits; 0: unlimited."""

    role = "operator"  # a dry run as well: it lists everybody's jobs and their sizes
    act = "prune jobs"
    audit_names = {"jobs": "keep_jobs", "days": "keep_days"}

    type: Literal["prune"] = "prune"
    jobs: Annotated[int, Field(ge=0, le=COUNT)] | None = None
    days: Annotated[float, Field(ge=0.0)] | None = None
    dry_run: bool = False

    def changes(self, reply: Reply | None = None) -> bool:
        """Only if it deletes something."""
        return not self.dry_run


class BeginBackup(Request[BackupBegun]):
    """Freeze a consistent copy of queue, datasets and jobs; ``keys``: include the daemon's keys."""

    role = "operator"  # with keys only over the socket of the service's own user
    act = "back up the state"
    audit_names = {"keys": "keys"}

    type: Literal["begin_backup"] = "begin_backup"
    keys: bool = False


class ReadBackup(Request[Data]):
    role = "operator"
    act = "back up the state"
    audited = False

    type: Literal["read_backup"] = "read_backup"
    backup: JobId
    path: RelativePath
    offset: Annotated[int, Field(ge=0, le=COUNT)]
    size: Annotated[int, Field(ge=1, le=CHUNK)]


class EndBackup(Request[Done]):
    role = "operator"
    act = "back up the state"
    audited = False

    type: Literal["end_backup"] = "end_backup"
    backup: JobId


class GetSettings(Request[SettingList]):
    role = "reader"
    audited = False

    type: Literal["get_settings"] = "get_settings"


REQUESTS: tuple[type[Request[Any]], ...] = tuple(
    kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Request) and not kind.model_fields["type"].is_required()
)
AnyRequest: Any = Annotated[functools.reduce(operator.or_, REQUESTS), Field(discriminator="type")]
