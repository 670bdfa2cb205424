"""The cost of recording on a robot: processor time of a loop of 1 kHz with observations of 100 floats, with and without a recorder.

``make bench-record``. A real daemon on this machine receives episodes of five seconds while the loop runs. Two loops run in one process:
first the bare loop, which makes the observation and sleeps until the next millisecond, then the same with a recorder. The cost of recording
is the difference of their processor times, over all threads of the process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import offrl

SIZE = 100  # floats of an observation
ACTIONS = 7
EPISODE = 5_000  # steps


def loop(seconds: float, hz: float, recorder: offrl.Recorder | None) -> dict[str, float]:
    """Run steps at ``hz``. Returns the processor time of the process and of this thread, and the slowest step."""
    observation, action = np.zeros(SIZE), np.zeros(ACTIONS)
    process, thread, slowest, late = time.process_time(), time.thread_time(), 0.0, 0
    start = time.perf_counter()
    count = int(seconds * hz)
    for k in range(count):
        observation[:] = k
        if recorder is not None:
            before = time.perf_counter()
            if k % EPISODE == 0:
                recorder.begin(observation)
            recorder.step(action, 0.0, observation, truncated=k % EPISODE == EPISODE - 1)
            slowest = max(slowest, time.perf_counter() - before)
        wait = start + (k + 1) / hz - time.perf_counter()
        late += wait < 0
        if wait > 0:
            time.sleep(wait)
    return {
        "seconds": time.perf_counter() - start,
        "process_s": time.process_time() - process,
        "thread_s": time.thread_time() - thread,
        "slowest_ms": 1e3 * slowest,
        "late": late,
    }


def measure(seconds: float, hz: float) -> dict[str, float]:
    """Run both loops with their own daemon. Returns the figures."""
    with tempfile.TemporaryDirectory(prefix="offrl-", dir="/tmp") as folder:
        state = Path(folder) / "state"
        daemon = subprocess.Popen(
            [sys.executable, "-m", "offrld.daemon.main", "--state-dir", str(state)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url, end = f"ipc://{state}/run/offrld.sock", time.monotonic() + 60
            while True:
                try:
                    offrl.Client(url).close()
                    break
                except offrl.errors.NoDaemon:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.1)
            bare = loop(seconds, hz, None)
            recorder = offrl.Recorder(url, "robot", spool=Path(folder) / "spool", send_every_s=10.0)
            recorded = loop(seconds, hz, recorder)
            before = time.process_time()
            arrived = recorder.close(wait_s=60)
            recorded["process_s"] += time.process_time() - before  # sending the rest is part of the cost
            steps = int(seconds * hz)
            with offrl.Client(url) as client:
                received = client.datasets.show("robot").transitions if arrived else 0
        finally:
            daemon.terminate()
            daemon.wait(30)
    if received != steps:
        raise SystemExit(f"{received} of {steps} steps arrived")
    extra = recorded["process_s"] - bare["process_s"]
    return {
        "hz": hz,
        "steps": steps,
        "core_percent": 100 * extra / recorded["seconds"],
        "us_per_step": 1e6 * extra / steps,
        "loop_us_per_step": 1e6 * (recorded["thread_s"] - bare["thread_s"]) / steps,
        "slowest_step_ms": recorded["slowest_ms"],
        "late_steps": recorded["late"],
        "late_steps_bare": bare["late"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--hz", type=float, default=1000.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.seconds, arguments.hz)
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{found['steps']} steps of {SIZE} floats at {found['hz']:g} Hz, all of them arrived")
    print(f"  processor time of recording     {found['core_percent']:.2f} % of a core ({found['us_per_step']:.1f} us a step)")
    print(f"  of that in the loop's thread    {found['loop_us_per_step']:.1f} us a step")
    print(
        f"  slowest step                    {found['slowest_step_ms']:.2f} ms ({found['late_steps']} late; bare {found['late_steps_bare']})"
    )


if __name__ == "__main__":
    main()
