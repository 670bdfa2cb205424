"""Back-ups of a daemon's state folder: copied from a running daemon, and restored into an empty folder, each file with its SHA-256.

A back-up is a folder: ``backup.json`` (what it is, and path, size and SHA-256 of each file), and ``state/`` with the files as they stand in
a state folder.
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
UNFINISHED = ".restoring"  # in the state folder while it is being restored: a daemon does not start on it
BLOCK = 1 << 20
BEGIN_S = 600.0  # to freeze a folder of very many files
DATABASE = "queue.sqlite"

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def backup(client: Client, out: str | os.PathLike[str], *, keys: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Copy everything that a daemon holds into the new folder ``out``, which is there in full or not at all. The daemon goes on meanwhile.

    Args:
        keys: the daemon's secret key and the list of those who are let in as well; only over the socket of its own user.

    Returns:
        What stands in ``backup.json``, without its files: ``files`` and ``bytes`` are their number and size.

    Raises:
        NotAllowed: the caller is not an operator, or wants keys from elsewhere.
        InvalidInput: ``out`` is there already, or cannot be made.
        DiskFull: there is no room for it here.
        CheckFailed: a file ended before its length.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"{out} is there already", hint="name a new folder")
    begun = client.request(build(wire.BeginBackup, keys=keys), timeout=BEGIN_S)
    part = out.with_name(f".{out.name}.part")
    try:
        with _writing(out):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(mode=0o700)
            about = _copy(client, begun, part, progress)
            _write_about(part, about)
            os.sync()
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OffrlError):  # it forgets it by itself as well
            client.request(wire.EndBackup(backup=begun.backup))
    return {**about, "files": len(about["files"]), "bytes": sum(file["size"] for file in about["files"])}


def restore(source: str | os.PathLike[str], state_dir: str | os.PathLike[str], *, progress: Progress | None = None) -> dict[str, Any]:
    """Make a state folder of a back-up, for a daemon that is started on it afterwards. Jobs that ran go on from their checkpoints.

    Args:
        source: the folder that `backup` made.
        state_dir: missing, or empty.

    Returns:
        As `backup`.

    Raises:
        InvalidInput: there is no back-up, or the folder is not empty.
        CheckFailed: a file is missing or damaged; nothing is left behind then.
        DiskFull: there is no room for it.
    """
    source, target = Path(source), Path(state_dir)
    about = _read_about(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        begun = (target / UNFINISHED).exists()
        hint = "an earlier restore was cut short: empty the folder, then begin anew" if begun else "name a new folder, or empty it"
        raise InvalidInput(f"{target} is not empty", hint=hint)
    total, done, inner = sum(file["size"] for file in about["files"]), 0, target / UNFINISHED
    with _writing(target):
        there = target.exists()
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
            if not there:
                target.rmdir()
            raise
        for entry in sorted(inner.iterdir(), key=lambda entry: entry.name == DATABASE):  # the queue last
            entry.rename(target / entry.name)
        os.sync()
        inner.rmdir()
    return {**about, "files": len(about["files"]), "bytes": total}


# ---------------------------------------------------------------------------------------------------------------------- backup
def _copy(client: Client, begun: wire.BackupBegun, part: Path, progress: Progress | None) -> dict[str, Any]:
    connection = client.connect()
    try:
        listed = b"".join(_chunks(connection, begun.backup, [{"path": begun.list, "size": begun.list_size}]))
        files = [json.loads(line) for line in listed.splitlines()]
        chunks, done = _chunks(connection, begun.backup, files), 0
        for file in files:
            digest, left = hashlib.sha256(), file["size"]
            with _new(part / STATE, file["path"]) as written:
                while left:
                    data = next(chunks)
                    digest.update(data)
                    _write(written, data)
                    left, done = left - len(data), done + len(data)
                    if progress is not None:
                        progress(done, begun.bytes)
            file["sha256"] = digest.hexdigest()
    finally:
        connection.close()
    about = begun.model_dump(exclude={"backup", "list", "list_size", "files", "bytes"})
    return {"format": FORMAT, **about, "files": files}


def _chunks(connection: Any, backup: str, files: list[dict[str, Any]]) -> Iterator[bytes]:
    """The bytes of all files one after the other; a chunk never reaches into the next file."""
    wanted = [(file["path"], at, min(wire.CHUNK, file["size"] - at)) for file in files for at in range(0, file["size"], wire.CHUNK)]
    requests = (wire.ReadBackup(backup=backup, path=path, offset=at, size=size) for path, at, size in wanted)
    for (path, at, size), reply in zip(wanted, connection.stream(requests), strict=True):
        if len(reply.data) != size:
            raise CheckFailed(f"{path} ended {len(reply.data)} bytes after {at}, {size} were expected", hint="make the back-up again")
        yield reply.data


def _write_about(part: Path, about: dict[str, Any]) -> None:
    (part / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


# --------------------------------------------------------------------------------------------------------------------- restore
def _read_about(source: Path) -> dict[str, Any]:
    try:
        about = json.loads((source / ABOUT).read_text())
        found = about["format"]
        names = [file["path"] for file in about["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{source} is not a backup: {ABOUT} cannot be read ({error})", hint="name the folder of `offrl backup`"
        ) from None
    if found != FORMAT:
        raise InvalidInput(f"{source} has format {found!r}, this version reads {FORMAT}", hint="use the version of offrl that made it")
    if DATABASE not in names:
        raise CheckFailed(f"{source} holds no queue", hint="use another backup")
    return about


def _restore_file(source: Path, target: Path, file: dict[str, Any]) -> None:
    name = _safe(file["path"])
    digest, size = hashlib.sha256(), 0
    try:
        reading = (source / name).open("rb")
    except FileNotFoundError:
        raise CheckFailed(f"the back-up lacks {name}", hint="use another backup") from None
    with reading, _new(target, name) as written:
        while data := reading.read(BLOCK):
            digest.update(data)
            _write(written, data)
            size += len(data)
    if size != file["size"] or digest.hexdigest() != file["sha256"]:
        raise CheckFailed(f"{name} in the back-up is damaged: its size or its SHA-256 differs", hint="use another backup")


def _new(root: Path, path: str) -> BinaryIO:
    """A new file below ``root``, in folders that are made where they are missing: for this user alone."""
    folder = root
    for part in ("", *_safe(path).split("/")[:-1]):
        folder = folder / part
        folder.mkdir(mode=0o700, exist_ok=True)
    return os.fdopen(os.open(root / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _write(file: BinaryIO, data: bytes) -> None:
    """Append to a new file; a block of zeros becomes a hole, as it was in a dataset that has given space back."""
    if data.count(0) == len(data):
        file.flush()
        file.truncate(file.seek(len(data), os.SEEK_CUR))
    else:
        file.write(data)


def _safe(path: str) -> str:
    """A relative path that stays where it is."""
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
