"""The kill harness: SIGKILL to the daemon and to its workers at random moments while clients submit, upload, append, cancel and remove.

    python tests/reliability/kills.py --daemon-kills 50 --worker-kills 20 --seed 0 [--json]

Afterwards everything that was acknowledged is compared with what is there: jobs, datasets, appended episodes, cancellations, removals, the
final weights of every job with those of an undisturbed run, and no process may be left. The exit status is 0 where nothing was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from actors import BASE, STREAM, Canceller, Follower, Remover, Shepherd, Storm, Trainer, Uploader
from living_service import Service, short_folder, until, with_number
from workload import Kind, differences, kinds, source, weights

from offrl import Client, wire
from offrl.errors import Unknown
from offrl_store import EpisodeStore

SETTINGS = """
[slots]
train = {train}
light = 2
[devices]
cards = []
threads = 4
[workers]
spare = {spare}
[retry]
first_s = 0.2
factor = 2
[grace]
cancel_s = 5
stop_s = 5
"""
ENVIRONMENT = {"OFFRLD_CHECKPOINT_SECONDS": "0.2", "OMP_NUM_THREADS": "1"}  # instead of 60: jobs live for seconds
# How long after a kill the next one comes, with its share: while the daemon starts and recovers, while workers load, amid training.
MOMENTS = ((0.5, 0.0, 0.6), (0.2, 0.6, 3.0), (0.3, 3.0, 14.0))  # share, from, to [s]
AT_ONCE = 0.15  # share of the daemon's deaths that take all its processes with them, as a power cut does
DRAIN_S = 900.0
GONE_S = 30.0  # for workers to notice that their daemon is dead


@dataclass
class Report:
    """The events of a storm, and every broken promise."""

    daemon_kills: int = 0
    at_once: int = 0  # of these: together with all workers
    worker_kills: int = 0
    of_workers: Counter[str] = field(default_factory=Counter)  # what the killed worker was: train, import, spare, ...
    seconds: float = 0.0
    jobs: int = 0  # acknowledged train jobs whose weights were compared
    attempts: Counter[int] = field(default_factory=Counter)  # attempts that they took -> jobs
    resumed: int = 0  # of these: that went on from a checkpoint at least once
    by_itself: int = 0  # jobs queued again after their worker was killed, by the daemon
    retried: int = 0  # by hand, after as many kills in a row as the daemon allows
    repeated: int = 0
    imports: int = 0
    datasets: int = 0
    appends: int = 0
    cancels: int = 0
    removals: int = 0
    events: int = 0  # seen by followers
    resumed_uploads: int = 0
    problems: list[str] = field(default_factory=list)

    def check(self, good: bool, text: str) -> None:
        if not good:
            self.problems.append(text)


Weights = dict[str, dict[str, np.ndarray]]  # kind of job -> tensors of its last checkpoint


def undisturbed(folder: Path, kinds: tuple[Kind, ...]) -> Weights:
    """Return the final weights of each kind of job in an undisturbed service."""
    service = Service(folder / "quiet", SETTINGS.format(spare=0, train=2), ENVIRONMENT)
    try:
        with service.start() as client:
            client.algos()
            client.datasets.add(BASE, source(folder, 0))
            jobs = {kind.name: client.request(wire.Submit(spec=kind.spec(BASE))).job for kind in kinds}
            for job in jobs.values():
                client.job(job).wait(DRAIN_S)
            found = {name: weights(client, job, folder) for name, job in jobs.items()}
        service.stop()
        return found
    finally:
        service.close()


def storm(
    folder: Path,
    kinds: tuple[Kind, ...],
    expected: Weights,
    daemon_kills: int,
    worker_kills: int,
    seed: int,
    pace: float = 1.0,
    crowd: int = 2,
) -> Report:
    """Kill this number of daemons and workers; return the outcome of everything.

    Args:
        expected: of `undisturbed`, in the same folder.
        pace: stretches the time between two kills.
        crowd: jobs that train at once, uploaders, and the root of the number of unfinished jobs.
    """
    report, moments = Report(), random.Random(seed)
    service = Service(folder, SETTINGS.format(spare=seed % 2, train=crowd), ENVIRONMENT)
    shutil.copytree(folder / "quiet" / "state" / "cache", service.state / "cache")  # the list of algorithms, which takes seconds to make
    shared = Storm(service.url, folder, seed, kinds, outstanding=crowd * crowd)
    began = time.monotonic()
    try:
        with service.start() as client:
            client.datasets.add(BASE, source(folder, 0))
            client.datasets.add(STREAM, source(folder, 1, 2))
        actors = [
            Trainer(shared),
            Follower(shared),
            Follower(shared, 1),
            Canceller(shared),
            *(Uploader(shared, number) for number in range(crowd)),
            Remover(shared),
            Shepherd(shared),
        ]
        for actor in actors:
            actor.start()
        _kill(service, shared, report, moments, daemon_kills, worker_kills, pace)
        shepherd = actors[-1]
        _let_end(service, shared, actors[:-1], shepherd)
        with service.client() as client:
            verify(client, service.state, folder, shared, expected, report)
        _orphans(service, shared, report)
    except AssertionError as error:
        report.problems.append(str(error))
    finally:
        shared.over.set()
        service.close()
    report.problems += shared.ledger.problems
    lines = service.log.read_text(errors="replace").splitlines()
    report.problems += [f"the daemon's log: {line}" for line in lines if "Traceback" in line or " error " in line.lower()[:60]]
    report.seconds = time.monotonic() - began
    return report


def _kill(
    service: Service, shared: Storm, report: Report, moments: random.Random, daemon_kills: int, worker_kills: int, pace: float
) -> None:
    """Kill processes in random order at random moments; restart the daemon at once."""
    victims = ["daemon"] * daemon_kills + ["worker"] * worker_kills
    moments.shuffle(victims)
    for victim in victims:
        [(_, low, high)] = moments.choices(MOMENTS, [share for share, _, _ in MOMENTS])
        time.sleep(pace * moments.uniform(low, high))
        if shared.over.is_set():
            return
        assert service.process is not None and service.process.poll() is None, "the daemon ended by itself"
        if victim == "daemon":
            report.daemon_kills += 1
            workers = service.workers() if moments.random() < AT_ONCE else {}
            report.at_once += bool(workers)
            service.kill()
            for pid in workers:
                with_number(pid, signal.SIGKILL)
            service.launch()
            continue
        workers = until(service.workers, "a worker that can be killed")
        pid = moments.choice(sorted(workers))
        kind = _kind(service.state, workers[pid])
        if with_number(pid, signal.SIGKILL):
            report.worker_kills += 1
            report.of_workers[kind] += 1


def _kind(state: Path, name: str) -> str:
    """Return what a worker is doing."""
    if name.startswith("spare-"):
        note = state / "run" / "workers" / name
        return "train" if note.exists() else "spare"
    run = state / "jobs" / name
    if (run / "checkpoints").is_dir():
        return "train"
    return "train (loading)" if run.is_dir() and not (run / "events.jsonl").exists() else "import" if run.is_dir() else name


def _let_end(service: Service, shared: Storm, actors: list[Any], shepherd: Shepherd) -> None:
    """After the storm, let the actors finish their work and every job end."""
    with service.client() as client:
        shared.outstanding = 0  # no further jobs
        early = shared.over.is_set()
        quiet = Storm(shared.url, shared.folder, shared.seed, shared.kinds)
        quiet.ledger = shared.ledger
        shared.over.set()
        watch = Shepherd(quiet, 1)
        watch.start()
        try:
            for actor in (*actors, shepherd):
                actor.join(120.0)
                if actor.is_alive():
                    shared.ledger.problems.append(f"{actor.name} did not come to its end")
            for job in shared.ledger.cancelled:
                if job not in shared.ledger.removed_jobs:
                    until(lambda job=job: client.job(job).last.state.ended, f"the end of the cancelled job {job}")

            def ended() -> bool:
                cancel = [info for info in (job.last for job in client.jobs("train")) if info.steps > 10**8 and not info.state.ended]
                for info in cancel:  # submitted by the canceller just before the end
                    client.job(info.job).cancel()
                return quiet.over.is_set() or all(job.last.state.ended and job.last.state != "failed" for job in client.jobs("all"))

            if not early:
                until(ended, "the end of all jobs", DRAIN_S)
        finally:
            quiet.over.set()
            watch.join(60.0)


def verify(client: Client, state: Path, folder: Path, shared: Storm, expected: Weights, report: Report) -> None:
    """Compare everything that was acknowledged with the service's state."""
    ledger = shared.ledger
    there = {job.id: job.last for job in client.jobs("all", limit=10_000)}
    report.retried, report.repeated, report.resumed_uploads = ledger.retried, ledger.repeated, ledger.resumed_uploads
    for key, (job, kind) in ledger.jobs.items():
        report.jobs += 1
        if job not in there:
            report.problems.append(f"job {job} ({key}) was acknowledged and is gone")
            continue
        info = there[job]
        report.attempts[info.attempt] += 1
        report.resumed += "resumed from the checkpoint" in client.job(job).log()
        again = client.request(wire.Submit(spec=kind.spec(BASE), key=key))
        report.check((again.job, again.created) == (job, False), f"the key {key} of job {job} makes another job now: {again}")
        if info.state != "succeeded":
            report.problems.append(f"job {job} is {info.state}: {info.reason}")
            continue
        wrong = differences(weights(client, job, folder), expected[kind.name])
        report.check(not wrong, f"job {job} ({kind.name}, {info.attempt} attempts) has other weights than an undisturbed run: {wrong[:5]}")
        events = list(client.job(job).follow())
        report.check([event.n for event in events] == list(range(1, len(events) + 1)), f"job {job}: its events have holes")
        ends = [event.n for event in events if event.type == "state" and event.state == "succeeded"]
        report.check(ends == [len(events)], f"job {job}: it has succeeded at the events {ends} of {len(events)}")
        seen = ledger.seen.get(job, [])
        report.events += len(seen)
        report.check(seen == events[: len(seen)], f"job {job}: a follower saw other events than there are")
    for job in there:
        report.by_itself += sum("attempt" in event.message for event in client.job(job).follow() if event.state == "queued")
    for key, job in ledger.imports.items():
        report.imports += 1
        report.check(job in there, f"import {job} ({key}) was acknowledged and is gone")
    _verify_datasets(client, state, shared, report)
    for job, attempt in ledger.cancelled.items():
        report.cancels += 1
        if job in ledger.removed_jobs:
            continue
        report.check(job in there, f"the cancelled job {job} is gone")
        if job in there:
            info = there[job]
            report.check(info.state == "cancelled", f"job {job} was cancelled, and is {info.state}: {info.reason}")
            report.check(info.attempt == attempt, f"job {job} was cancelled in attempt {attempt}, and attempt {info.attempt} was started")
    for job in ledger.removed_jobs:
        report.removals += 1
        report.check(job not in there and not (state / "jobs" / job).exists(), f"job {job} was removed and is there")


def _verify_datasets(client: Client, state: Path, shared: Storm, report: Report) -> None:
    ledger = shared.ledger
    for name, number in ledger.datasets.items():
        if name in ledger.removed_datasets:
            report.removals += 1
            try:
                report.problems.append(f"dataset {name} was removed and is there: {client.datasets.show(name).episodes} episodes")
            except Unknown:
                report.check(not (state / "datasets" / name).exists(), f"the folder of the removed dataset {name} is there")
            continue
        report.datasets += 1
        rewards = _rewards(state, name)
        report.check(rewards == [number] * 8, f"dataset {name} has the rewards {rewards}")
        shown = client.datasets.show(name)
        report.check((shown.episodes, shown.returns["mean"]) == (8, 25.0 * number), f"dataset {name} is shown as {shown}")
    rewards = _rewards(state, STREAM)
    report.check(rewards[:2] == [1, 1], f"dataset {STREAM} begins with {rewards[:4]}")
    counts = Counter(rewards[2:])
    for number in ledger.appended:
        report.appends += 1
        report.check(counts.pop(number, 0) == 2, f"the two episodes of append {number} are not there once: {rewards}")
    for number, count in counts.items():  # asked for, and the end was not seen
        report.check(number in ledger.append_asked and count == 2, f"{count} episodes of append {number} are in {STREAM}")
    pairs = list(zip(rewards[::2], rewards[1::2], strict=False))
    report.check(all(a == b for a, b in pairs), f"episodes of two appends are mixed in {STREAM}: {rewards}")
    left = [entry.name for entry in (state / "datasets").iterdir() if entry.name.startswith(".")]
    report.check(not left, f"half-made datasets are left: {left}")


def _rewards(state: Path, name: str) -> list[int]:
    """Return the number in the rewards of each episode, which identifies its source; -1 if they differ."""
    store = EpisodeStore.open(state / "datasets" / name)
    found = []
    for episode in store.episodes:
        values = np.unique(np.asarray(episode.reward))
        found.append(int(values[0]) if len(values) == 1 and len(episode.reward) == 25 else -1)
    return found


def _orphans(service: Service, shared: Storm, report: Report) -> None:
    """Kill the daemon once more while workers run; check that all of them end by themselves."""
    with service.client() as client:
        job = client.request(wire.Submit(spec=shared.kinds[0].spec(BASE, 10**9))).job
        until(lambda: client.job(job).last.step > 0, "a job that runs")
    service.kill()
    deadline = time.monotonic() + GONE_S
    while (left := service.workers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    report.check(not left, f"processes that outlive their daemon by {GONE_S:g} s: {left}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--daemon-kills", type=int, default=50)
    parser.add_argument("--worker-kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", type=float, default=1.0, help="stretches the time between two kills, for a busy machine")
    parser.add_argument("--scale", type=int, default=3, help="how many times as long the jobs are as in the quick form")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with short_folder() as temporary:
        folder = options.keep or temporary
        folder.mkdir(parents=True, exist_ok=True)
        jobs = kinds(scale=options.scale)
        expected = undisturbed(folder, jobs)
        report = storm(folder, jobs, expected, options.daemon_kills, options.worker_kills, options.seed, options.pace)
    if options.json:
        print(json.dumps(vars(report)))
    else:
        for name, value in vars(report).items():
            print(f"{name:<18}{dict(value) if isinstance(value, Counter) else value}" if name != "problems" else "", end="\n")
        print("\n".join(report.problems) or "no promise was broken")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
