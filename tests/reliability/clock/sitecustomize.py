"""Loaded by every Python process whose PYTHONPATH names this folder: the wall clock is off by the seconds in the file OFFRL_TEST_CLOCK.

`time.time` alone: a time namespace does not cover the wall clock, and setting the machine's own would hit everybody on it.
"""

import os
import time

if _file := os.environ.get("OFFRL_TEST_CLOCK"):

    def _shifted(real=time.time, file=_file) -> float:
        with open(file) as opened:
            return real() + float(opened.read())

    time.time = _shifted
