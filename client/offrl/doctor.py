"""The checks of `offrl doctor`: does everything work from here to a policy? Each check tests one thing and names the remedy.

The training check removes its dataset and jobs again, also if it fails.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offrl import __version__, wire
from offrl.client import Client, Job
from offrl.errors import NoDaemon, NotAllowed, OffrlError
from offrl.explained import build
from offrl.job import TrainSpec

PINGS = 100
SLOW_PING_S = 0.005  # median over ipc is a fifth of a millisecond
SKEW_S = (1.0, 300.0)  # between the clocks: a warning; a failure, because times in the two machines' logs no longer match
DEVICES_S = 200.0  # slightly longer than the daemon waits for its worker
TRAIN_S = 10.0
START_S = 90.0  # for the job's first update: a worker loads torch from a cold disk
STOP_S = 120.0  # for a checkpoint, for an export
ALGORITHM = "td3_bc"
ACTS = 200
SLOW_ACT_S = 0.005

See = Callable[[wire.Check], None]


def examine(client_of: Callable[[], Client], see: See, *, train: bool = True, train_s: float = TRAIN_S) -> dict[str, dict[str, str]]:
    """Make all checks and pass each to ``see`` as soon as it is done; returns the versions on both sides.

    Args:
        client_of: makes a client; called once.
        train: also run a job that trains for ``train_s`` seconds.
    """
    versions = {"client": _versions()}
    see(_local_kernels(versions["client"]))
    try:
        client = client_of()
    except OffrlError as error:
        see(_failed("daemon", error))
        return versions
    with client:
        for check in (_daemon, _round_trip, _clock):
            _guarded(check, client, see)
        for part, name in (("service", "daemon"), ("devices", "worker")):
            versions[name] = _daemon_checks(client, part, see)
        if train:
            _Training(client, see, train_s).run()
    return versions


def _daemon_checks(client: Client, part: str, see: See) -> dict[str, str]:
    """Show the daemon's own checks of one part; returns the versions that it reports."""
    try:
        checkup = client.request(build(wire.Checkup, part=part), timeout=DEVICES_S)
    except OffrlError as error:
        see(_failed(part, error))
        return {}
    for check in checkup.checks:
        see(check)
    return checkup.versions


def _guarded(check: Callable[[Client], wire.Check], client: Client, see: See) -> None:
    try:
        see(check(client))
    except OffrlError as error:
        see(_failed(check.__name__.strip("_").replace("_", " "), error))


def _failed(name: str, error: OffrlError) -> wire.Check:
    """A check that could not be made. A missing permission is not a fault of the service."""
    harmless = isinstance(error, NotAllowed) and name != "daemon"
    return wire.Check(name=name, status="warn" if harmless else "fail", message=error.message, hint=error.hint)


# ----------------------------------------------------------------------------------------------------------------- the checks
def _daemon(client: Client) -> wire.Check:
    pong = client.ping()
    message = f"offrld {pong.version} at {client.url}, up {pong.uptime_s:.0f} s, client {__version__}"
    if pong.version not in (__version__, "unknown"):
        return wire.Check(name="daemon", status="warn", message=message, hint="install the same version of offrl on both sides")
    return wire.Check(name="daemon", status="ok", message=message)


def _round_trip(client: Client) -> wire.Check:
    times = []
    for _ in range(PINGS):
        began = time.perf_counter()
        client.ping()
        times.append(time.perf_counter() - began)
    median, slow = statistics.median(times), sorted(times)[int(0.99 * len(times))]
    message = f"median {1000 * median:.2f} ms, p99 {1000 * slow:.2f} ms"
    if median > SLOW_PING_S:
        hint = "the daemon's machine is overloaded (`offrl top`), or the network is slow"
        return wire.Check(name="round trip", status="warn", message=message, hint=hint)
    return wire.Check(name="round trip", status="ok", message=message)


def _clock(client: Client) -> wire.Check:
    before = time.time()
    there = client.request(wire.Overview(limit=1, points=1)).time
    after = time.time()
    apart = max(before - there, there - after, 0.0)
    if apart < SKEW_S[0]:
        return wire.Check(name="clock", status="ok", message=f"the daemon's clock and this machine's agree within {SKEW_S[0]:g} s")
    return wire.Check(
        name="clock",
        status="warn" if apart < SKEW_S[1] else "fail",
        message=f"the daemon's clock and this machine's are {apart:.1f} s apart",
        hint="let both follow a time server: `timedatectl set-ntp true`",
    )


def _versions() -> dict[str, str]:
    import onnxruntime

    return {"offrl": __version__, "python": platform.python_version(), "numpy": np.__version__, "onnxruntime": onnxruntime.__version__}


def _local_kernels(versions: dict[str, str]) -> wire.Check:
    import warnings

    from offrl_store.kernels import kernels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = kernels().__name__.endswith("_compiled")
    versions["kernels"] = "compiled" if compiled else "NumPy"
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    if compiled:
        return wire.Check(name="client", status="ok", message=words)
    hint = "reading stores is slower without the compiled kernels: install a C compiler, then offrl"
    return wire.Check(name="client", status="warn", message=words, hint=hint)


# ----------------------------------------------------------------------------------------------------------------- a real job
def arrays(episodes: int = 20, steps: int = 50) -> dict[str, np.ndarray]:
    """A tiny dataset: a point that is pushed towards the origin."""
    random = np.random.default_rng(0)
    rows = episodes * steps
    observations = np.empty((rows, 3), np.float32)
    actions = random.uniform(-1, 1, (rows, 1)).astype(np.float32)
    for row in range(rows):
        observations[row] = random.normal(size=3) if row % steps == 0 else 0.9 * observations[row - 1] + 0.1 * actions[row - 1]
    ends = np.zeros(rows, bool)
    ends[steps - 1 :: steps] = True
    return {
        "observations": observations,
        "actions": actions,
        "rewards": -np.abs(observations).sum(1).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": ends,
    }


class _Training:
    """Import, train, pause, export and run a policy; then remove everything."""

    def __init__(self, client: Client, see: See, seconds: float) -> None:
        self._client, self._see, self._seconds = client, see, seconds
        self._dataset = f"doctor-{uuid.uuid4().hex[:8]}"
        self._job: Job | None = None
        self._exports: list[str] = []

    def run(self) -> None:
        stage = "import"
        try:
            pong = self._client.ping()
            if pong.role not in ("", "operator"):  # "": a daemon from before roles existed
                message = f"left out: {pong.caller!r} is {pong.role} and may not remove the dataset that the check imports"
                self._say("training", "warn", message, "run it with an operator's key, or as the service's user on its machine")
                return
            if (pause := self._client.queue().paused) is not None:
                self._say("training", "warn", f"left out: {pause.by} has paused the queue, so that nothing starts", "`offrl queue resume`")
                return
            began = time.monotonic()
            info = self._client.datasets.add(self._dataset, arrays())
            self._say("import", "ok", f"{info.transitions} transitions uploaded and imported in {time.monotonic() - began:.1f} s")
            stage = "training"
            job = self._train()
            if job is not None:
                stage = "policy"
                self._policy(job)
        except (OffrlError, OSError) as error:
            self._see(_failed(stage, error if isinstance(error, OffrlError) else OffrlError(str(error))))
        finally:
            self._remove()

    def _train(self) -> Job | None:
        """Train for the given time and pause; returns the job, None if it has no checkpoint."""
        spec = build(TrainSpec, algorithm=ALGORITHM, dataset=self._dataset, steps=10**9, runner="eager")
        submitted = self._client.request(build(wire.Submit, spec=spec, priority=1000, key=self._dataset))
        job = self._job = Job(self._client, submitted.job)
        began, cursor = time.monotonic(), 0
        first: tuple[float, Any] | None = None  # the first progress event and when it came
        last: Any = None
        while first is None or time.monotonic() - first[0] < self._seconds:
            part = self._client.request(wire.GetEvents(job=job.id, cursor=cursor, wait_s=1.0))
            cursor = part.cursor
            for event in part.events:
                if event.type == "progress" and event.step > 0:
                    last = event
                    first = first or (time.monotonic(), event)
            if part.ended:
                info = job.info()
                error = info.error or {}
                self._say("training", "fail", info.reason or info.state.value, error.get("hint") or f"see `offrl logs {info.job}`")
                return None
            if first is None and time.monotonic() - began > START_S:
                self._say_not_started(job)
                return None
        rate = last.updates_per_second or (last.step - first[1].step) / max(last.time - first[1].time, 1e-9)
        self._say("training", "ok", f"{rate:,.0f} updates/s of {ALGORITHM}, first update {first[0] - began:.1f} s after the submission")
        job.pause()
        end = time.monotonic() + STOP_S
        while (info := job.info()).state not in ("paused", "failed", "cancelled") and time.monotonic() < end:
            cursor = self._client.request(wire.GetEvents(job=job.id, cursor=cursor, wait_s=1.0)).cursor
        if info.state != "paused":
            self._say("training", "fail", f"the job did not pause; it is {info.state.value}: {info.reason}", "see the daemon's log")
            return None
        return job

    def _say_not_started(self, job: Job) -> None:
        info = job.info()
        if info.state == "queued":
            why = f" ({info.reason})" if info.reason else ""
            self._say(
                "training",
                "warn",
                f"not started within {START_S:.0f} s{why}: other jobs have the slots",
                "try again later, or `offrl doctor --no-train`",
            )
        else:
            message = f"no update within {START_S:.0f} s, the job is {info.state.value}"
            self._say("training", "fail", message, f"see `offrl logs {info.job}`")

    def _policy(self, job: Job) -> None:
        from offrl.policy import Policy

        artifact = self._client.request(wire.OpenArtifact(job=job.id))
        if not artifact.ready:
            self._exports.append(artifact.job)
        with tempfile.TemporaryDirectory(prefix="offrl-doctor-") as folder:
            path, artifact = job.fetch_artifact(Path(folder) / "policy.onnx")
            policy = Policy(path)
            observations = np.random.default_rng(1).normal(size=(ACTS, 3)).astype(np.float32)
            times, actions = [], []
            for observation in observations:
                began = time.perf_counter()
                actions.append(policy.act(observation))
                times.append(time.perf_counter() - began)
        wrong = [action for action in actions if np.shape(action) != (1,) or not np.all(np.abs(action) <= 1.0 + 1e-6)]
        if wrong:
            self._say("policy", "fail", f"the exported policy acts outside its bounds: {wrong[0]}", "a defect in offrl: please report it")
            return
        median = statistics.median(times)
        slow = median > SLOW_ACT_S
        message = f"{artifact.size:,} bytes of ONNX, {1e6 * median:.0f} us per action with onnxruntime here"
        self._say("policy", "warn" if slow else "ok", message, "this machine is slow or busy")

    def _remove(self) -> None:
        """Remove everything that was made, the job first; name what cannot be removed."""
        left: list[str] = []

        def attempt(what: str, action: Callable[[], Any]) -> None:
            try:
                action()
            except (OffrlError, TimeoutError) as error:
                left.append(f"{what}: {error}")

        job = self._job
        if job is not None:
            attempt(f"job {job.id}", lambda: self._end(job))
            for export in self._exports:
                attempt(f"job {export}", Job(self._client, export).rm)
            attempt(f"job {job.id}", job.rm)
        try:
            imports = [other for other in self._client.jobs("import") if other.last is not None and other.last.dataset == self._dataset]
            imported = any(dataset.name == self._dataset for dataset in self._client.datasets.ls())
        except NoDaemon as error:
            left.append(f"dataset {self._dataset}: {error}")
        else:
            for other in imports:
                attempt(f"job {other.id}", other.rm)
            if imported:
                attempt(f"dataset {self._dataset}", lambda: self._client.datasets.rm(self._dataset))
        if left:
            self._say("cleaning up", "warn", "; ".join(left), "remove it with `offrl rm` and `offrl datasets rm`")

    @staticmethod
    def _end(job: Job) -> None:
        if not job.info().state.ended:
            job.cancel()
            job.wait(STOP_S, check=False)

    def _say(self, name: str, status: Literal["ok", "warn", "fail"], message: str, hint: str = "") -> None:
        self._see(wire.Check(name=name, status=status, message=message, hint=hint if status != "ok" else ""))
