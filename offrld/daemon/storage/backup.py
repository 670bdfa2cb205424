"""Backups: a consistent view of the state folder for a client to copy, frozen in a moment while jobs and imports continue.

``cache/backup/ID/`` gets a copy of the queue's database (by SQLite's own backup), and then second links to the files of every job and
dataset that this copy names. A file that grows afterwards is read up to its earlier length; one that is replaced or deleted survives in the
link. So the files are never older than the queue: a job that had progressed further when it was linked continues from there, and a
dataset holds at least the snapshots that jobs have pinned. Reads and writes files: call it in a thread, while nothing is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from offrl.errors import Conflict, Unknown
from offrl.wire import BackupBegun
from offrl_store.disk import copy_sparse, link_or_copy
from offrld.daemon.queue import UNFINISHED
from offrld.daemon.queue.migrations import keep_copy
from offrld.daemon.queue.schema import SCHEMA_VERSION
from offrld.state.below import open_below
from offrld.state.folder import StateFolder

LIST = "files.jsonl"  # {"path", "size"} of each file, relative to the state folder
OPEN = 4  # at once
KEEP_S = 24 * 3600.0  # then a frozen view is deleted
TRIES = 20  # to link a folder in which files come and go
# Of a dataset (docs/store-format.md): the log, whose header changes all the time, and the folder of open episodes.
LOG, HEADER, OPEN_EPISODES, SCHEMA = "episodes.log", 64, "open", "schema.json"


def begin(state: StateFolder, *, keys: bool, version: str) -> BackupBegun:
    """Freeze the current state. Raises `Conflict` if too many backups are being copied."""
    forget_old(state, KEEP_S)
    if (count := sum(1 for _ in os.scandir(state.backups))) >= OPEN:
        raise Conflict(f"{count} backups are being copied", hint="wait until one is done; an abandoned one is deleted after a day")
    name = f"backup-{secrets.token_hex(6)}"
    folder = state.backups / name
    folder.mkdir(mode=0o700)
    try:
        count, size = 0, 0
        with (folder / LIST).open("w") as listed:
            for path, length in _freeze(state, folder, keys):
                listed.write(json.dumps({"path": path, "size": length}) + "\n")
                count, size = count + 1, size + length
        return BackupBegun(
            backup=name,
            list=LIST,
            list_size=(folder / LIST).stat().st_size,
            files=count,
            bytes=size,
            version=version,
            schema_version=SCHEMA_VERSION,
            time=time.time(),
            state_dir=str(state.root),
            keys=keys,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read(state: StateFolder, backup: str, path: str, offset: int, size: int) -> bytes:
    """Read bytes of one file of a backup. Raises `Unknown`."""
    try:
        descriptor = open_below(state.backups / backup, path)
    except OSError:
        raise Unknown(f"backup {backup} has no file {path!r} (any more)", hint="was the daemon restarted? begin it again") from None
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def end(state: StateFolder, backup: str) -> None:
    """Delete the frozen view."""
    shutil.rmtree(state.backups / backup, ignore_errors=True)


def forget_old(state: StateFolder, age_s: float = 0.0) -> None:
    """Delete the frozen views that are older than ``age_s`` seconds."""
    for entry in list(os.scandir(state.backups)):
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime >= age_s:
                shutil.rmtree(entry.path, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------------------ freeze
def _freeze(state: StateFolder, folder: Path, keys: bool) -> Iterator[tuple[str, int]]:
    """Link everything; yield relative path and length of each file."""
    copy = folder / state.database.name
    with contextlib.closing(sqlite3.connect(f"file:{state.database}?mode=ro", uri=True, timeout=30.0)) as db:
        keep_copy(db, copy)
    yield copy.name, copy.stat().st_size
    with contextlib.closing(sqlite3.connect(copy)) as db:
        jobs = [row[0] for row in db.execute("SELECT id FROM jobs ORDER BY seq")]
        # A job may have created its dataset already, but not reported it yet.
        datasets = [
            row[0]
            for row in db.execute(
                f"SELECT name FROM datasets UNION SELECT dataset FROM jobs WHERE dataset IS NOT NULL AND state IN {UNFINISHED}"
            )
        ]
        uploads = [
            row[0]
            for row in db.execute(
                "SELECT DISTINCT json_extract(spec, '$.upload') AS upload FROM jobs WHERE kind = 'import' AND upload IS NOT NULL"
            )
        ]
    # Run folders before datasets: the steps that a checkpoint counts are in the dataset earlier.
    parts = [*(state.run(job).path for job in jobs), *(state.dataset(name) for name in datasets)]
    parts += [*(state.upload(upload) for upload in uploads), *sorted(state.root.glob(f"{state.audit.name}*")), state.settings]
    if keys:
        parts.append(state.keys)
    for part in parts:
        if part.parent == state.datasets:
            yield from _freeze_log(state.root, part, folder)
        yield from _link_all(state.root, part, folder)


def _freeze_log(root: Path, dataset: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Copy a store's log and what must be of the same moment; everything else that the log names is already in the other files.

    Of the same moment are the open episodes (their file disappears when the log gets their record), and in a bounded store the columns, in
    which evicted episodes leave holes. Raises `Conflict` if a bounded store is written to without a pause.
    """
    if not (dataset / LOG).is_file():
        return
    for _ in range(TRIES):
        copies: dict[str, int] = {}
        try:
            bounded = "limit" in json.loads((dataset / SCHEMA).read_text())
            before = _moment(dataset)
            for path in [dataset / LOG, *(dataset / OPEN_EPISODES).glob("*"), *((dataset / "columns").glob("*") if bounded else ())]:
                name = str(path.relative_to(root))
                (folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                copies[name] = copy_sparse(path, folder / name)
            if _moment(dataset) == before:
                yield from copies.items()
                return
        except FileNotFoundError:
            pass
        for name in copies:
            (folder / name).unlink(missing_ok=True)
    raise Conflict(f"dataset {dataset.name!r} is written to all the time", hint="pause the job that collects into it meanwhile")


def _moment(dataset: Path) -> tuple[bytes, int, list[str]]:
    """Return what changes with every episode that is added or evicted: the log's header and length, and the open episodes."""
    with (dataset / LOG).open("rb") as log:
        header, size = log.read(HEADER), os.fstat(log.fileno()).st_size
    return header, size, sorted(path.name for path in (dataset / OPEN_EPISODES).glob("*"))


def _link_all(root: Path, part: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Link a file or a whole folder; yield paths and lengths. Look again if a file vanished before it was linked."""
    done: dict[str, int] = {}
    for _ in range(TRIES):
        missed = False
        for path in _files(part):
            name = str(path.relative_to(root))
            with_log = (folder / name).exists() or path.parent == part / OPEN_EPISODES
            if name in done or with_log:  # copied with the log, of the same moment
                continue
            try:
                done[name] = _link(path, folder / name)
            except FileNotFoundError:
                missed = True
        if not missed:
            break
    yield from done.items()


def _files(part: Path) -> list[Path]:
    """Return the plain files of a part, without temporary files."""
    if part.is_file() and not part.is_symlink():
        return [part]
    paths = [
        Path(inner, name)
        for inner, _folders, names in os.walk(part)
        for name in names
        if not (name.startswith(".") and name.endswith((".tmp", ".part")))
    ]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def _link(source: Path, target: Path) -> int:
    """Give the file a second name; return its length in bytes."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    link_or_copy(source, target)
    return target.stat().st_size
