"""Memory that a training process has freed stays its own, so that the next update finds its pages in place."""

from __future__ import annotations

import ctypes
import sys

_TRIM, _MMAP = -1, -3  # parameters of glibc's mallopt
_LARGEST_FROM_HEAP = 32 << 20  # bytes: as much as glibc allows; larger blocks are mapped and given back each time
_KEPT = 1 << 30  # bytes at the end of the heap that are not given back


def keep_freed_memory() -> bool:
    """Let the C library of this process keep what is freed, up to 1 GB; whether it can (glibc).

    An update of CQL frees and asks for tensors of 8 MB: mapped anew each time they cost 7,700 page faults, a sixth of the update. For a
    process that does nothing but train: it is a setting of the whole process.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP, _LARGEST_FROM_HEAP)) and bool(mallopt(_TRIM, _KEPT))
