"""Files that a user names: there in full or not at all, and nothing is replaced that the user did not mean to replace.

One function for everything that writes to a path of the user's (policies, exports, keys, lists)::

    with outfile.writing(path, force=force) as file:  # a binary file; what stands in it goes to `path` when the block ends
        file.write(data)
    outfile.write(path, "text or bytes", force=force)  # the same in one line

What is at the path decides:

- nothing: the file is written beside it under a hidden name, synced and renamed. An error in the block leaves nothing behind.
- a regular file: the same content is not a conflict, and the file stays untouched. Other content is `Conflict` (exit status 2), unless
  ``force``; the new file then has the old one's mode.
- a symbolic link: the file it leads to is written, the link stays. A link that leads nowhere yet gets its file.
- a pipe, a terminal, ``/dev/null``, ``/dev/stdout``, ``/dev/fd/N``: the content is written into it once it is whole, and it stays what it
  is. A pipe must have a reader within `READER_S` seconds.
- a folder, a socket, a disk: `InvalidInput`.

``-`` has no meaning here: the command line writes to its stdout itself.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from offrl.errors import Conflict, DiskFull, InvalidInput
from offrl_store.disk import publish

READER_S = 5.0  # for which a pipe without a reader is waited for: `offrl fetch --out PIPE & reader < PIPE`
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NAME = 100  # characters of the target's name in that of the temporary file: both have to fit into 255 bytes
_REFUSED = ((stat.S_ISDIR, "a folder"), (stat.S_ISSOCK, "a socket"), (stat.S_ISBLK, "a disk"))


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], *, force: bool = False, mode: int | None = None) -> Iterator[IO[bytes]]:
    """A new binary file (it can be read and sought in) whose content goes to ``path`` when the block ends without an error.

    Args:
        force: replace a regular file of other content.
        mode: permissions of a new file, by default 0666 less the umask. A file that is replaced passes on its own, unless this is given.

    Raises:
        Conflict: a regular file with other content is there, and no ``force``.
        InvalidInput: nothing can be written to the path.
        DiskFull: the disk is full.
    """
    target = place(path)
    with errors(path):
        if target is None:
            with tempfile.TemporaryFile() as file:
                yield file
                _pour(file, path)
            return
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:_NAME]}.", suffix=".part", dir=target.parent)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                if (old := _old(target)) is not None:
                    if filecmp.cmp(name, target, shallow=False):
                        return
                    if not force:
                        raise Conflict(
                            f"{path} exists and has other content",
                            hint="replace it with --force (in Python force=True), or choose another name",
                        )
                os.fchmod(descriptor, mode if mode is not None else 0o666 & ~umask() if old is None else stat.S_IMODE(old.st_mode))
                os.fsync(descriptor)
            publish(name, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def write(path: str | os.PathLike[str], content: bytes | str, *, force: bool = False, mode: int | None = None) -> Path:
    """Writes the whole content (text as UTF-8) as `writing` does; the path."""
    with writing(path, force=force, mode=mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


def place(path: str | os.PathLike[str]) -> Path | None:
    """The regular file, there or not yet, that stands for ``path`` with all links followed; None for a pipe or a device.

    What can be known before anything is made is known with it: call it before a long job. Raises `InvalidInput`.
    """
    name = os.fspath(path)
    if not name or "\0" in name:
        raise InvalidInput(f"{name!r} is not the path of a file", hint="pass the name of a file")
    with errors(path):
        try:
            kind = os.stat(path).st_mode
        except FileNotFoundError:
            kind = stat.S_IFREG
        for is_kind, what in _REFUSED:
            if is_kind(kind):
                raise InvalidInput(f"cannot write {path}: it is {what}", hint="pass the name of a file")
        if not stat.S_ISREG(kind) or _own_descriptor(path) is not None:
            return None
        target = Path(os.path.realpath(path))
        if name.endswith("/"):
            raise InvalidInput(f"cannot write {path}: it names a folder", hint="pass the name of a file")
        os.stat(target.parent / ".")
        return target


@contextlib.contextmanager
def errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the file system says about writing ``path`` into an error of one line."""
    try:
        yield
    except FileNotFoundError:
        folder = Path(os.path.realpath(path)).parent
        if folder.is_dir():  # of /proc and the like, which hold only what the kernel puts there
            raise InvalidInput(f"cannot write {path}: no file can be made in {folder}", hint="choose another place") from None
        raise InvalidInput(f"cannot write {path}: its folder does not exist", hint=f"make it: mkdir -p {folder}") from None
    except BrokenPipeError:
        raise InvalidInput(f"cannot write {path}: its reader has gone", hint="what it has read is not whole") from None
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"no space left for {path}", hint="free some space, or choose another place") from None
        raise InvalidInput(f"cannot write {path}: {error.strerror}", hint="choose another place") from None


def umask() -> int:
    """The process's umask."""
    # The only way to read it is to set it; Linux has it in /proc without that race between threads.
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1], 8) for line in status if line.startswith("Umask"))
    except (OSError, StopIteration):
        return 0o022


def _old(target: Path) -> os.stat_result | None:
    try:
        return os.stat(target)
    except FileNotFoundError:
        return None


def _own_descriptor(path: str | os.PathLike[str]) -> int | None:
    """The descriptor N of this process for which /dev/fd/N, /dev/stdout, or a link to one of these stands."""
    at = os.fspath(path)
    for _ in range(40):
        folder, name = os.path.split(at)
        folder = os.path.realpath(folder)
        if re.fullmatch(rf"/proc/{os.getpid()}(/task/\d+)?/fd", folder) and name.isdecimal():
            return int(name)
        at = os.path.join(folder, name)
        if not os.path.islink(at):
            return None
        at = os.path.join(folder, os.readlink(at))
    return None


def _pour(file: IO[bytes], path: str | os.PathLike[str]) -> None:
    """Writes a whole file into a pipe or a device."""
    file.seek(0)
    own = _own_descriptor(path)
    with os.fdopen(os.dup(own) if own is not None else _opened(path), "wb") as sink:
        shutil.copyfileobj(file, sink)


def _opened(path: str | os.PathLike[str]) -> int:
    end = time.monotonic() + READER_S
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() >= end:
                raise InvalidInput(
                    f"cannot write {path}: nobody reads from this pipe", hint="start its reader first, or pass the name of a file"
                ) from None
            time.sleep(0.05)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


__all__ = ["READER_S", "errors", "place", "umask", "write", "writing"]
