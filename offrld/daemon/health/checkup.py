"""The daemon's checks of itself: permissions, disk, database, versions, and (by a worker) the devices."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import sqlite3
import stat
import sys
import time
from pathlib import Path
from typing import Literal

import zmq

from offrl import keys
from offrl.wire import Check
from offrl_store.errors import OffrlError
from offrld import landlock
from offrld.daemon.config import Settings
from offrld.daemon.queue import UNFINISHED, paused
from offrld.daemon.queue.database import Connection
from offrld.executors.local import LocalExecutor
from offrld.state.folder import StateFolder

PROBE = 16 << 20  # bytes written and synced
SLOW_WRITE = 20e6  # bytes per second; a slower disk delays checkpoints and uploads
SLOW_SYNC_S = 0.1  # for one small file; every submission waits for one or two
LOW_DISK = 5 << 30
QUOTA_WARN = 0.9
DEVICES_S = 180.0  # loading torch from a cold disk
DEVICES = (sys.executable, "-m", "offrld.worker.devices")


def service(state: StateFolder, settings: Settings) -> list[Check]:
    """Check permissions, confinement, free space, and speed of the disk. Reads and writes files: call it in a thread."""
    return [*permissions(state, settings), confinement(settings), space(state, settings), speed(state.cache)]


def permissions(state: StateFolder, settings: Settings) -> list[Check]:
    """Check that the daemon can write its folders, and that nobody else can enter them or read secrets."""
    wrong, unusable = [], []
    for folder in (state.root, state.runtime, state.datasets, state.uploads, state.jobs, state.cache):
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            unusable.append(str(folder))
        elif folder.stat().st_uid not in (os.geteuid(), 0):
            wrong.append(f"{folder} belongs to user {folder.stat().st_uid}, the daemon is user {os.geteuid()}")
    if state.root.stat().st_mode & stat.S_IWOTH or state.runtime.stat().st_mode & stat.S_IRWXO:
        wrong.append(f"{state.root} lets every user in")
    private = [path for path in _secrets(state) if path.stat().st_mode & 0o077]
    lists = [path for path in keys.clients_dir(state.root).glob("*.toml") if path.stat().st_mode & 0o022]
    wrong += [f"{path} can be read by others" for path in private] + [f"{path} can be changed by others" for path in lists]
    checks = []
    if unusable:
        checks.append(
            Check(
                name="permissions",
                status="fail",
                message=f"cannot write {', '.join(unusable)}",
                hint=f"give the folder back: sudo chown -R {os.geteuid()} {state.root}",
            )
        )
    elif wrong:
        files = " ".join(map(str, private + lists))
        hint = f"chmod 600 {files}" if files else f"chmod -R go= {state.root}"
        checks.append(Check(name="permissions", status="fail" if files else "warn", message="; ".join(wrong), hint=hint))
    else:
        checks.append(Check(name="permissions", status="ok", message=f"{state.root} belongs to the daemon's user"))
    if settings.bind.startswith("ipc://"):
        path = Path(settings.bind.removeprefix("ipc://"))
        try:
            mode = path.stat().st_mode
        except OSError as error:
            checks.append(Check(name="socket", status="fail", message=f"{path}: {error.strerror}", hint="restart the daemon"))
        else:
            if mode & 0o007 and path.parent.stat().st_mode & 0o007:
                checks.append(
                    Check(
                        name="socket", status="warn", message=f"every user of this machine may use {path}", hint=f"chmod 0700 {path.parent}"
                    )
                )
            else:
                checks.append(Check(name="socket", status="ok", message=f"{path}, mode {mode & 0o777:04o}"))
    elif settings.insecure:
        checks.append(
            Check(
                name="socket",
                status="warn",
                message=f"{settings.bind} accepts every user of this machine",
                hint="listen on ipc://, or with keys",
            )
        )
    else:
        checks.append(Check(name="socket", status="ok", message=settings.bind))
    return checks


def confinement(settings: Settings) -> Check:
    """Check that the kernel keeps workers away from files that their jobs do not need."""
    anything = "workers may open any file of the service's user"
    if not settings.workers.confine:
        return Check(name="confinement", status="warn", message=anything, hint="remove workers.confine = false from offrld.toml")
    version = landlock.abi()
    if not version:
        hint = "use Linux 5.13 or newer, with landlock among its lsm="
        return Check(name="confinement", status="warn", message=f"no Landlock in this kernel: {anything}", hint=hint)
    return Check(name="confinement", status="ok", message=f"workers open only what their jobs need (Landlock, ABI {version})")


def space(state: StateFolder, settings: Settings) -> Check:
    """Check that the disk has enough free space."""
    disk = shutil.disk_usage(state.root)
    message = f"{disk.free / 1e9:.1f} of {disk.total / 1e9:.1f} GB free for {state.root}"
    hint = "remove jobs (`offrl rm`) and datasets (`offrl datasets rm`), or move the state folder to a larger disk"
    if disk.free <= settings.uploads.keep_free_bytes:
        return Check(name="disk space", status="fail", message=message, hint=hint)
    if disk.free < LOW_DISK:
        return Check(name="disk space", status="warn", message=message, hint=hint)
    return Check(name="disk space", status="ok", message=message)


def quota(used: int, quota_bytes: int) -> Check:
    """Check the size of the state folder against its quota."""
    message = f"{used / 1e9:.1f} of {quota_bytes / 1e9:.1f} GB of the quota are used"
    if used < QUOTA_WARN * quota_bytes:
        return Check(name="quota", status="ok", message=message)
    status: Literal["warn", "fail"] = "warn" if used <= quota_bytes else "fail"
    hint = "`offrl prune`, `offrl rm`, `offrl datasets rm`, or raise disk.quota_bytes"
    return Check(name="quota", status=status, message=message, hint=hint)


def speed(folder: Path) -> Check:
    """Measure the speed of a synced write, and the time of a small sync."""
    path = folder / f".checkup-{secrets.token_hex(4)}"
    block = os.urandom(1 << 20)
    try:
        with path.open("xb", buffering=0) as file:
            began = time.perf_counter()
            file.write(b"x")
            os.fsync(file.fileno())
            small = time.perf_counter() - began
            began = time.perf_counter()
            for _ in range(PROBE // len(block)):
                file.write(block)
            os.fsync(file.fileno())
            rate = PROBE / (time.perf_counter() - began)
    except OSError as error:
        return Check(
            name="disk speed",
            status="fail",
            message=f"{folder} cannot be written: {error.strerror}",
            hint="free some space, or see why the disk is read-only (`dmesg`)",
        )
    finally:
        path.unlink(missing_ok=True)
    message = f"{rate / 1e6:.0f} MB/s written and synced, {1000 * small:.1f} ms for a small sync"
    if rate < SLOW_WRITE or small > SLOW_SYNC_S:
        hint = "a network or failing disk? put the state folder on a local one"
        return Check(name="disk speed", status="warn", message=message, hint=hint)
    return Check(name="disk speed", status="ok", message=message)


def database(db: Connection) -> Check:
    """Run SQLite's own check of the whole file."""
    try:
        problems = [row[0] for row in db.execute("PRAGMA quick_check(5)")]
        jobs = db.execute("SELECT count(*) FROM jobs").fetchone()[0]
    except sqlite3.DatabaseError as error:
        problems, jobs = [str(error)], 0
    if problems != ["ok"]:
        return Check(
            name="database",
            status="fail",
            message=f"the queue's database is damaged: {problems[0]}",
            hint="stop the daemon and replace queue.sqlite with the last backup",
        )
    return Check(name="database", status="ok", message=f"whole, {jobs} jobs")


def queue(db: Connection) -> Check:
    """Check that the queue is not paused."""
    pause = paused(db)
    counts = {row[0]: row[1] for row in db.execute(f"SELECT state, count(*) FROM jobs WHERE state IN {UNFINISHED} GROUP BY state")}
    message = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "empty"
    if pause is None:
        return Check(name="queue", status="ok", message=message)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(pause.at))
    why = f": {pause.reason}" if pause.reason else ""
    message = f"paused by {pause.by} since {since} UTC{why}; {message}"
    return Check(name="queue", status="warn", message=message, hint="`offrl queue resume`")


def background(failing: list[str]) -> Check:
    """Report the background loops (retention, housekeeping, starting jobs) that fail now."""
    return Check(name="background", status="fail", message="; ".join(failing), hint="the daemon's log holds more")


def versions() -> dict[str, str]:
    """Return the versions of what the control plane runs on."""
    installed = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "zeromq": zmq.zmq_version()}
    for name in ("pyzmq", "msgpack", "pydantic", "numpy", "torch", "onnxruntime", "gymnasium"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


async def devices(state: StateFolder) -> tuple[list[Check], dict[str, str]]:
    """Start a worker that loads torch, the store's kernels and onnxruntime and computes on every device; return its findings."""
    lines: list[bytes] = []
    trouble = state.cache / "devices.log"
    trouble.unlink(missing_ok=True)
    worker = await LocalExecutor(describe_command=DEVICES).start(
        state.root, "devices", folder=state.cache, log=trouble, on_line=lines.append, describe=True
    )
    worker.close_stdin()
    try:
        status: int | None = await asyncio.wait_for(worker.wait(), DEVICES_S)
    except TimeoutError:
        status = None
    finally:
        worker.kill()
    try:
        if status != 0:
            raise ValueError("did not answer in time" if status is None else f"ended with status {status}")
        answer = json.loads(b"\n".join(lines))
        return [Check.model_validate(check) for check in answer["checks"]], {str(k): str(v) for k, v in answer["versions"].items()}
    except (ValueError, KeyError, OffrlError) as error:
        last = (await asyncio.to_thread(trouble.read_text, errors="replace")).strip().splitlines()
        return [
            Check(
                name="worker",
                status="fail",
                message=f"the worker {error}: {last[-1] if last else 'it printed nothing'}",
                hint=f"run `{' '.join(DEVICES)}` as the daemon's user to see more",
            )
        ], {}


def _secrets(state: StateFolder) -> list[Path]:
    """Return the files with secret keys in the folder of keys: the daemon's own, and clients' that were not moved away."""
    return [path for path in state.keys.rglob("*.key") if path.is_file()]
