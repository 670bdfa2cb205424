"""Keep the memory that a training process frees, so that the next update finds its pages mapped."""

from __future__ import annotations

import ctypes
import sys

_TRIM, _MMAP = -1, -3  # parameters of glibc's mallopt
_LARGEST_FROM_HEAP = 32 << 20  # bytes: the maximum of glibc; larger blocks are mapped and unmapped each time
_KEPT = 1 << 30  # bytes at the end of the heap that are not returned


def keep_freed_memory() -> bool:
    """Let the C library of this process keep freed memory, up to 1 GB; returns whether it can (glibc).

    An update of CQL frees and allocates tensors of 8 MB: a mapping per tensor costs 7,700 page faults, a sixth of the update. It is a
    setting of the whole process: use it only in a process that does nothing but train.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP, _LARGEST_FROM_HEAP)) and bool(mallopt(_TRIM, _KEPT))
