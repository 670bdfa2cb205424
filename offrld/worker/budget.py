"""Limits of a worker on disk and memory.

`uploads.keep_free_bytes` of the disk stay free, the state folder stays below `disk.quota_bytes`, and a job that decodes files stays within
`workers.import_memory_mb`.

The disk is checked before each write of a store, a checkpoint, a policy, a download and an exported file (`offrl_store.disk.reserve`): a
small file that unpacks to terabytes ends its own import and nothing else. Lines of logs and metrics are not counted; the next checkpoint
sees them.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path
from typing import Any

from offrl.job import KINDS
from offrl_store import disk
from offrld.disk_usage import usage
from offrld.state.folder import StateFolder

STEP = 4 << 20  # most bytes between two looks at the file system, which show what others have written
SHARE = 4  # a worker takes a quarter of what is left, then looks again: others may be writing too
FINEST = 1 << 20  # least bytes between two measurements of the state folder


class Budget:
    """The limits of one process. `reserve` is safe to call from several threads."""

    def __init__(self, folder: Path, keep_free: int, quota: int) -> None:
        self._folder, self._keep_free, self._quota = folder, keep_free, quota
        self._lock = threading.Lock()
        self._seen = 0  # bytes that the last look at the file system allows
        self._granted = 0  # bytes that the last measurement of the state folder allows

    def reserve(self, count: int) -> None:
        """Take ``count`` bytes of what is left. Raises `OSError` (ENOSPC), as the write itself does on a full disk."""
        with self._lock:
            if self._keep_free:
                if count > self._seen:
                    self._look(count)
                self._seen -= count
            if self._quota:
                if count > self._granted:
                    self._measure(count)
                self._granted -= count

    def _look(self, count: int) -> None:
        status = os.statvfs(self._folder)
        left = status.f_bavail * status.f_frsize - self._keep_free
        if count > left:
            free = left + self._keep_free
            raise OSError(errno.ENOSPC, f"{free} bytes are free, of which uploads.keep_free_bytes = {self._keep_free} must stay free")
        self._seen = max(count, min(left // SHARE, STEP))

    def _measure(self, count: int) -> None:
        used = usage(self._folder)
        left = self._quota - used
        if count > left:
            raise OSError(errno.ENOSPC, f"the state folder holds {used} bytes; disk.quota_bytes = {self._quota} is the limit")
        self._granted = max(count, min(left, max(left // SHARE, FINEST)))


def limit_memory(start: dict[str, Any]) -> None:
    """Limit the memory of a job that decodes a submitter's file to ``workers.import_memory_mb``; beyond it raises `MemoryError`."""
    limit = int(start.get("import_memory_mb") or 0) << 20
    if limit and KINDS[start["spec"]["kind"]].decodes:
        _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def limit_disk(start: dict[str, Any], state: StateFolder) -> None:
    """Apply the disk limits of the start message to this process."""
    keep_free, quota = int(start.get("keep_free_bytes") or 0), int(start.get("quota_bytes") or 0)
    if keep_free or quota:
        disk.limit(Budget(state.root, keep_free, quota).reserve)
