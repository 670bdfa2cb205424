"""How quickly the service answers: submit, the command line's start, the first update of a job, the idle daemon.

    python -m benchmarks.latency [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.train import make_data
from offrld.embedded import embedded_daemon

REPEATS = 9
IDLE_S = 10.0


def seconds(command: list[str], **environment: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    python = sys.executable
    bare = statistics.median(seconds([python, "-c", "pass"]) for _ in range(REPEATS))
    result = {"import offrl, s": statistics.median(seconds([python, "-c", "import offrl"]) for _ in range(REPEATS)) - bare}
    with tempfile.TemporaryDirectory() as folder, embedded_daemon() as client:
        make_data(Path(folder) / "data.npz", discrete=False, steps=20_000)
        client.datasets.add("data", Path(folder) / "data.npz")
        first = []
        for _ in range(3):
            start = time.time()
            job = client.submit("td3_bc", dataset="data", steps=100_000)
            first.append(next(event.time for event in job.follow() if event.type == "progress" and event.step > 0) - start)
            job.cancel()
            job.wait(check=False)
        result["first update after submission, s"] = statistics.median(first)
        blocker = client.submit("td3_bc", dataset="data", steps=10**9)   # so that what is submitted now waits
        blocker.pause()
        submits = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            job = client.submit("td3_bc", dataset="data", steps=1000, after=[blocker.id])
            submits.append(time.perf_counter() - start)
        result["Client.submit, ms"] = 1000 * statistics.median(submits)
        command = [python, "-m", "offrl.cli", "submit", "td3_bc", "--dataset", "data", "--steps", "1000", "--after", blocker.id]
        result["offrl submit, whole process, s"] = statistics.median(seconds(command, OFFRL_URL=client.url) for _ in range(REPEATS))
        daemon = psutil.Process(next(p.pid for p in psutil.Process().children() if "offrld.daemon.main" in " ".join(p.cmdline())))
        time.sleep(2.0)
        before = daemon.cpu_times()
        time.sleep(IDLE_S)
        after = daemon.cpu_times()
        result["idle daemon, % of a core"] = 100 * (after.user + after.system - before.user - before.system) / IDLE_S
        result["idle daemon, MB"] = daemon.memory_info().rss / 1e6
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<36}{value:>10.3f}")


if __name__ == "__main__":
    main()
