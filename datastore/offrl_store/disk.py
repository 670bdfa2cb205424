"""System calls on the files of a store: what fails is one of the package's errors, and whatever is written is written whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from offrl_store.errors import DiskFull, InvalidInput, StoreCorrupt

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
KEEP_SIZE, PUNCH_HOLE = 1, 2  # of fallocate(2)
START_WRITE = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2)


@contextlib.contextmanager
def disk_errors(path: Path, verb: str = "write") -> Iterator[None]:
    """Turns a full disk into DiskFull and a refusal of the file system into InvalidInput, naming the path."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(
                f"no space left to write {path}: {error.strerror}",
                hint="free some space and go on: every episode that was committed is kept",
            ) from error
        if error.errno in DENIED:
            raise InvalidInput(f"cannot {verb} {path}: {error.strerror}", hint="check the owner and the mode of the folder") from error
        raise


_limits: list[Callable[[int], None]] = []  # of this process, as its file descriptors are: see `limit`


def limit(reserve: Callable[[int], None] | None) -> None:
    """Ask ``reserve(bytes)`` before every later write of this process: it raises `OSError` (ENOSPC) for what is too much. None: no limit.

    A service gives its workers a share of the disk this way, and nothing between it and the system call has to pass that on.
    """
    _limits[:] = [] if reserve is None else [reserve]


def reserve(count: int) -> None:
    """Ask whether so many bytes may be written. Raises `OSError` (ENOSPC) as a full disk does."""
    for each in _limits:
        each(count)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_file(file: Path) -> int:
    """A descriptor to read and write a file of a store. Raises StoreCorrupt where it is missing."""
    try:
        return os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise StoreCorrupt(f"{file} is missing", hint="restore the file from a copy") from error


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite until everything is written."""
    data = memoryview(data)
    reserve(data.nbytes)
    while len(data):
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def write_parts(descriptor: int, parts: Sequence[Any], offset: int) -> None:
    """pwritev until all of these contiguous arrays or bytes are written, one behind the other."""
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
    """Make durable what was written to these files.

    The disk is set to work on all of them before the first is waited for: a journal then commits what it notes of them at once, instead of
    once for each file (64 files of 20 kB, as open episodes have them, on ext4: 5.8 ms in place of 12.5).
    """
    for descriptor in descriptors:
        start_writing(descriptor)
    for descriptor in descriptors:
        os.fdatasync(descriptor)


def start_writing(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Set the disk to work on what was written there (length 0: to the end), without waiting. What fails is reported by the next sync."""
    call = _function("sync_file_range", ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if call is not None:
        call(descriptor, offset, length, START_WRITE)


def punch(descriptor: int, offset: int, length: int) -> bool:
    """Give whole pages of a file back; they read as zeros then. False where the file system or the system has no holes."""
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
    """A function of the C library that takes a descriptor first; None without glibc or Linux."""
    try:
        call = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    call.argtypes, call.restype = (ctypes.c_int, *arguments), ctypes.c_int
    return call
