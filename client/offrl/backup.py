"""Backups of a daemon's state folder: copied from a running daemon, and restored into an empty folder, each file with its SHA-256.

A backup is a folder: ``backup.json`` (version, time, and path, size and SHA-256 of each file), and ``state/`` with the files of the state
folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from offrl import wire
from offrl.client import Client
from offrl.errors import CheckFailed, DiskFull, InvalidInput, OffrlError
from offrl.explained import build

FORMAT = 1
ABOUT, STATE = "backup.json", "state"
UNFINISHED = ".restoring"  # in the state folder during a restore: a daemon refuses to start on it
BLOCK = 1 << 20
BEGIN_S = 600.0  # seconds to freeze a folder with very many files
DATABASE = "queue.sqlite"

Progress = Callable[[int, int], None]  # bytes done, total bytes


def backup(client: Client, out: str | os.PathLike[str], *, keys: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Copy the state of a running daemon into the new folder ``out``, which then exists completely or not at all.

    Args:
        keys: also copy the daemon's secret key and its list of clients; only over the socket of the daemon's own user.
        progress: called with the bytes copied and their total.

    Returns:
        The content of ``backup.json``, with the number and total size of the files as ``files`` and ``bytes``.

    Raises:
        NotAllowed: the caller is not an operator, or requests keys over another connection.
        InvalidInput: ``out`` exists, or cannot be created.
        DiskFull: the disk here is full.
        CheckFailed: a file is shorter than the daemon announced.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"{out} already exists", hint="name a new folder")
    frozen = client.request(build(wire.BeginBackup, keys=keys), timeout=BEGIN_S)
    part = out.with_name(f".{out.name}.part")
    try:
        with _writing(out):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(mode=0o700)
            about = _copy(client, frozen, part, progress)
            _write_about(part, about)
            os.sync()
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OffrlError):  # the daemon also discards the copy by itself
            client.request(wire.EndBackup(backup=frozen.backup))
    return {**about, "files": len(about["files"]), "bytes": sum(file["size"] for file in about["files"])}


def restore(source: str | os.PathLike[str], state_dir: str | os.PathLike[str], *, progress: Progress | None = None) -> dict[str, Any]:
    """Make a state folder from a backup; a daemon can then start on it. Jobs that were running resume from their checkpoints.

    Args:
        source: the folder that `backup` made.
        state_dir: a folder that is empty or does not exist.
        progress: called with the bytes restored and their total.

    Returns:
        The same as `backup`.

    Raises:
        InvalidInput: ``source`` is not a backup, or the folder is not empty.
        CheckFailed: a file is missing or damaged; the partial restore is removed.
        DiskFull: the disk is full.
    """
    source, target = Path(source), Path(state_dir)
    about = _read_about(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        interrupted = (target / UNFINISHED).exists()
        hint = (
            "an earlier restore was interrupted: empty the folder, then restore again" if interrupted else "name a new folder, or empty it"
        )
        raise InvalidInput(f"{target} is not empty", hint=hint)
    total, done, inner = sum(file["size"] for file in about["files"]), 0, target / UNFINISHED
    with _writing(target):
        existed = target.exists()
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        inner.mkdir(mode=0o700)
        try:
            for file in about["files"]:
                _restore_file(source / STATE, inner, file)
                done += file["size"]
                if progress is not None:
                    progress(done, total)
            os.sync()
        except BaseException:
            shutil.rmtree(inner, ignore_errors=True)
            if not existed:
                target.rmdir()
            raise
        for entry in sorted(inner.iterdir(), key=lambda entry: entry.name == DATABASE):  # the queue last
            entry.rename(target / entry.name)
        os.sync()
        inner.rmdir()
    return {**about, "files": len(about["files"]), "bytes": total}


# ---------------------------------------------------------------------------------------------------------------------- backup
def _copy(client: Client, frozen: wire.BackupBegun, part: Path, progress: Progress | None) -> dict[str, Any]:
    connection = client.connect()
    try:
        listed = b"".join(_chunks(connection, frozen.backup, [{"path": frozen.list, "size": frozen.list_size}]))
        files = [json.loads(line) for line in listed.splitlines()]
        chunks, done = _chunks(connection, frozen.backup, files), 0
        for file in files:
            digest, left = hashlib.sha256(), file["size"]
            with _new(part / STATE, file["path"]) as written:
                while left:
                    data = next(chunks)
                    digest.update(data)
                    _write(written, data)
                    left, done = left - len(data), done + len(data)
                    if progress is not None:
                        progress(done, frozen.bytes)
            file["sha256"] = digest.hexdigest()
    finally:
        connection.close()
    about = frozen.model_dump(exclude={"backup", "list", "list_size", "files", "bytes"})
    return {"format": FORMAT, **about, "files": files}


def _chunks(connection: Any, backup: str, files: list[dict[str, Any]]) -> Iterator[bytes]:
    """Yield the bytes of all files in order; each chunk belongs to one file."""
    parts = [(file["path"], at, min(wire.CHUNK, file["size"] - at)) for file in files for at in range(0, file["size"], wire.CHUNK)]
    requests = (wire.ReadBackup(backup=backup, path=path, offset=at, size=size) for path, at, size in parts)
    for (path, at, size), reply in zip(parts, connection.stream(requests), strict=True):
        if len(reply.data) != size:
            raise CheckFailed(f"{path} ended {len(reply.data)} bytes after {at}; expected {size}", hint="make the backup again")
        yield reply.data


def _write_about(part: Path, about: dict[str, Any]) -> None:
    (part / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


# --------------------------------------------------------------------------------------------------------------------- restore
def _read_about(source: Path) -> dict[str, Any]:
    try:
        about = json.loads((source / ABOUT).read_text())
        version = about["format"]
        names = [file["path"] for file in about["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{source} is not a backup: {ABOUT} cannot be read ({error})", hint="name the folder of `offrl backup`"
        ) from None
    if version != FORMAT:
        raise InvalidInput(f"{source} has format {version!r}; this version reads {FORMAT}", hint="use the version of offrl that made it")
    if DATABASE not in names:
        raise CheckFailed(f"{source} holds no queue", hint="use another backup")
    return about


def _restore_file(source: Path, target: Path, file: dict[str, Any]) -> None:
    name = _safe(file["path"])
    digest, size = hashlib.sha256(), 0
    try:
        reading = (source / name).open("rb")
    except FileNotFoundError:
        raise CheckFailed(f"the backup lacks {name}", hint="use another backup") from None
    with reading, _new(target, name) as written:
        while data := reading.read(BLOCK):
            digest.update(data)
            _write(written, data)
            size += len(data)
    if size != file["size"] or digest.hexdigest() != file["sha256"]:
        raise CheckFailed(f"{name} in the backup is damaged: its size or its SHA-256 differs", hint="use another backup")


def _new(root: Path, path: str) -> BinaryIO:
    """Create a new file below ``root`` and its missing folders, readable by this user only."""
    folder = root
    for part in ("", *_safe(path).split("/")[:-1]):
        folder = folder / part
        folder.mkdir(mode=0o700, exist_ok=True)
    return os.fdopen(os.open(root / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _write(file: BinaryIO, data: bytes) -> None:
    """Append to a new file. A block of zeros becomes a hole, as in a dataset that has released disk space."""
    if data.count(0) == len(data):
        file.flush()
        file.truncate(file.seek(len(data), os.SEEK_CUR))
    else:
        file.write(data)


def _safe(path: str) -> str:
    """Return a relative path that stays below its folder; raise `CheckFailed` for any other."""
    if not isinstance(path, str) or any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        raise CheckFailed(f"{path!r} is not a path inside a backup", hint="use another backup")
    return path


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left for {target}", hint="free some space, or choose another place") from None
        raise InvalidInput(f"cannot write {target}: {error.strerror}", hint="choose another place") from None


__all__ = ["backup", "restore"]
