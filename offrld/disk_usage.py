"""Measure how much disk space a folder takes. This reads the file system: call it in a thread."""

from __future__ import annotations

import os
from pathlib import Path

BLOCK = 4096


def usage(folder: Path) -> int:
    """Return the bytes on disk below ``folder``.

    Holes do not count, a file with several names counts once, and files that vanish meanwhile are ignored.
    """
    total, seen = 0, set()
    stack = [os.fspath(folder)]
    while stack:
        try:
            entries = os.scandir(stack.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                except OSError:
                    continue
                if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if status.st_ino in seen:
                        continue
                    seen.add(status.st_ino)
                # While ext4 allocates delayed writes, a file's blocks count twice for a moment: count no more than its size.
                total += min(status.st_blocks * 512, -(-status.st_size // BLOCK) * BLOCK)
    return total
