"""A training process keeps freed memory for reuse."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from offrld.engine.updates.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        arrays = [np.ones(1 << 23, np.uint8) for _ in range(8)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed_memory() if sys.argv[1] == "keep" else False
faults()
print(kept, faults())
"""


def counted(how: str) -> tuple[str, int]:
    kept, faults = subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True).stdout.split()
    return kept, int(faults)


def test_freed_memory_is_reused_without_page_faults():
    kept, faults = counted("keep")
    if kept != "True":
        pytest.skip("this C library has no mallopt")
    assert faults < counted("leave")[1] / 10
