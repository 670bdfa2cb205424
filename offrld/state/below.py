"""Untrusted paths below a folder: check that they cannot leave it, and open them without following a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from offrl.errors import InvalidInput


def relative_parts(path: str) -> tuple[str, ...]:
    """Return the parts of a relative path that stays in its folder. Raises `InvalidInput` for an absolute path, "..", or an odd name."""
    parts = tuple(path.split("/"))
    for part in parts:
        if part in ("", ".", "..") or len(os.fsencode(part)) > 255 or "\\" in part or any(ord(c) < 32 or ord(c) == 127 for c in part):
            raise InvalidInput(f"{path[:200]!r} is not an allowed path", hint="use a relative path with '/' between its parts and no '..'")
    return parts


def open_below(root: Path, path: str, flags: int = os.O_RDONLY) -> int:
    """Open the regular file ``path`` below ``root`` without following a symbolic link in any part of it. Raises `OSError`."""
    *folders, name = relative_parts(path)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(22, "not a regular file")
    return descriptor
