"""The daemon's settings: `offrld.toml`, the environment and the command line, checked, with an error that names the setting."""

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

MOST = 2**63 - 1  # of any number
TEXT = 4096  # characters of any text
Source = Literal["file", "environment", "command line"]


CardName = Annotated[int, Field(ge=0, le=1023)] | Annotated[str, Field(pattern=r"^([0-9]{1,4}|(GPU|MIG)-[0-9A-Za-z/-]{1,100})$")]


class Slots(BaseModel):
    """How many jobs run at once."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    train: Annotated[
        Annotated[int, Field(ge=0, le=1024)] | Literal["auto"],
        Field(description='train jobs at once; 0 stops starting new ones; "auto": all that cores, memory and cards have room for'),
    ] = "auto"
    light: Annotated[int, Field(ge=1, le=1024, description="import and export jobs at once, in a lane of their own")] = 1


class Grace(BaseModel):
    """Seconds that a worker has before it is killed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    cancel_s: Annotated[float, Field(gt=0, le=3600, description="after a cancel")] = 10.0
    pause_s: Annotated[float, Field(gt=0, le=3600, description="after a pause: time for a checkpoint")] = 60.0
    stop_s: Annotated[float, Field(gt=0, le=3600, description="when the service stops: time for a checkpoint")] = 10.0
    hang_s: Annotated[float, Field(gt=0, description="silence after which a worker is taken for hung and killed")] = 600.0
    busy_s: Annotated[float, Field(gt=0, description="the same while it loads or compiles, as it has announced")] = 3600.0


class Workers(BaseModel):
    """Workers that are started before there is a job for them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    spare: Annotated[int, Field(ge=0, le=64, description="workers that have torch loaded and wait for the next train job; 0: none")] = 1
    confine: Annotated[
        bool, Field(description="let the kernel (Landlock) refuse files that a job does not need; false: any file of the service's user")
    ] = True
    import_memory_mb: Annotated[int, Field(ge=0, description="memory of an import or dataset export; 0: no limit")] = 4096
    spare_idle_s: Annotated[float, Field(ge=0, description="end a spare worker that nobody needed for so long; 0: never")] = 0.0


class Devices(BaseModel):
    """What train jobs share."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    cards: Annotated[
        Annotated[list[CardName], Field(max_length=256)] | Literal["auto"],
        Field(description='names of the cards as CUDA_VISIBLE_DEVICES takes them; "auto": all that nvidia-smi shows; []: none'),
    ] = "auto"
    slots: Annotated[int, Field(ge=1, le=256, description="train jobs on one card at once")] = 1
    memory_mb: Annotated[int, Field(ge=0, description="memory of a card that jobs may fill; 0: what nvidia-smi says")] = 0
    threads: Annotated[int, Field(ge=0, le=65536, description="CPU threads of all train jobs together; 0: as many as there are cores")] = 0


class Limits(BaseModel):
    """How many jobs there may be; an owner is a key's name, or whoever uses the local socket. 0: any number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    unfinished: Annotated[
        int, Field(ge=0, description="jobs of all owners that have not ended; above, only owners with less than an equal share may submit")
    ] = 10_000
    unfinished_per_owner: Annotated[int, Field(ge=0, description="the same of one owner")] = 0
    running_per_owner: Annotated[int, Field(ge=0, description="train jobs of one owner that run at once; the others wait")] = 0


class Retry(BaseModel):
    """A job whose worker crashed, hung, was killed or ran out of memory is tried again from its last checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    attempts: Annotated[int, Field(ge=1, le=1000, description="attempts in a row, the first included; 1: no retry")] = 3
    first_s: Annotated[float, Field(ge=0, le=86400, description="seconds before the second attempt")] = 20.0
    factor: Annotated[float, Field(ge=1, le=100, description="each further wait is longer than the one before by this factor")] = 4.0
    max_s: Annotated[float, Field(ge=0, le=604800, description="the longest wait")] = 600.0
    reset_s: Annotated[float, Field(ge=0, description="an attempt that ran for so long begins the count anew when it crashes")] = 3600.0

    def wait_s(self, crashes: int) -> float:
        """Seconds to wait after so many crashes in a row."""
        wait = self.first_s
        for _ in range(crashes - 1):
            wait *= self.factor
            if wait >= self.max_s:
                break
        return min(wait, self.max_s)


class Keep(BaseModel):
    """What is kept of jobs that have ended; the rest is deleted. Never a pinned job, one that is needed, or a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    jobs: Annotated[int, Field(ge=0, description="ended jobs of each kind and owner; 0: any number")] = 0
    days: Annotated[float, Field(ge=0, description="days after its end that a job is deleted; 0: never")] = 0.0
    checkpoints: Annotated[
        int, Field(ge=0, description="checkpoints of evaluations kept of each job, beside the last and each seed's best; 0: all")
    ] = 0


class Disk(BaseModel):
    """How much the state folder may hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    quota_bytes: Annotated[
        int, Field(ge=0, description="above it no job or upload is taken or written, once retention has given back what it can; 0: none")
    ] = 0


class Uploads(BaseModel):
    """Limits of uploads."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    open: Annotated[int, Field(ge=1, le=10_000, description="unfinished uploads at once")] = 64
    open_per_owner: Annotated[
        int, Field(ge=0, description="the same of one owner; one idle for 10 s gives way to its owner's next; 0: as uploads.open")
    ] = 32
    expire_hours: Annotated[float, Field(gt=0, description="an upload that nobody went on with is deleted after this")] = 24.0
    keep_free_bytes: Annotated[int, Field(ge=0, description="disk space that uploads and jobs must leave free")] = 256 << 20


class Named(BaseModel):
    """Datasets that are imported by a name; "" takes the environment variable of that meaning, else what is published."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    downloads: Annotated[bool, Field(description="fetch files that are not there yet")] = True
    d4rl_dir: Annotated[str, Field(description="folder of D4RL's and d4rl-atari's files; D4RL_DATASET_DIR, ~/.d4rl/datasets")] = ""
    minari_dir: Annotated[str, Field(description="root of Minari's datasets; MINARI_DATASETS_PATH, ~/.minari/datasets")] = ""
    atari_source: Annotated[str, Field(description="Atari replay data: gs://, http, or a folder like the bucket; OFFRL_ATARI_SOURCE")] = ""
    d4rl_source: Annotated[str, Field(description="D4RL's files: an http address or a folder; OFFRL_D4RL_SOURCE")] = ""
    minari_remote: Annotated[str, Field(description="Minari's: hf://NAME, gcp://BUCKET, http, or a folder; MINARI_REMOTE")] = ""

    def environment(self) -> dict[str, str]:
        """What the workers of imports get."""
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
    """The log of what changed something."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    max_bytes: Annotated[int, Field(ge=1024, description="size at which audit.log becomes audit.log.1 and a new one is begun")] = 16 << 20
    keep: Annotated[int, Field(ge=1, le=1000, description="older parts kept; the oldest is deleted")] = 8


class Settings(BaseModel):
    """All settings. Each stands under its name in ``offrld.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    state_dir: Annotated[Path, Field(strict=False, description="folder of queue, datasets, jobs and the socket")]
    bind: Annotated[str, Field(description="where clients connect: ipc://PATH, or tcp://HOST:PORT, where only listed keys are let in")]
    insecure: Annotated[bool, Field(description="allow a tcp address without keys; loopback only")] = False
    socket_group: Annotated[str | None, Field(description="group whose members may use the local socket as well")] = None
    local_role: Annotated[
        Literal["reader", "submitter", "operator"],
        Field(description="what members of socket_group, and everybody on an insecure address, may do; the service's user may do all"),
    ] = "operator"
    max_connections: Annotated[int, Field(ge=8, le=60_000, description="connections on one address at once")] = 1024
    input_memory_mb: Annotated[
        int, Field(ge=32, description="memory that unfinished messages and unread answers may fill before all connections are closed")
    ] = 1024
    import_roots: Annotated[
        list[Annotated[Path, Field(strict=False)]], Field(description="folders below which an import may name a path of this machine")
    ] = []
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="what goes to stderr")] = "info"
    log_format: Annotated[Literal["text", "json"], Field(description="of the lines on stderr; as text the journal gets fields")] = "text"
    metrics_port: Annotated[int, Field(ge=0, le=65535, description="metrics for Prometheus at http://HOST:PORT/metrics; 0: none")] = 0
    metrics_host: Annotated[str, Field(description="address of the metrics: nobody is asked who he is")] = "127.0.0.1"
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
    """Where the settings come from: the file that was looked for, and for each setting (dotted) that is not a default its source."""

    file: Path = Path()
    of: Mapping[str, Source] = field(default_factory=dict)


def load(state_dir: str | None, bind: str | None, config: str | None, insecure: bool = False) -> Settings:
    """The settings: command line before environment before file before default. Raises `InvalidInput`, `Unknown`, `NotAllowed`."""
    return load_with_sources(state_dir, bind, config, insecure)[0]


def load_with_sources(state_dir: str | None, bind: str | None, config: str | None, insecure: bool = False) -> tuple[Settings, Sources]:
    """`load`, with where each setting comes from."""
    named = state_dir or os.environ.get("OFFRLD_STATE_DIR")
    file = Path(config) if config else StateFolder(Path(named) if named else default_state_dir()).settings
    values: dict[str, Any] = {}
    try:
        values = tomllib.loads(file.read_text("utf-8-sig"))
    except FileNotFoundError:
        if config:
            raise InvalidInput(f"{file} does not exist", hint="--config names the daemon's settings, offrld.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        # Of a state folder that is not this user's more is said later; a file that is there is not passed over.
        if config or os.path.exists(file) or not isinstance(error, PermissionError | NotADirectoryError):
            why = (error.strerror if isinstance(error, OSError) else None) or error
            raise InvalidInput(f"{file} cannot be read: {why}", hint="offrld.toml is a text file in UTF-8") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise InvalidInput(f"{file} is not TOML: {error}", hint="`offrl config --default` prints a whole one") from None
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
    if isinstance(values["state_dir"], str):  # absolute, so that the workers, who run elsewhere, find it
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
    """``{"slots": {"train": 2}}`` as ``{"slots.train": 2}``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.update(dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return found


def check_values(values: Any, file: Path, name: str = "") -> None:
    """`InvalidInput` for a value that no setting can have: a number that the queue cannot hold, text that is not a name of anything."""
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
            shown = f"{value:.6g}" if abs(value) < 1e300 else "a number of hundreds of digits"  # no float holds it
            raise InvalidInput(f"{file}: {name}: {shown} is too large", hint=f"at most {MOST}")
        elif isinstance(value, str) and (len(value) > TEXT or any(ord(c) < 32 or ord(c) == 127 for c in value)):
            raise InvalidInput(f"{file}: {name}: {value[:80]!r} is too long or holds control characters", hint=f"at most {TEXT} characters")


def tcp_parts(url: str) -> tuple[str, int]:
    """Host and port of ``tcp://HOST:PORT``; ``*`` as port is 0, any free one. `InvalidInput`."""
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    if port == "*":
        port = "0"
    if not host or not port.isascii() or not port.isdigit() or int(port[:6]) > 65535 or len(port) > 5 or re.search(r"[\s/;@]", host):
        raise InvalidInput(f"{url!r} is not an address to listen on", hint="tcp://HOST:PORT with a port from 0 (any) to 65535")
    return host.strip("[]"), int(port)


def check_bind(url: str, insecure: bool) -> None:
    """Refuse an address that cannot be bound or must not be: `InvalidInput`, `NotAllowed`."""
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
                f"{url} without keys would let in anybody who reaches it",
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
