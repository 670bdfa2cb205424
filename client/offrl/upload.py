"""Uploads to the daemon: the files of a source, their checksums, and chunks that resume after a broken connection.

The next upload of the same content to the same daemon resumes one that was interrupted, also after the client was killed: the id is noted
in ``$XDG_CACHE_HOME/offrl/uploads`` before the upload starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from offrl import wire
from offrl.connection import Connection, ConnectionLost
from offrl.errors import Conflict, InvalidInput, NotAllowed, OffrlError

Progress = Callable[[int, int], None]  # bytes done, total bytes
MAX_FILES = 5_000  # of one upload, a limit of the protocol
NOTES_S = 7 * 86_400.0  # age at which a note is deleted: the daemon discarded the upload long before
BUSY, BUSY_S = "busy", 0.1  # error code of a daemon that holds too many requests, and the pause before the next attempt


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: its name in the upload, its path, its size in bytes and its SHA-256."""

    name: str
    path: Path
    size: int
    sha256: str

    def entry(self) -> wire.FileEntry:
        return wire.FileEntry(path=self.name, size=self.size, sha256=self.sha256)


def scan(source: str | os.PathLike[str]) -> list[SourceFile]:
    """List the files of ``source``, a file or a folder, sorted by name, without the hidden files of a folder.

    The names of a folder's files start with the folder's own name, so that the daemon sees one folder even if it has a single entry.

    Raises:
        InvalidInput: the source does not exist, is empty, cannot be read, or holds symbolic links (which could point anywhere) or more than
            5,000 files.
    """
    root = Path(source)
    try:
        mode = root.stat().st_mode
    except FileNotFoundError:
        raise InvalidInput(f"no such file or folder: {str(source)!r}", hint="pass the path of a dataset") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read {str(source)!r}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISREG(mode):
        entries = [(root.name, root)]
    elif stat.S_ISDIR(mode):
        own = Path(os.path.abspath(root)).name.lstrip(".") or "folder"
        entries = sorted((f"{own}/{name}", path) for name, path in _walk(root))
        if not entries:
            raise InvalidInput(f"the folder {str(source)!r} holds no files", hint="pass the path of a dataset")
        if len(entries) > MAX_FILES:
            raise InvalidInput(
                f"the folder {str(source)!r} holds {len(entries)} files; an upload may have {MAX_FILES}",
                hint="let the daemon read it from its own disk: put its folder into import_roots and use --on-daemon",
            )
    else:
        raise InvalidInput(f"{str(source)!r} is neither a file nor a folder", hint="pass the path of a dataset")
    return [_file(name, path) for name, path in entries]


def content_name(files: list[SourceFile], source: str | os.PathLike[str]) -> str:
    """Make a dataset's name from the name and the content of its source: the same content gives the same name."""
    digest = hashlib.sha256()
    if len(files) == 1:
        digest.update(files[0].sha256.encode())
    else:
        for file in files:
            digest.update(f"{file.sha256} {file.size} {file.name}\n".encode())
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(os.path.abspath(source)).stem).strip("-._")[:60]
    return f"{stem or 'dataset'}-{digest.hexdigest()[:12]}"


def new_id() -> str:
    """Make the id of a new upload."""
    return f"up-{uuid.uuid4().hex}"


def deliver(connection: Connection, files: list[SourceFile], progress: Progress | None = None) -> str:
    """Send files like `send`, resuming an interrupted upload of the same content if there is one; return the upload's id."""
    with _noted(connection.url, files) as (upload, renew):
        try:
            return send(connection, files, progress, upload=upload)
        except (Conflict, NotAllowed):  # it was started with another key
            if (another := renew()) == upload:
                raise
            return send(connection, files, progress, upload=another)


def send(connection: Connection, files: list[SourceFile], progress: Progress | None = None, *, upload: str | None = None) -> str:
    """Upload ``files``, have the daemon check them, and return the upload's id. With the id of an unfinished upload, resume it.

    Survives a restart of the daemon. Raises `InvalidInput` if a file changed while it was read, `DiskFull` if the daemon's disk is full,
    `NoDaemon`, and `Conflict` or `NotAllowed` if the id belongs to other files or another user.
    """
    upload = new_id() if upload is None else upload
    total = sum(file.size for file in files)
    entries = [file.entry() for file in files]
    give_up: float | None = None
    last = -1
    while True:
        try:
            opened = connection.request(wire.OpenUpload(upload=upload, files=entries))
            done = sum(min(opened.received.get(file.name, 0), file.size) for file in files)
            if done > last:  # something arrived since the last attempt, so the patience starts again
                give_up, last = None, done
            base = done
            sizes: list[int] = []  # of the chunks in flight, oldest first
            for _ in connection.stream(_chunks(upload, files, opened.received, sizes)):
                base += sizes.pop(0)
                if progress is not None:
                    progress(base, total)
            connection.request(wire.FinishUpload(upload=upload), timeout=max(connection.timeout, total / 20e6))
            return upload
        except OffrlError as error:
            lost = isinstance(error, ConnectionLost)
            give_up = give_up or time.monotonic() + connection.patience
            if not (lost or error.code == BUSY) or time.monotonic() >= give_up:
                raise
            if lost:
                connection.wait_for_daemon(give_up)
            else:  # other clients fill the daemon's buffers: wait, then resume from what has arrived
                time.sleep(BUSY_S)


@contextlib.contextmanager
def _noted(url: str, files: list[SourceFile]) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield an id for an upload of these files, and a function that replaces a noted id by a new one.

    The note is deleted if the block ends without an error. Two processes that send the same content at the same time do not share an id:
    the second one uses an id without a note.
    """
    digest = hashlib.sha256(url.encode())
    for file in files:
        digest.update(f"{file.sha256} {file.size} {file.name}\n".encode())
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offrl" / "uploads"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _forget_old(folder)
        path = folder / digest.hexdigest()[:40]
        note = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, RuntimeError):  # no folder for notes
        upload = new_id()
        yield upload, lambda: upload
        return
    try:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            upload = new_id()
            yield upload, lambda: upload
            return
        noted = os.pread(note, 100, 0).decode(errors="replace")
        resumes = re.fullmatch(r"up-[0-9a-f]{32}", noted) is not None

        def renew() -> str:
            made = new_id()
            with contextlib.suppress(OSError):  # a full disk: the upload cannot be resumed then
                os.pwrite(note, made.encode(), 0)
            return made

        upload = noted if resumes else renew()
        yield upload, renew if resumes else lambda: upload
        path.unlink(missing_ok=True)
    finally:
        os.close(note)


def _forget_old(folder: Path) -> None:
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > NOTES_S:
                os.unlink(entry.path)


def _chunks(upload: str, files: list[SourceFile], received: dict[str, int], sizes: list[int]) -> Iterator[wire.WriteChunk]:
    for file in files:
        offset = received.get(file.name, 0)
        if offset >= file.size:
            continue
        try:
            with file.path.open("rb") as stream:
                stream.seek(offset)
                while offset < file.size:
                    data = stream.read(min(wire.CHUNK, file.size - offset))
                    if not data:
                        raise InvalidInput(
                            f"{file.path} became shorter while it was uploaded", hint="try again when no program writes to it"
                        )
                    sizes.append(len(data))
                    yield wire.WriteChunk(upload=upload, path=file.name, offset=offset, data=data, crc32=zlib.crc32(data))
                    offset += len(data)
        except OSError as error:
            raise InvalidInput(f"cannot read {file.path}: {error.strerror}") from None


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    def refuse(error: OSError) -> None:
        raise InvalidInput(f"cannot read {error.filename}: {error.strerror}") from None

    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders + names:
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if path.is_symlink():
                raise InvalidInput(
                    f"{path} is a symbolic link, which is not followed", hint="copy the folder with `cp -rL` and import the copy"
                )
        for name in names:
            path = Path(folder, name)
            if not name.startswith("."):
                yield path.relative_to(root).as_posix(), path


def _file(name: str, path: Path) -> SourceFile:
    try:
        name.encode()
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidInput(f"{path} is not a regular file", hint="a dataset's folder may hold files and folders only")
            return SourceFile(name, path, status.st_size, hashlib.file_digest(stream, "sha256").hexdigest())
    except UnicodeEncodeError:
        raise InvalidInput(f"the name of {str(path)!r} is not UTF-8", hint="rename it") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None


__all__ = ["MAX_FILES", "Progress", "SourceFile", "content_name", "deliver", "new_id", "scan", "send"]
