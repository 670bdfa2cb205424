"""The service under load: response times with 1,000 queued jobs and 200 clients that follow and poll, and memory over minutes of churn.

    python -m benchmarks.load [--jobs 1000] [--clients 200] [--seconds 60] [--churn 600] [--json]

Every client has its own connection. It follows a job (a request that waits for the next event), and once a second requests the status of
another job, every twentieth time the list of all jobs. One more client submits. Churn does everything at once for a given time: submit,
cancel, remove, upload, import, append, follow, fetch. A client's time runs from the encoding of its request to the arrival of the reply.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import socket
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import zmq
import zmq.asyncio

from benchmarks.train import make_data
from offrl import Client, wire
from offrl.errors import Unknown
from offrld.embedded import embedded_daemon

POLL_S = 1.0  # between two status requests of a client
LIST_EVERY = 20  # every 20th of them is for the list of all jobs
SUBMIT_S = 0.05  # between two submissions
FOLLOW_S = 10.0  # longest wait of a request for the next event, as in `Job.follow`
PROCESSES = 2  # processes that run the clients
WARM_UP = 0.2  # share of a run that is not measured
SAMPLE_S = 1.0
INSIDE = {  # name and label of the daemon's own metrics
    "submit": ("offrld_request_seconds_bucket", 'type="submit"'), "status": ("offrld_request_seconds_bucket", 'type="get_job"'),
    "list": ("offrld_request_seconds_bucket", 'type="list_jobs"'), "event loop": ("offrld_event_loop_lag_seconds_bucket", ""),
}  # fmt: skip
GOALS = {"submit": 100.0, "status": 50.0}  # ms, 99th percentile


# --------------------------------------------------------------------------------------------------------------------- clients
class Asker:
    """A connection with several requests in flight."""

    def __init__(self, context: zmq.asyncio.Context, url: str) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(url)
        self._waiting: dict[bytes, asyncio.Future[tuple[float, bytes]]] = {}
        self._reading = asyncio.create_task(self._read())

    async def ask(self, request: wire.Request) -> tuple[float, Any]:
        """Send a request. Returns the seconds to the reply, and its result. Raises RuntimeError with the daemon's error."""
        number = b"%d" % len(self._waiting) + b"-%d" % time.perf_counter_ns()
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        await self._socket.send_multipart([number, wire.encode_request(request)])
        ended, body = await answered
        message = msgpack.unpackb(body)
        if not message["ok"]:
            raise RuntimeError(f"{type(request).__name__}: {message['error']}")
        return ended - began, message["result"]

    async def _read(self) -> None:
        while True:
            number, body = await self._socket.recv_multipart()
            self._waiting.pop(number).set_result((time.perf_counter(), body))

    def close(self) -> None:
        self._reading.cancel()
        self._socket.close()


def crowd(url: str, jobs: list[str], clients: int, seconds: float, seed: int, results: Any) -> None:
    """Run ``clients`` clients in this process; puts {"status": [s], "list": [s], "events": n} into ``results``."""
    results.put(asyncio.run(_crowd(url, jobs, clients, seconds, seed)))


async def _crowd(url: str, jobs: list[str], clients: int, seconds: float, seed: int) -> dict[str, Any]:
    context = zmq.asyncio.Context(io_threads=1)
    rng = random.Random(seed)
    totals: dict[str, Any] = {"status": [], "list": [], "events": 0}
    began = time.monotonic()
    askers = [Asker(context, url) for _ in range(clients)]
    tasks = []
    for number, asker in enumerate(askers):
        followed = jobs[0] if number % 2 == 0 else rng.choice(jobs)  # half of them the running job
        tasks.append(asyncio.create_task(_follow(asker, followed, totals)))
        tasks.append(asyncio.create_task(_poll(asker, jobs, random.Random(f"{seed} {number}"), began, seconds, totals)))
    await asyncio.sleep(seconds)
    failed = [error for task in tasks if task.done() and (error := task.exception()) is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for asker in askers:
        asker.close()
    context.destroy(linger=0)
    if failed:
        raise failed[0]
    return totals


async def _follow(asker: Asker, job: str, totals: dict[str, Any]) -> None:
    cursor = 0
    while True:
        _, part = await asker.ask(wire.GetEvents(job=job, cursor=cursor, wait_s=FOLLOW_S))
        cursor = part["cursor"]
        totals["events"] += len(part["events"])


async def _poll(asker: Asker, jobs: list[str], rng: random.Random, began: float, seconds: float, totals: dict[str, Any]) -> None:
    await asyncio.sleep(rng.uniform(0, POLL_S))
    count = rng.randrange(LIST_EVERY)
    while True:
        count += 1
        whole = count % LIST_EVERY == 0
        took, _ = await asker.ask(wire.ListJobs() if whole else wire.GetJob(job=rng.choice(jobs)))
        if time.monotonic() - began > WARM_UP * seconds:
            totals["list" if whole else "status"].append(took)
        await asyncio.sleep(POLL_S)


def submissions(url: str, seconds: float, delay: float = SUBMIT_S) -> tuple[list[float], list[str]]:
    """Submit a job every ``delay`` seconds. Returns the seconds to each reply, and the jobs."""
    times, jobs = [], []
    with Client(url) as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            jobs.append(client.submit("td3_bc", dataset="data", steps=1000, device="cpu").id)
            times.append(time.perf_counter() - began)
            time.sleep(delay)
    return times[int(WARM_UP * len(times)) :], jobs


def answer_times(client: Client, jobs: int, clients: int, seconds: float, port: int) -> dict[str, Any]:
    """Measure the response times with ``jobs`` queued jobs and ``clients`` clients."""
    running = client.submit("td3_bc", dataset="data", steps=10**9, device="cpu", runner="eager")
    next(event for event in running.follow() if event.type == "progress" and event.step > 0)
    waiting = [client.submit("td3_bc", dataset="data", steps=1000, device="cpu").id for _ in range(jobs)]
    job_ids = [running.id, *waiting]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    each = clients // PROCESSES
    processes = [context.Process(target=crowd, args=(client.url, job_ids, each, seconds, number, results)) for number in range(PROCESSES)]
    daemon = daemon_process()
    for process in processes:
        process.start()
    time.sleep(2.0)  # until the processes have loaded
    before = buckets(port)
    cpu, began = sum(daemon.cpu_times()[:2]), time.monotonic()
    submits, _ = submissions(client.url, seconds - 2.0)
    busy = (sum(daemon.cpu_times()[:2]) - cpu) / (time.monotonic() - began)
    parts = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    running.cancel()
    times = {"submit": submits, **{name: [t for part in parts for t in part[name]] for name in ("status", "list")}}
    now = buckets(port)
    return {
        "jobs": jobs,
        "clients": clients,
        "seconds": seconds,
        "events": sum(part["events"] for part in parts),
        "inside_p99_ms_at_most": {kind: inside_daemon(before[kind], now[kind]) for kind in INSIDE},
        "daemon_cpu_percent": round(100 * busy, 1),
        "ms": {name: percentiles(values) for name, values in times.items()},
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Return number, median, 99th percentile and maximum, in milliseconds."""
    array = 1000 * np.asarray(values)
    return {
        "n": len(values),
        "median": round(float(np.median(array)), 2),
        "p99": round(float(np.percentile(array, 99)), 2),
        "max": round(float(array.max()), 2),
    }


def buckets(port: int) -> dict[str, dict[float, float]]:
    """Return the histograms of `INSIDE`: upper bound in seconds -> number of requests below it."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    histograms: dict[str, dict[float, float]] = {}
    for kind, (name, label) in INSIDE.items():
        lines = [line for line in text.splitlines() if line.startswith(name + "{") and label in line]
        histograms[kind] = {float(line.split('le="')[1].split('"')[0]): float(line.rsplit(" ", 1)[1]) for line in lines}
    return histograms


def inside_daemon(before: dict[float, float], now: dict[float, float]) -> float | None:
    """Return the bound in milliseconds below which 99 % of the requests between two histograms lay; None without any.

    The daemon measures from a request's arrival to its reply, without the time of the clients and the machine.
    """
    grown = {bound: count - before.get(bound, 0.0) for bound, count in now.items()}
    total = max(grown.values(), default=0.0)
    return next((1000 * bound for bound, count in sorted(grown.items()) if count >= 0.99 * total), None) if total else None


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# ----------------------------------------------------------------------------------------------------------------------- churn
class Churn:
    """Threads that repeat everything that a client can do, and samples of the daemon's memory."""

    def __init__(self, url: str, folder: Path, seconds: float) -> None:
        self._url, self._folder, self._seconds = url, folder, seconds
        self._over = threading.Event()
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self) -> dict[str, Any]:
        """Run the threads. Returns their counts and the slope of the daemon's resident memory."""
        works = [self._cancelled, self._cancelled, self._uploaded, self._followed, self._fetched, self._listed]
        threads = [threading.Thread(target=self._again, args=(work, number)) for number, work in enumerate(works)]
        for thread in threads:
            thread.start()
        daemon = daemon_process()
        began, samples = time.monotonic(), []
        while (now := time.monotonic() - began) < self._seconds and not self.problems:
            samples.append((now, daemon.memory_info().rss / 1e6))
            time.sleep(SAMPLE_S)
        self._over.set()
        for thread in threads:
            thread.join()
        if self.problems:
            return {"seconds": round(now, 1), "done": dict(self.done), "problems": self.problems}
        late = np.array([sample for sample in samples if sample[0] >= WARM_UP * self._seconds])
        slope = slope_of(late)
        return {
            "seconds": round(now, 1),
            "done": dict(self.done),
            "problems": self.problems,
            "rss_mb_first": round(late[0, 1], 1),
            "rss_mb_last": round(late[-1, 1], 1),
            "rss_mb_max": round(float(late[:, 1].max()), 1),
            "slope_mb_per_hour": round(3600 * slope, 2),
            "slope_mb_per_hour_second_half": round(3600 * slope_of(late[len(late) // 2 :]), 2),
            "rss_mb_by_minute": [round(values, 1) for _, values in samples[:: int(60 / SAMPLE_S)]],
            "open_files": daemon.num_fds(),
            "threads": daemon.num_threads(),
        }

    def _again(self, work: Callable[[Client, random.Random], None], number: int) -> None:
        rng = random.Random(number)
        try:
            while not self._over.is_set():
                with Client(self._url) as client:  # connections are opened and closed, too
                    for _ in range(20):
                        if self._over.is_set():
                            break
                        work(client, rng)
        except Exception as error:
            self.problems.append(f"{work.__name__}: {type(error).__name__}: {error} {traceback.format_exc(limit=-3)}")

    def _cancelled(self, client: Client, rng: random.Random) -> None:
        job = client.submit("td3_bc", dataset="data", steps=1000, priority=-1)
        client.request(wire.GetEvents(job=job.id, wait_s=0.0))
        job.cancel()
        job.wait(check=False)
        job.rm()
        self.done.update(submit=1, cancel=1, rm=1, status=2, events=2)
        self._over.wait(0.05)

    def _uploaded(self, client: Client, rng: random.Random) -> None:
        path = self._folder / f"churn-{rng.randrange(4)}.npz"
        if not path.exists():
            make_data(path, discrete=False, steps=2_000)
        client.datasets.add("churn", path)
        client.datasets.append("churn", path)
        client.datasets.rm("churn")
        for job in client.jobs("import"):
            if job.last is not None and job.last.state.ended and job.last.dataset == "churn":
                job.rm()
        self.done.update(upload=2, datasets_rm=1)

    def _followed(self, client: Client, rng: random.Random) -> None:
        job = rng.choice(client.jobs("train", limit=50))
        with contextlib.suppress(Unknown):  # another thread has removed it
            client.request(wire.GetEvents(job=job.id, cursor=0, wait_s=0.2, limit=1000))
        self.done.update(events=1, list=1)
        self._over.wait(0.05)

    def _fetched(self, client: Client, rng: random.Random) -> None:
        job = next(job for job in client.jobs("train") if job.last is not None and job.last.state == "succeeded")
        job.fetch(self._folder / "policy.onnx")
        job.fetch(self._folder / "metrics.zip", "metrics")
        self.done.update(fetch=2, log=1)
        job.log()
        self._over.wait(0.2)

    def _listed(self, client: Client, rng: random.Random) -> None:
        client.overview()
        client.datasets.ls()
        client.ping()
        self.done.update(top=1, datasets_ls=1, ping=1)
        self._over.wait(0.2)


def slope_of(samples: np.ndarray) -> float:
    """Return the slope of memory samples in megabytes per second, by least squares."""
    return float(np.polyfit(samples[:, 0], samples[:, 1], 1)[0])


def churn(client: Client, folder: Path, seconds: float) -> dict[str, Any]:
    """Measure the daemon's memory over ``seconds`` of everything at once."""
    client.submit("td3_bc", dataset="data", steps=20, device="cpu", runner="eager", priority=10).wait()
    client.submit("td3_bc", dataset="data", steps=10**9, device="cpu", runner="eager", priority=5)  # runs all the time
    return Churn(client.url, folder, seconds).run()


def daemon_process() -> psutil.Process:
    """Return the process of the embedded daemon."""
    return next(process for process in psutil.Process().children() if "offrld.daemon.main" in " ".join(process.cmdline()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the response times; 0 skips them")
    parser.add_argument("--churn", type=float, default=600.0, help="duration of the churn in seconds; 0 skips it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    for name, wanted in (("load", options.seconds), ("churn", options.churn)):
        if not wanted:
            continue
        port = free_port()
        with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
            state = Path(temporary) / "state"
            state.mkdir()
            (state / "offrld.toml").write_text(f"metrics_port = {port}\n")
            with embedded_daemon(state) as client:
                result[name] = measure(client, Path(temporary), name, wanted, options, port)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
    return 1 if result.get("churn", {}).get("problems") else 0


def measure(client: Client, folder: Path, name: str, seconds: float, options: argparse.Namespace, port: int) -> dict[str, Any]:
    """Measure one of the two parts on a new daemon."""
    make_data(folder / "data.npz", discrete=False, steps=2_000)
    client.datasets.add("data", folder / "data.npz")
    if name == "churn":
        return churn(client, folder, seconds)
    return answer_times(client, options.jobs, options.clients, seconds, port)


def show(result: dict[str, Any]) -> None:
    """Print the result as lines."""
    for part, values in result.items():
        print(part)
        for name, value in values.items():
            if name != "ms":
                print(f"  {name:<26}{value}")
                continue
            for kind, figures in value.items():
                goal = f"  (goal: p99 under {GOALS[kind]:g} ms)" if kind in GOALS else ""
                times = f"median {figures['median']:>7} ms, p99 {figures['p99']:>7}, longest {figures['max']:>7}"
                print(f"  {kind:<10}{figures['n']:>8} answers: {times}{goal}")


if __name__ == "__main__":
    sys.exit(main())
