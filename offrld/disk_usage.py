"""How much the state folder holds. Reads the file system: call it in a thread."""

from __future__ import annotations

import os
from pathlib import Path

BLOCK = 4096


def usage(folder: Path) -> int:
    """Bytes on the disk below ``folder``: holes count nothing, a file with several names once, what vanishes meanwhile nothing."""
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
                    found = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                except OSError:
                    continue
                if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if found.st_ino in seen:
                        continue
                    seen.add(found.st_ino)
                # While ext4 allocates what was written late, a file's blocks count twice for a moment: never more than its size.
                total += min(found.st_blocks * 512, -(-found.st_size // BLOCK) * BLOCK)
    return total
