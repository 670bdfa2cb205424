"""Latency of the service: submit, start of the command line, first update of a job, idle daemon.

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
from offrl import Client
from offrld.embedded import embedded_daemon

REPEATS = 9
IDLE_S = 10.0
SPARE_S = 120.0  # longest time until a spare worker has loaded everything


def seconds(command: list[str], **environment: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
    return time.perf_counter() - start


def spare_worker() -> psutil.Process | None:
    """Wait until the daemon's spare worker has loaded everything, when it no longer uses CPU time. Returns it; None if there is none."""
    deadline = time.monotonic() + SPARE_S
    before: tuple[int, float] = (0, 0.0)
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            # A worker that has a job works in the job's folder.
            if "--spare" in process.cmdline() and Path(process.cwd()).parent.name != "jobs":
                now = (process.pid, sum(process.cpu_times()[:2]))
                if now == before and now[1] > 0.5:
                    return process
                before = now
        time.sleep(1.0)
    return None


def first_updates(client: Client, *, spare: bool) -> float:
    """Measure the median seconds from submission to the first update, of three consecutive jobs.

    ``spare``: wait for a spare worker first.
    """
    times = []
    for _ in range(3):
        if spare:
            spare_worker()
        start = time.time()
        job = client.submit("td3_bc", dataset="data", steps=100_000, device="cpu")
        times.append(next(event.time for event in job.follow() if event.type == "progress" and event.step > 0) - start)
        job.cancel()
        job.wait(check=False)
    return statistics.median(times)


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
        result["first update after submission, s"] = first_updates(client, spare=True)
        blocker = client.submit("td3_bc", dataset="data", steps=10**9)  # blocks the jobs that are submitted next
        blocker.pause()
        submits = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            client.submit("td3_bc", dataset="data", steps=1000, after=[blocker.id])
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
        spare = spare_worker()
        if spare is not None:
            before = sum(spare.cpu_times()[:2])
            time.sleep(IDLE_S)
            result["spare worker, % of a core"] = 100 * (sum(spare.cpu_times()[:2]) - before) / IDLE_S
            result["spare worker, MB"] = spare.memory_info().rss / 1e6
            result["spare worker, MB not shared"] = spare.memory_full_info().uss / 1e6
    with tempfile.TemporaryDirectory() as folder:  # without a spare worker
        state = Path(folder) / "state"
        state.mkdir()
        (state / "offrld.toml").write_text("[workers]\nspare = 0\n")
        with embedded_daemon(state) as client:
            make_data(Path(folder) / "data.npz", discrete=False, steps=20_000)
            client.datasets.add("data", Path(folder) / "data.npz")
            result["without a spare worker, s"] = first_updates(client, spare=False)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<36}{value:>10.3f}")


if __name__ == "__main__":
    main()
