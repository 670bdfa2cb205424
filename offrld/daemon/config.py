"""The daemon's settings, from `offrld.toml`, the environment and the command line; errors name the setting."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offrl.errors import InvalidInput, NotAllowed, Unknown, nearest
from offrl.explained import explained
from offrld.state.folder import SOCKET_LIMIT, StateFolder, default_state_dir

MOST = 2**63 - 1  # largest number
TEXT = 4096  # most characters of a text
Source = Literal["file", "environment", "command line"]


CardName = Annotated[int, Field(ge=0, le=1023)] | Annotated[str, Field(pattern=r"^([0-9]{1,4}|(GPU|MIG)-[0-9A-Za-z/-]{1,100})$")]


class Slots(BaseModel):
    """How many jobs run at once."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    train: Annotated[
        Annotated[int, Field(ge=0, le=1024)] | Literal["auto"],
        Field(description='concurrent training jobs; 0: start no new ones; "auto": as many as cores, memory and GPUs allow'),
    ] = "auto"
    light: Annotated[int, Field(ge=1, le=1024, description="concurrent imports and exports; they never wait for training")] = 1


class Grace(BaseModel):
    """Seconds that a worker has before it is killed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    cancel_s: Annotated[float, Field(gt=0, le=3600, description="after a cancel")] = 10.0
    pause_s: Annotated[float, Field(gt=0, le=3600, description="after a pause: time for a checkpoint")] = 60.0
    stop_s: Annotated[float, Field(gt=0, le=3600, description="when the service stops: time for a checkpoint")] = 10.0
    hang_s: Annotated[float, Field(gt=0, description="silence after which a worker counts as hung and is killed")] = 600.0
    busy_s: Annotated[float, Field(gt=0, description="the same while the worker reports that it loads or compiles")] = 3600.0


class Workers(BaseModel):
    """Spare workers, and limits of all workers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    spare: Annotated[int, Field(ge=0, le=64, description="workers that have loaded torch and wait for the next training job; 0: none")] = 1
    confine: Annotated[
        bool, Field(description="let the kernel (Landlock) refuse files that a job does not need; false: allow all files of the user")
    ] = True
    import_memory_mb: Annotated[int, Field(ge=0, description="memory of an import or dataset export; 0: no limit")] = 4096
    spare_idle_s: Annotated[float, Field(ge=0, description="end a spare worker after this many idle seconds; 0: never")] = 0.0


class Devices(BaseModel):
    """Cards and CPU threads that train jobs share."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    cards: Annotated[
        Annotated[list[CardName], Field(max_length=256)] | Literal["auto"],
        Field(description='the GPUs, as in CUDA_VISIBLE_DEVICES; "auto": all that nvidia-smi lists; []: none'),
    ] = "auto"
    slots: Annotated[int, Field(ge=1, le=256, description="training jobs per GPU")] = 1
    memory_mb: Annotated[int, Field(ge=0, description="GPU memory available to jobs; 0: as nvidia-smi reports")] = 0
    threads: Annotated[int, Field(ge=0, le=65536, description="CPU threads of all training jobs together; 0: one for each core")] = 0


class Limits(BaseModel):
    """Limits of jobs; an owner is the name of a key, or a user of the local socket. 0: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    unfinished: Annotated[
        int, Field(ge=0, description="unfinished jobs of all owners; above it, only owners with less than an equal share may submit")
    ] = 10_000
    unfinished_per_owner: Annotated[int, Field(ge=0, description="unfinished jobs of one owner")] = 0
    running_per_owner: Annotated[int, Field(ge=0, description="running training jobs of one owner; the others wait")] = 0


class Retry(BaseModel):
    """Retries, from the last checkpoint, of jobs whose worker crashed, hung, was killed or ran out of memory."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    attempts: Annotated[int, Field(ge=1, le=1000, description="attempts in a row, including the first; 1: no retry")] = 3
    first_s: Annotated[float, Field(ge=0, le=86400, description="seconds before the second attempt")] = 20.0
    factor: Annotated[float, Field(ge=1, le=100, description="factor by which each wait is longer than the last")] = 4.0
    max_s: Annotated[float, Field(ge=0, le=604800, description="the longest wait")] = 600.0
    reset_s: Annotated[float, Field(ge=0, description="a crash after this many seconds counts as the first attempt again")] = 3600.0

    def wait_s(self, crashes: int) -> float:
        """Return the seconds to wait after ``crashes`` crashes in a row."""
        wait = self.first_s
        for _ in range(crashes - 1):
            wait *= self.factor
            if wait >= self.max_s:
                break
        return min(wait, self.max_s)


class Keep(BaseModel):
    """Retention of ended jobs; older ones are deleted, but never a pinned job, a job that another needs, or a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    jobs: Annotated[int, Field(ge=0, description="ended jobs kept of each kind and owner; 0: all")] = 0
    days: Annotated[float, Field(ge=0, description="days after its end when a job is deleted; 0: never")] = 0.0
    checkpoints: Annotated[
        int, Field(ge=0, description="evaluation checkpoints kept of each job, besides the last and each seed's best; 0: all")
    ] = 0


class Disk(BaseModel):
    """Size limit of the state folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    quota_bytes: Annotated[
        int, Field(ge=0, description="size above which jobs and uploads are refused, after retention has deleted what it can; 0: no limit")
    ] = 0


class Uploads(BaseModel):
    """Limits of uploads."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    open: Annotated[int, Field(ge=1, le=10_000, description="unfinished uploads at once")] = 64
    open_per_owner: Annotated[
        int, Field(ge=0, description="the same for one owner; one idle for 10 s gives way to its owner's next one; 0: as uploads.open")
    ] = 32
    expire_hours: Annotated[float, Field(gt=0, description="hours after which an idle upload is deleted")] = 24.0
    keep_free_bytes: Annotated[int, Field(ge=0, description="disk space that uploads and jobs must leave free")] = 256 << 20


class Named(BaseModel):
    """Sources of named datasets; "": the environment variable, or else the public source."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    downloads: Annotated[bool, Field(description="download missing files")] = True
    d4rl_dir: Annotated[str, Field(description="folder of D4RL's and d4rl-atari's files; D4RL_DATASET_DIR, ~/.d4rl/datasets")] = ""
    minari_dir: Annotated[str, Field(description="root of Minari's datasets; MINARI_DATASETS_PATH, ~/.minari/datasets")] = ""
    atari_source: Annotated[str, Field(description="Atari replay data: gs://, http, or a copy of the bucket; OFFRL_ATARI_SOURCE")] = ""
    d4rl_source: Annotated[str, Field(description="D4RL's files: an http address or a folder; OFFRL_D4RL_SOURCE")] = ""
    minari_remote: Annotated[str, Field(description="Minari's datasets: hf://NAME, gcp://BUCKET, http, or a folder; MINARI_REMOTE")] = ""

    def environment(self) -> dict[str, str]:
        """Return the environment variables of import workers."""
        values = {
            "D4RL_DATASET_DIR": self.d4rl_dir,
            "MINARI_DATASETS_PATH": self.minari_dir,
            "OFFRL_ATARI_SOURCE": self.atari_source,
            "OFFRL_D4RL_SOURCE": self.d4rl_source,
            "MINARI_REMOTE": self.minari_remote,
            "OFFRL_DOWNLOADS": "" if self.downloads else "0",
        }
        return {name: value for name, value in values.items() if value}


class AuditLog(BaseModel):
    """The audit log, which records every change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    max_bytes: Annotated[int, Field(ge=1024, description="size at which audit.log becomes audit.log.1 and a new file starts")] = 16 << 20
    keep: Annotated[int, Field(ge=1, le=1000, description="older parts kept; the oldest is deleted")] = 8


class Settings(BaseModel):
    """All settings, under the same names as in ``offrld.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    state_dir: Annotated[Path, Field(strict=False, description="folder of queue, datasets, jobs and the socket")]
    bind: Annotated[str, Field(description="address for clients: ipc://PATH, or tcp://HOST:PORT, which accepts registered keys only")]
    insecure: Annotated[bool, Field(description="allow a tcp address without keys; loopback only")] = False
    socket_group: Annotated[str | None, Field(description="group whose members may use the local socket, too")] = None
    local_role: Annotated[
        Literal["reader", "submitter", "operator"],
        Field(description="role of members of socket_group, and of everybody on an insecure address; the service's user may do everything"),
    ] = "operator"
    max_connections: Annotated[int, Field(ge=8, le=60_000, description="connections on one address at once")] = 1024
    input_memory_mb: Annotated[
        int, Field(ge=32, description="memory that unfinished messages and unread replies may fill before all connections are closed")
    ] = 1024
    import_roots: Annotated[
        list[Annotated[Path, Field(strict=False)]], Field(description="folders below which an import may name a path of this machine")
    ] = []
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="least level of the lines on stderr")] = "info"
    log_format: Annotated[Literal["text", "json"], Field(description="format on stderr; with text, systemd's journal gets fields")] = "text"
    metrics_port: Annotated[int, Field(ge=0, le=65535, description="metrics for Prometheus at http://HOST:PORT/metrics; 0: none")] = 0
    metrics_host: Annotated[str, Field(description="address of the metrics, which need no key")] = "127.0.0.1"
    slots: Slots = Slots()
    grace: Grace = Grace()
    limits: Limits = Limits()
    retry: Retry = Retry()
    keep: Keep = Keep()
    disk: Disk = Disk()
    uploads: Uploads = Uploads()
    workers: Workers = Workers()
    devices: Devices = Devices()
    audit: AuditLog = AuditLog()
    named: Named = Named()


@dataclass(frozen=True)
class Sources:
    """Where the settings come from: the file, which need not exist, and the source of each setting (dotted) that is not a default."""

    file: Path = Path()
    of: Mapping[str, Source] = field(default_factory=dict)


def load(state_dir: str | None, bind: str | None, config: str | None, insecure: bool = False) -> Settings:
    """Load the settings. The command line overrides the environment, which overrides the file.

    Raises `InvalidInput`, `Unknown`, `NotAllowed`.
    """
    return load_with_sources(state_dir, bind, config, insecure)[0]


def load_with_sources(state_dir: str | None, bind: str | None, config: str | None, insecure: bool = False) -> tuple[Settings, Sources]:
    """Like `load`; also return where each setting comes from."""
    named = state_dir or os.environ.get("OFFRLD_STATE_DIR")
    file = Path(config) if config else StateFolder(Path(named) if named else default_state_dir()).settings
    values: dict[str, Any] = {}
    try:
        values = tomllib.loads(file.read_text("utf-8-sig"))
    except FileNotFoundError:
        if config:
            raise InvalidInput(f"{file} does not exist", hint="--config names the daemon's settings, offrld.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        # A later check explains a state folder of another user; an existing file is never ignored.
        if config or os.path.exists(file) or not isinstance(error, PermissionError | NotADirectoryError):
            why = (error.strerror if isinstance(error, OSError) else None) or error
            raise InvalidInput(f"{file} cannot be read: {why}", hint="offrld.toml is a text file in UTF-8") from None
    except (ValueError, RecursionError) as error:  # ValueError: also for a number with thousands of digits
        raise InvalidInput(f"{file} is not TOML: {error}", hint="`offrl config --default` prints a complete one") from None
    try:
        of: dict[str, Source] = dict.fromkeys(dotted(values), "file")
        check_values(values, file)
    except RecursionError:
        raise InvalidInput(f"{file}: tables are nested too deeply", hint="`offrl config --default` shows all settings") from None
    if named:
        of["state_dir"] = "command line" if state_dir else "environment"
        values["state_dir"] = named
    values.setdefault("state_dir", str(default_state_dir()))
    check_values({"state_dir": values["state_dir"]}, file)
    if isinstance(values["state_dir"], str):  # absolute, because workers run in other folders
        values["state_dir"] = os.path.realpath(os.path.expanduser(values["state_dir"]))
    if bind:
        of["bind"] = "command line"
        values["bind"] = bind
    if insecure:
        of["insecure"] = "command line"
        values["insecure"] = True
    values.setdefault("bind", f"ipc://{StateFolder(Path(str(values['state_dir']))).socket}")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise _explained(error, file) from None
    for root in settings.import_roots:
        if not root.is_absolute():
            raise InvalidInput(f"import_roots: {str(root)!r} is not an absolute path", hint=f"correct it in {file}")
    check_bind(settings.bind, settings.insecure)
    return settings, Sources(file, of)


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten ``{"slots": {"train": 2}}`` to ``{"slots.train": 2}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def check_values(values: Any, file: Path, name: str = "") -> None:
    """Raise `InvalidInput` for a value that no setting can have: a number too large for the queue, or text that cannot be a name."""
    if isinstance(values, Mapping):
        for inner, value in values.items():
            check_values(value, file, f"{name}.{inner}" if name else str(inner))
        return
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, list | Mapping):
            check_values(value, file, name)
        elif isinstance(value, float) and not math.isfinite(value):
            raise InvalidInput(f"{file}: {name}: {value} is not a finite number", hint="`offrl config --default` shows all settings")
        elif isinstance(value, int | float) and abs(value) > MOST:
            shown = f"{value:.6g}" if abs(value) < 1e300 else "a number with hundreds of digits"  # no float holds it
            raise InvalidInput(f"{file}: {name}: {shown} is too large", hint=f"at most {MOST}")
        elif isinstance(value, str) and (len(value) > TEXT or any(ord(c) < 32 or ord(c) == 127 for c in value)):
            raise InvalidInput(f"{file}: {name}: {value[:80]!r} is too long or holds control characters", hint=f"at most {TEXT} characters")


def tcp_parts(url: str) -> tuple[str, int]:
    """Split ``tcp://HOST:PORT``; the port ``*`` becomes 0, any free port. Raises `InvalidInput`."""
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    if port == "*":
        port = "0"
    if not host or not port.isascii() or not port.isdigit() or int(port[:6]) > 65535 or len(port) > 5 or re.search(r"[\s/;@]", host):
        raise InvalidInput(f"{url!r} is not an address to listen on", hint="tcp://HOST:PORT with a port from 0 (any) to 65535")
    return host.strip("[]"), int(port)


def check_bind(url: str, insecure: bool) -> None:
    """Raise `InvalidInput` for an address that cannot be bound, `NotAllowed` for one that must not be."""
    transport, _, address = url.partition("://")
    if transport == "ipc" and address:
        length = len(os.fsencode(address))
        if length > SOCKET_LIMIT:
            raise InvalidInput(
                f"the socket's path {address} has {length} bytes, the system allows {SOCKET_LIMIT}",
                hint="choose a shorter --state-dir, or --bind ipc:///a/short/path.sock",
            )
        return
    if transport == "tcp" and address:
        host, _port = tcp_parts(url)
        if not insecure:
            return  # keys are required there
        try:
            loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:  # a name or *
            loopback = False
        if not loopback:
            raise NotAllowed(
                f"{url} without keys would accept anybody who reaches it",
                hint="--insecure works on loopback only (tcp://127.0.0.1:PORT); without it clients need keys: `offrl keys new NAME`",
            )
        return
    raise InvalidInput(f"{url!r} is not an address to listen on", hint="ipc:///path/of/a.sock or tcp://HOST:PORT")


def _explained(error: ValidationError, file: Path) -> InvalidInput:
    problem = explained(error)
    model: Any = Settings
    for part in problem.place[:-1]:
        model = model.model_fields[str(part)].annotation if isinstance(model, type) and issubclass(model, BaseModel) else None
    if problem.kind == "extra_forbidden":
        return Unknown(f"{file}: no setting {problem.where!r}", hint=nearest(str(problem.place[-1]), model.model_fields))
    if problem.kind.startswith("model_"):
        name = str(problem.place[-1])
        inside = ", ".join(model.model_fields[name].annotation.model_fields)
        return InvalidInput(f"{file}: [{name}] {problem.what}", hint=f"write [{name}] on a line alone, its settings below: {inside}")
    return InvalidInput(f"{file}: {problem}", hint="`offrl config --default` shows all settings")
