"""Durable files: every way in which the project writes, renames, links and syncs a file.

What a function calls durable survives a power cut once it has returned. Functions raise `OSError`; `disk_errors` turns it into an error of
the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from offrl_store.errors import DiskFull, InvalidInput, StoreCorrupt

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
NAME_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)  # of rename(2)
NO_LINK = (errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # the file system cannot link this file
COPY_BYTES = 1 << 20  # of one read
KEEP_SIZE, PUNCH_HOLE = 1, 2  # of fallocate(2)
START_WRITE = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2)


@contextlib.contextmanager
def disk_errors(path: Path, verb: str = "write") -> Iterator[None]:
    """Raise `DiskFull` for a full disk and `InvalidInput` for a refusal of the file system; both name the path."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(
                f"no space left to write {path}: {error.strerror}",
                hint="free some space and continue: every committed episode is kept",
            ) from error
        if error.errno in DENIED:
            raise InvalidInput(f"cannot {verb} {path}: {error.strerror}", hint="check the owner and the mode of the folder") from error
        raise


_limits: list[Callable[[int], None]] = []  # global state of the process, like its file descriptors: see `limit`


def limit(reserve: Callable[[int], None] | None) -> None:
    """Call ``reserve(bytes)`` before every later write of this process; None removes the limit.

    ``reserve`` raises `OSError` (ENOSPC) if the write would exceed the limit. A service gives its workers a share of the disk this way: no
    function between the service and the system call has to pass the limit on.
    """
    _limits[:] = [] if reserve is None else [reserve]


def reserve(count: int) -> None:
    """Check ``count`` bytes against the limit of this process. Raises `OSError` (ENOSPC) as a full disk does."""
    for check in _limits:
        check(count)


# ------------------------------------------------------------------------------------------------------------------------ sync
def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make the names in a folder durable."""
    _sync(path, os.O_DIRECTORY)


def sync_file(path: str | os.PathLike[str]) -> None:
    """Make the content of a closed file durable, whoever wrote it."""
    _sync(path, 0)


def sync_tree(folder: str | os.PathLike[str]) -> None:
    """Make every file and every name below a folder durable."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync_file(os.path.join(parent, name))
        sync_folder(parent)


def _sync(path: str | os.PathLike[str], flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ----------------------------------------------------------------------------------------------------------------- whole files
def read_small(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a regular file of at most ``most`` bytes. Any other file raises `OSError`; the call never waits for a pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes, *, mode: int = 0o666, new: bool = False) -> None:
    """Write a file and make its content durable, but not its name.

    Args:
        mode: permissions of a new file, before the umask.
        new: raise `FileExistsError` if the file exists; else it is overwritten. A symbolic link is never followed.
    """
    reserve(len(data))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if new else os.O_TRUNC) | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o666, shared: bool = False) -> None:
    """Write a file durably. A reader, and a machine that loses power, sees the old content or the new one.

    Args:
        mode: permissions of the new file, before the umask.
        shared: several processes may write this file at the same time. Each then uses a temporary file of its own; otherwise a process
            that dies leaves one of a fixed name, which the next write overwrites.
    """
    temporary = _temporary(path, shared)
    try:
        write_synced(temporary, data, mode=mode, new=shared)
        os.replace(temporary, path)
    except BaseException:
        _discard(temporary)
        raise
    sync_folder(path.parent)


def write_new(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file durably that appears whole or not at all. Raises `FileExistsError` if its name is taken.

    A hard link gives the file its name: a rename would replace another file. A file system without hard links first reserves the name with
    an empty file, which the rename then replaces.
    """
    temporary = _temporary(path, shared=True)
    try:
        write_synced(temporary, data, mode=mode, new=True)
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            write_synced(path, b"", mode=mode, new=True)
            try:
                os.replace(temporary, path)
            except BaseException:
                _discard(path)
                raise
        sync_folder(path.parent)
    finally:
        _discard(temporary)


def publish(temporary: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Give a finished file or folder its final name, durably. Its content must be durable already.

    A file replaces an older file, a folder replaces an empty folder. Raises `FileExistsError` if anything else has the name.
    """
    try:
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in NAME_TAKEN and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path)) from error
        raise
    sync_folder(os.path.dirname(os.path.abspath(path)))


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it if the file system cannot link it. The caller must `sync_folder` the target's folder.

    A copy appears whole, with durable content. Raises `FileNotFoundError`, `FileExistsError`.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        temporary = _temporary(target)
        try:
            copy_sparse(source, temporary)
            sync_file(temporary)
            os.replace(temporary, target)
        except BaseException:
            _discard(temporary)
            raise


def copy_sparse(source: Path, target: Path) -> int:
    """Copy a file from its start to its present end without its holes; return the length in bytes."""
    with source.open("rb") as reading, target.open("wb") as writing:
        size, offset = os.fstat(reading.fileno()).st_size, 0
        while offset < size:
            try:
                offset = os.lseek(reading.fileno(), offset, os.SEEK_DATA)
            except OSError:  # only a hole is left
                break
            block = os.pread(reading.fileno(), min(COPY_BYTES, size - offset), offset)
            if not block:  # the file was cut while it was copied
                break
            write_all(writing.fileno(), block, offset)
            offset += len(block)
        writing.truncate(size)
    return size


def _temporary(path: Path, shared: bool = False) -> Path:
    """Return a hidden name beside a file for unfinished content; backups leave out names of this form."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp" if shared else f".{path.name}.tmp")


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # the error that led here matters more
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- files of a store
def open_file(file: Path) -> int:
    """Open a file of a store for reading and writing; return the descriptor. Raises StoreCorrupt if it is missing."""
    try:
        return os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise StoreCorrupt(f"{file} is missing", hint="restore the file from a copy") from error


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    data = memoryview(data)
    reserve(data.nbytes)
    while len(data):
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def write_parts(descriptor: int, parts: Sequence[Any], offset: int) -> None:
    """Write contiguous arrays or bytes one after the other, starting at ``offset``."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    reserve(sum(view.nbytes for view in views))
    while views:
        written = os.pwritev(descriptor, views, offset)
        offset += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]


def sync_files(descriptors: Sequence[int]) -> None:
    """Make the content of open files durable.

    The disk starts on all files before the first wait, so that the journal commits once instead of once per file (64 files of 20 kB, the
    size of open episodes, on ext4: 5.8 ms instead of 12.5).
    """
    for descriptor in descriptors:
        start_writing(descriptor)
    for descriptor in descriptors:
        os.fdatasync(descriptor)


def start_writing(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Start writing a range of a file to disk without waiting (length 0: to the end). The next sync reports a failure."""
    call = _function("sync_file_range", ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if call is not None:
        call(descriptor, offset, length, START_WRITE)


def punch(descriptor: int, offset: int, length: int) -> bool:
    """Return whole pages of a file to the file system; they then read as zeros. False if the file system or the system has no holes."""
    call = _function("fallocate", ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call is None:
        return False
    arguments = (PUNCH_HOLE | KEEP_SIZE, offset, length)
    if call(descriptor, *arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code))


@cache
def _function(name: str, *arguments: Any) -> Any:
    """Return a function of the C library whose first argument is a descriptor; None if the library lacks it."""
    try:
        call = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    call.argtypes, call.restype = (ctypes.c_int, *arguments), ctypes.c_int
    return call
