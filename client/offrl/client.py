"""The client: one method per request of the daemon, and `Job`, a job that is followed and whose policy is fetched."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from offrl import address, wire
from offrl.connection import Connection, ConnectionLost
from offrl.datasets import Datasets
from offrl.errors import InvalidInput, JobFailed, OffrlError, Unknown, from_wire, nearest
from offrl.explained import as_name, explained
from offrl.job import CollectSpec, TrainOnlineSpec, TrainSpec

LONG_POLL_S = 10.0  # how long the daemon may hold a request for the next event
PRUNE_S = 600.0  # for a part of it: run folders may be large
EXPORTS = 5  # in a row, for one fetch: the newest step of a running job moves on while its policy is made
FETCH_KINDS = ("onnx", "torchscript", "checkpoint", "metrics")

Model = TypeVar("Model", bound=BaseModel)


class Client:
    """A connection to a daemon. Close it, or use it as a context manager; threads may share it. A process that was forked, or that gets it
    pickled, makes a connection of its own.

    Args:
        url: ``ipc:///path/of/a.sock`` or ``tcp://HOST:PORT``; by default OFFRL_URL, else the socket below OFFRLD_STATE_DIR, else the user's
            daemon, else the machine's.
        timeout: seconds to wait for one answer.
        patience: seconds to wait for a daemon that goes away while it is being used, so that following a job survives its restart.
        lost: called with True when the daemon has gone away and is waited for, with False when it is back.
        key: the key file for a tcp address; by default OFFRL_KEY, else HOST.key or offrl.key in ``~/.config/offrl``. "": none.

    Raises:
        NoDaemon: nobody is there (found out at once).
        NotAllowed: the socket belongs to somebody else, or the daemon does not let the key in; (from every method) the key's role is not
            enough.
        InvalidInput: ``url`` is no address.
        ProtocolMismatch: (from every method) the daemon is of another version.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float = 60.0,
        patience: float = 60.0,
        key: str | os.PathLike[str] | None = None,
        lost: Callable[[bool], None] | None = None,
    ) -> None:
        self.url = address.resolve(url)
        self._timeout, self._patience, self._key, self._lost = timeout, patience, key, lost
        self._connection = self.connect()
        self.datasets = Datasets(self)

    # ------------------------------------------------------------------------------------------------------------- the daemon
    def ping(self) -> wire.Pong:
        """The daemon's version, protocol, state folder and uptime."""
        return self.request(wire.Ping())

    def overview(self, *, limit: int = 50, metric: str | None = None, points: int = 60) -> wire.OverviewInfo:
        """The service at one glance: counts, the jobs that matter now, curves of the running ones, the machine.

        Args:
            limit: jobs at most.
            metric: whose curve is wanted, also ``updates_per_second``; by default each job's most telling one.
            points: of a curve, at most.
        """
        return self.request(build(wire.Overview, limit=limit, metric=metric, points=points))

    def settings(self) -> wire.SettingList:
        """Every setting of the daemon, with where its value comes from."""
        return self.request(wire.GetSettings())

    def audit(self, since: float = 0.0) -> Iterator[dict[str, Any]]:
        """The daemon's audit log from the time ``since`` (seconds since the epoch) on, oldest first. For operators: `NotAllowed`."""
        after, more = 0, True
        while more:
            part = self.request(build(wire.ReadAudit, since=since, after=after))
            yield from part.entries
            more = part.more and bool(part.entries)
            after = part.entries[-1]["n"] if part.entries else after

    def algos(self, name: str | None = None) -> Any:
        """What can be trained: a list of {name, summary, actions, presets, config}, or the one of ``name``.

        Raises:
            Unknown: there is no such algorithm.
            InvalidInput: an installed package has it, but it cannot be used.
        """
        reply = self.request(wire.Algorithms())
        if name is None:
            return reply.algorithms
        found = {algorithm["name"]: algorithm for algorithm in reply.algorithms}
        for problem in reply.problems:
            if problem.startswith(f"{name}: "):
                raise InvalidInput(f"algorithm {problem}", hint="repair its package and restart the daemon")
        if name not in found:
            raise Unknown(f"no algorithm {name!r}", hint=nearest(name, list(found)))
        return found[name]

    def algo_problems(self) -> list[str]:
        """One line for each algorithm of the daemon's installed packages that cannot be used: ``name: what is wrong``."""
        return self.request(wire.Algorithms()).problems

    def submit(
        self,
        algorithm: str,
        *,
        dataset: str | os.PathLike[str],
        steps: int | None = None,
        seed: int | None = None,
        seeds: Iterable[int] | None = None,
        config: Mapping[str, Any] | None = None,
        preset: str | None = None,
        eval_env: str | None = None,
        eval_episodes: int | None = None,
        eval_every: int | None = None,
        early_stop: int | None = None,
        early_stop_delta: float | None = None,
        validation: float | None = None,
        runner: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        gpu_memory_mb: int | None = None,
        start: str | Job | None = None,
        transfer: str | None = None,
        fresh_optimizer: bool | None = None,
        priority: int = 0,
        after: str | Job | Sequence[str | Job] = (),
        at: datetime | float | None = None,
        delay_s: float | None = None,
        key: str | None = None,
    ) -> Job:
        """Queue a train job and return at once. What is left out takes the daemon's default (`offrl.job.TrainSpec`).

        Args:
            algorithm: a name of `algos`.
            dataset: a dataset's name, or the path of a file or folder, which is imported first (once: its name is made from its content).
                A dataset of that name comes before a file of that name; ``./NAME`` is always the file.
            steps: gradient updates.
            seed, seeds: one or several, trained side by side in one job.
            config: settings of the algorithm by dotted name (``critic_encoder.units``); nested dicts are flattened.
            eval_env: gymnasium id; every seed's policy is evaluated in it at the end, and every ``eval_every`` updates if given.
            early_stop: end once so many evaluations in a row have brought no seed a mean return better than its best so far, by more than
                ``early_stop_delta`` (0). The best one's policy is `Job.fetch` with ``best``.
            validation: share of the episodes held out for validation metrics.
            start: a job whose networks this one starts from (``JOB``, or ``JOB:SEED``; otherwise each seed takes its own of that job, or
                else its first); it is waited for. Observations and actions are scaled as in that job.
            transfer: which of them: ``all``, ``policy`` or ``critics`` (critic, q and value).
            fresh_optimizer: the optimisers begin anew.
            after: jobs that must succeed first.
            at: it does not start before this time (a datetime, or seconds since the epoch).
            delay_s: or not before so many seconds from now, by the daemon's clock.
            key: the same key gives the same job, however often it is submitted. One is made up if none is given, so that a lost answer
                does not lead to a second job.

        Raises:
            Unknown: of the algorithm, a setting, the dataset, the environment (the hint names the nearest known one).
            InvalidInput: a value of the wrong type or out of range, a bad file, an algorithm that does not fit the data.
        """
        if seed is not None and seeds is not None:
            raise InvalidInput(f"both seed={seed} and seeds={seeds!r} were given", hint="give one of them")
        chosen = [seed] if seed is not None else None if seeds is None else list(seeds)
        given = {
            "algorithm": algorithm,
            "steps": steps,
            "seeds": chosen,
            "config": None if config is None else flat(config),
            "preset": preset,
            "eval_env": eval_env,
            "eval_episodes": eval_episodes,
            "eval_every": eval_every,
            "early_stop": early_stop,
            "early_stop_delta": early_stop_delta,
            "validation": validation,
            "runner": runner,
            "device": device,
            "threads": threads,
            "start": start.id if isinstance(start, Job) else start,
            "transfer": transfer,
            "fresh_optimizer": fresh_optimizer,
            "gpu_memory_mb": gpu_memory_mb,
        }
        given = {name: value for name, value in given.items() if value is not None}
        build(TrainSpec, **given, dataset="not-known-yet")  # before anything is uploaded
        spec = build(TrainSpec, **given, dataset=self.datasets.resolve(dataset))
        befores = [after] if isinstance(after, str | Job) else list(after)
        ids = [before.id if isinstance(before, Job) else before for before in befores]
        start_at = at.timestamp() if isinstance(at, datetime) else at
        request = build(
            wire.Submit,
            spec=spec,
            priority=priority,
            after=ids,
            key=f"auto-{uuid.uuid4().hex}" if key is None else key,
            start_at=start_at,
            start_in_s=delay_s,
        )
        return Job(self, self.request(request).job)

    def rerun(self, job: str | Job, *, into: str | None = None, priority: int = 0, key: str | None = None) -> Job:
        """Repeat a train or train-online job with what its run folder says: the settings that it really had, its seeds, the snapshot of its
        dataset (also if that has grown), the checkpoints that it took from other jobs. On the CPU with the same versions the result has the
        same bits.

        Args:
            into: a new dataset for what a train-online job gathers; needed where the first one kept its steps.

        Raises:
            InvalidInput: it is no job that trains, or ``into`` is missing.
            Conflict: there is a dataset ``into``.
            Unknown: there is no such job, or its dataset, its algorithm or its environment is not there any more.
        """
        name = job.id if isinstance(job, Job) else job
        request = build(wire.Rerun, job=name, into=into, priority=priority, key=f"auto-{uuid.uuid4().hex}" if key is None else key)
        return Job(self, self.request(request).job)

    def prune(self, *, jobs: int | None = None, days: float | None = None, dry_run: bool = False) -> list[wire.PrunedJob]:
        """Delete the ended jobs that are not kept, and tell which. For operators: `NotAllowed`.

        Args:
            jobs: ended jobs of each kind and owner that are kept (0: any number); by default as the daemon's settings say.
            days: that an ended job is kept (0: for ever); by default as the daemon's settings say.
            dry_run: delete nothing, only tell (of at most 200).
        """
        found: list[wire.PrunedJob] = []
        while True:
            part = self.request(build(wire.Prune, jobs=jobs, days=days, dry_run=dry_run), timeout=PRUNE_S)
            found += part.jobs
            if dry_run or not part.more or not part.jobs:
                return found

    def collect(
        self,
        env: str,
        policy: str | os.PathLike[str] | Job = "random",
        *,
        into: str,
        steps: int,
        priority: int = 0,
        after: str | Job | Sequence[str | Job] = (),
        key: str | None = None,
        **options: Any,
    ) -> Job:
        """Queue a job that collects steps into a dataset, a new one or one of the same environment; returns at once.

        Args:
            env: a gymnasium id, made on the daemon's side.
            policy: ``random`` (uniform actions), ``normal``, a job (``job:ID``, ``job:ID:SEED`` or the `Job`: its newest checkpoint), or
                the path of a policy file, which is uploaded.
            into: the dataset's name.
            steps: of the environment.
            options: further fields of `offrl.job.CollectSpec`: limit, envs, processes, seed, sample, epsilon, epsilon_end, epsilon_steps,
                noise, max_episode_steps, step_timeout_s, threads; of a policy file that another program has exported policy_input,
                policy_output, policy_argmax (see `offrl.foreign.ForeignPolicy`).
            priority, after, key: as of `submit`.

        Raises:
            Unknown: of the environment or the job.
            InvalidInput: a value of the wrong type or out of range, a bad file.
        """
        given = {"env": env, "dataset": into, "steps": steps, **{name: value for name, value in options.items() if value is not None}}
        named = f"job:{policy.id}" if isinstance(policy, Job) else policy
        if isinstance(named, str) and (named in ("random", "normal") or named.startswith("job:")):
            return self._queue(build(CollectSpec, **given, policy=named), priority, after, key)
        from offrl import upload
        from offrl.foreign import opened  # onnxruntime: not needed before

        if isinstance(named, str) and re.fullmatch("[a-z0-9]{8}", named) and not os.path.exists(named):
            raise Unknown(f"there is no policy file {named!r}", hint=f"the policy of a job is named job:{named}")
        asked = build(CollectSpec, **given, policy="upload")
        opened(named, asked.policy_input, asked.policy_output, asked.policy_argmax)  # what is no policy file is said here
        connection = self.connect()  # its own, so that the client can be used meanwhile
        try:
            sent = upload.deliver(connection, upload.scan(named))
        finally:
            connection.close()
        return self._queue(build(CollectSpec, **given, policy="upload", upload=sent), priority, after, key)

    def train_online(
        self,
        algorithm: str,
        *,
        env: str,
        into: str | None = None,
        steps: int | None = None,
        seed: int | None = None,
        config: Mapping[str, Any] | None = None,
        start: str | Job | None = None,
        priority: int = 0,
        after: str | Job | Sequence[str | Job] = (),
        key: str | None = None,
        **options: Any,
    ) -> Job:
        """Queue a job that acts in an environment and trains on what that gives; what it gathers is kept as a dataset.

        Args:
            algorithm: a name of `algos`.
            env: a gymnasium id, made on the daemon's side.
            into: the dataset's name, of a new one or one of the same environment. An algorithm that learns from its own play (ppo) may
                leave it out: then nothing is kept.
            steps: of the environment, 1,000,000 unless told; of ppo rounded up to whole rollouts.
            config: settings of the algorithm by dotted name; nested dicts are flattened.
            start: a job whose networks this one goes on from: fine-tuning.
            options: further fields of `offrl.job.TrainOnlineSpec`: preset, random_steps, update_start, update_interval, updates, offline,
                offline_share, eval_env, eval_episodes, eval_every, eval_epsilon, eval_sample, epsilon, epsilon_end, epsilon_steps, noise,
                limit, max_episode_steps, step_timeout_s, device, threads, gpu_memory_mb, transfer, fresh_optimizer; envs and processes of
                ppo.
            priority, after, key: as of `submit`.

        Raises as `submit` does, also for an algorithm that cannot be trained online.
        """
        given = {
            "algorithm": algorithm,
            "env": env,
            "dataset": into,
            "steps": steps,
            "seeds": None if seed is None else [seed],
            "config": None if config is None else flat(config),
            "start": start.id if isinstance(start, Job) else start,
            **options,
        }
        spec = build(TrainOnlineSpec, **{name: value for name, value in given.items() if value is not None})
        return self._queue(spec, priority, after, key)

    def _queue(self, spec: Any, priority: int, after: str | Job | Sequence[str | Job], key: str | None) -> Job:
        befores = [after] if isinstance(after, str | Job) else list(after)
        ids = [before.id if isinstance(before, Job) else before for before in befores]
        request = build(wire.Submit, spec=spec, priority=priority, after=ids, key=f"auto-{uuid.uuid4().hex}" if key is None else key)
        return Job(self, self.request(request).job)

    def jobs(self, kind: str | None = None, *, limit: int = 1000) -> list[Job]:
        """The jobs in order of submission, each with its ``last`` info: all but imports, or those of a kind.

        Args:
            kind: train, import, export, dataset_export, collect, train_online or all.
            limit: this many of the newest.
        """
        found: list[wire.JobInfo] = []
        before = None
        while True:  # newest first, as many as fit into a message
            part = self.request(build(wire.ListJobs, kind=kind, limit=limit - len(found), before=before))
            found = part.jobs + found
            before = part.before
            if before is None or len(found) >= limit:
                return [Job(self, info.job, info) for info in found]

    def job(self, id: str) -> Job:
        """The job of that id. Raises `Unknown`."""
        job = Job(self, id)
        job.info()
        return job

    def queue(self) -> wire.QueueInfo:
        """Whether the whole queue is paused, and how many jobs of whom are in it."""
        info = part = self.request(wire.GetQueue())
        while part.next is not None:
            part = self.request(wire.GetQueue(after=part.next))
            info = info.model_copy(update={"owners": {**info.owners, **part.owners}, "next": None})
        return info

    def uploads(self) -> list[wire.UploadInfo]:
        """The uploads that the daemon keeps, unfinished or not imported yet: one's own, and for an operator everybody's."""
        found, part = [], self.request(wire.ListUploads())
        found += part.uploads
        while part.next is not None:
            part = self.request(wire.ListUploads(after=part.next))
            found += part.uploads
        return found

    def remove_upload(self, upload: str) -> None:
        """Delete an upload. Raises `Unknown`, `NotAllowed`, and `Conflict` where an unfinished job reads it."""
        self.request(build(wire.RemoveUpload, upload=upload))

    def pause_queue(self, reason: str = "") -> wire.QueueInfo:
        """Start no job any more, until `resume_queue`; those that run go on. For operators: `NotAllowed`."""
        return self.request(build(wire.ControlQueue, action="pause", reason=reason))

    def resume_queue(self) -> wire.QueueInfo:
        """Start jobs again. For operators: `NotAllowed`."""
        return self.request(wire.ControlQueue(action="resume"))

    # ---------------------------------------------------------------------------------------------------------------- plumbing
    def request(self, request: wire.Request[wire.ReplyT], *, timeout: float | None = None) -> wire.ReplyT:
        """Send any request of `offrl.wire` and return its reply; raise the error that the daemon sent."""
        return self._connection.request(request, timeout=timeout)

    def connect(self) -> Connection:
        """A further connection to the same daemon, for what waits long; the caller closes it."""
        return Connection(self.url, timeout=self._timeout, patience=self._patience, key=self._key, lost=self._lost)

    def again(self, patience: float | None = None) -> Client:
        """A further client of the same daemon, for a thread of its own; the caller closes it."""
        return Client(self.url, timeout=self._timeout, patience=self._patience if patience is None else patience, key=self._key)

    def close(self) -> None:
        """Close the connection. May be called twice."""
        if hasattr(self, "_connection"):
            self._connection.close()

    def __reduce__(self) -> Any:
        return _client, (self.url, self._timeout, self._patience, self._key)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"


class Job:
    """A job of the daemon. ``id`` names it; ``last`` is the newest `JobInfo` seen (None before the first)."""

    def __init__(self, client: Client, id: str, last: wire.JobInfo | None = None) -> None:
        self._client, self.id, self.last = client, id, last

    # ---------------------------------------------------------------------------------------------------------------- looking
    def info(self) -> wire.JobInfo:
        """Everything that `offrl status JOB --json` shows, as of now."""
        self.last = self._client.request(build(wire.GetJob, job=self.id))
        _by_seed(self.last)
        return self.last

    @property
    def state(self) -> str:
        """queued, running, paused, succeeded, failed or cancelled, as of now."""
        return self.info().state

    def metrics(self) -> dict[str, dict[int, float]]:
        """The latest value of every metric: name -> {seed: value}. Events and `info` have the same with seeds as texts; a value is found
        under 0 as under "0" in all of them."""
        return {name: BySeed((int(seed), value) for seed, value in by_seed.items()) for name, by_seed in self.info().metrics.items()}

    def follow(self, cursor: int = 0) -> Iterator[wire.Event]:
        """The job's events after number ``cursor``, then those to come, until it has ended. None is lost or seen twice, also over a restart
        of the daemon. A paused job is waited for."""
        for events in self._follow(cursor, None):
            yield from events

    def wait(self, timeout: float | None = None, *, check: bool = True) -> wire.JobInfo:
        """Wait until the job has ended; its last info.

        Raises:
            JobFailed: it failed or was cancelled (unless ``check=False``); the message says why, ``error.info`` is the job's info.
            TimeoutError: it has not ended within ``timeout`` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        info = self.info()
        if not info.state.ended:
            for _ in self._follow(0, end):
                pass
            info = self.info()
        if check and info.state != "succeeded":
            raise failure(info)
        return info

    def log(self, *, follow: bool = False) -> Any:
        """The job's log as text; with ``follow`` an iterator of pieces of text that goes on until the job has ended."""
        pieces = self._log(follow)
        return pieces if follow else "".join(pieces)

    # --------------------------------------------------------------------------------------------------------------- steering
    def cancel(self) -> wire.JobInfo:
        """End it for good (until `retry`). Raises `Conflict` if it has ended."""
        return self._control("cancel")

    def pause(self) -> wire.JobInfo:
        """Checkpoint it, end its worker, and leave it until `resume`."""
        return self._control("pause")

    def resume(self, steps: int | None = None) -> wire.JobInfo:
        """Queue a paused job again; it goes on from its checkpoint.

        Args:
            steps: its new number of updates in all: a job that has succeeded goes on to it from its last checkpoint.

        Raises:
            Conflict: it runs, has failed or was cancelled, or has done as many already.
        """
        return self._control("resume", steps)

    def retry(self) -> wire.JobInfo:
        """Queue a failed or cancelled job again; it goes on from its checkpoint, if there is one. One that waits for its next attempt
        after a crash does not wait any longer."""
        return self._control("retry")

    def start(self) -> wire.JobInfo:
        """Let a queued or paused job start before all others as soon as there is a place, also before its time and while the queue is
        paused."""
        return self._control("start")

    def pin(self) -> wire.JobInfo:
        """Keep it: retention passes over it, and `rm` refuses it, until `unpin`."""
        return self._control("pin")

    def unpin(self) -> wire.JobInfo:
        """Undo `pin`."""
        return self._control("unpin")

    def rm(self) -> wire.JobInfo:
        """Delete an ended job with all its files; what it was."""
        return self._control("remove")

    # --------------------------------------------------------------------------------------------------------------- fetching
    def fetch(
        self,
        path: str | os.PathLike[str] | None = None,
        kind: str = "onnx",
        *,
        seed: int | None = None,
        best: bool = False,
        step: int | None = None,
        force: bool = False,
    ) -> Path:
        """Bring a file of the job here; also from a running, paused or failed one. Returns its path.

        Args:
            path: where to (an existing folder: the own name in there). By default ``policy.onnx``, or the own name of another kind. A
                link is followed; a pipe or a device such as ``/dev/stdout`` is written into (`offrl.outfile`).
            kind: ``onnx`` (the policy), ``torchscript`` (the policy for libtorch, ``policy.pt``), ``checkpoint`` (safetensors) or
                ``metrics`` (a zip of ``seed-S/NAME.csv``).
            seed: one that was trained; by default the first.
            best: the step with the highest mean return among the evaluations that are kept.
            step: a step that has a checkpoint; by default the newest.
            force: replace a file of other content.

        Raises:
            InvalidInput, Unknown: no such kind, seed or step; ``path`` cannot be written.
            Conflict: the job has no checkpoint yet; a file with other content is at ``path``, and no ``force``.
            CheckFailed: the exported policy differs from the network it came from.
        """
        return self.fetch_artifact(path, kind, seed=seed, best=best, step=step, force=force)[0]

    def fetch_artifact(
        self,
        path: str | os.PathLike[str] | None = None,
        kind: str = "onnx",
        *,
        seed: int | None = None,
        best: bool = False,
        step: int | None = None,
        force: bool = False,
    ) -> tuple[Path, wire.Artifact]:
        """As `fetch`, with what the file is (name, size, sha256) beside its path."""
        if kind not in FETCH_KINDS:
            raise InvalidInput(f"no kind {kind!r} can be fetched", hint=f"kinds: {', '.join(FETCH_KINDS)}")
        if best and step is not None:
            raise InvalidInput(f"both best and step={step} were asked for", hint="give one of them")
        return self.download(build(wire.OpenArtifact, job=self.id, kind=kind, seed=seed, best=best, step=step), path, force=force)

    def download(
        self, request: wire.OpenArtifact, path: str | os.PathLike[str] | None = None, *, force: bool = False
    ) -> tuple[Path, wire.Artifact]:
        """What `fetch` does, for any `OpenArtifact`; the path and what it is (size, sha256)."""
        from offrl import download, outfile

        if path is not None and not os.path.isdir(path):
            outfile.place(path)  # before a policy is made for it
        artifact = self._client.request(request)
        for _ in range(EXPORTS):
            if artifact.ready:
                break
            made = Job(self._client, artifact.job)  # the policy is made by an export job first
            if (info := made.wait(check=False)).state != "succeeded":
                raise own_error(info)
            artifact = self._client.request(request)
        if not artifact.ready:
            raise OffrlError(
                f"{EXPORTS} exports of job {self.id} succeeded, but the file is not there", hint="see `offrl logs` of both jobs"
            )
        target = Path(path) if path is not None else Path(artifact.name)
        if target.is_dir():
            target = target / artifact.name
        connection = self._client.connect()  # its own, so that the client can be used meanwhile
        try:
            return download.receive(connection, artifact, target, force=force), artifact
        finally:
            connection.close()

    # ---------------------------------------------------------------------------------------------------------------- plumbing
    def _control(self, action: str, steps: int | None = None) -> wire.JobInfo:
        self.last = self._client.request(build(wire.ControlJob, job=self.id, action=action, steps=steps))
        return self.last

    def _follow(self, cursor: int, end: float | None) -> Iterator[list[wire.Event]]:
        """Lists of events, possibly empty, until the job has ended or the time ``end``."""
        first = build(wire.GetEvents, job=self.id, cursor=cursor)
        connection = self._client.connect()  # its own, so that the client can be used meanwhile
        try:
            while True:
                left = LONG_POLL_S if end is None else max(0.0, min(LONG_POLL_S, end - time.monotonic()))
                request = wire.GetEvents(job=first.job, cursor=cursor, wait_s=left)
                part = connection.request(request, timeout=connection.timeout + left)
                cursor = part.cursor
                for event in part.events:
                    _by_seed(event)
                yield part.events
                if part.ended:
                    return
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"job {self.id} has not ended in time")
        finally:
            connection.close()

    def _log(self, follow: bool) -> Iterator[str]:
        import codecs

        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        offset, wait_s = 0, LONG_POLL_S if follow else 0.0
        connection = self._client.connect() if follow else self._client._connection
        try:
            while True:
                request = build(wire.ReadLog, job=self.id, offset=offset, wait_s=wait_s)
                part = connection.request(request, timeout=connection.timeout + wait_s)
                done = part.ended if follow else not part.data
                offset = part.offset
                if text := decoder.decode(part.data, final=done):
                    yield text
                if done:
                    return
        finally:
            if follow:
                connection.close()

    def __repr__(self) -> str:
        if self.last is None:
            return f"Job({self.id!r})"
        info = self.last
        parts = [info.kind if info.algorithm is None else info.algorithm, *([info.dataset] if info.dataset else []), info.state.value]
        done = f", {info.step:,} of {info.steps:,}" if info.steps else ""
        return f"Job({self.id!r}, {' '.join(parts)}{done})"


class BySeed(dict):
    """A metric's values by seed, which is found as a number and as a text."""

    def __missing__(self, seed: Any) -> Any:
        for other in self:
            if str(other) == str(seed):
                return self[other]
        raise KeyError(seed)


def _by_seed(reply: wire.JobInfo | wire.Event) -> None:
    for name, values in reply.metrics.items():
        reply.metrics[name] = BySeed(values)


def _client(url: str, timeout: float, patience: float, key: str | os.PathLike[str] | None) -> Client:
    """A client that was pickled."""
    return Client(url, timeout=timeout, patience=patience, key=key)


def build(model: type[Model], **values: Any) -> Model:
    """``model`` of these values; `InvalidInput` naming the first one that is wrong."""
    try:
        return model(**values)
    except ValidationError as error:
        problem = explained(error)
        name = as_name(problem.value) if problem.kind == "string_pattern_mismatch" and problem.place == ("dataset",) else ""
        hint = nearest(str(problem.place[-1]), model.model_fields) if problem.kind == "extra_forbidden" else ""
        refused = InvalidInput(str(problem), hint=f"for example {name}" if name else hint)
        refused.field = problem.where
        raise refused from None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under their dotted names; NumPy's numbers and tuples as the plain values that the wire takes."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if not isinstance(name, str):
            raise InvalidInput(f"a setting's name must be text, got {name!r}", hint="see `offrl algos NAME`")
        found.update(flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: _plain(prefix + name, value)})
    return found


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if hasattr(value, "tolist"):  # an array or a number of NumPy
        return _plain(name, value.tolist())
    raise InvalidInput(
        f"{name}: {value!r} is a {type(value).__name__}", hint="a setting is a number, a text, true or false, or a list of them"
    )


def own_error(info: wire.JobInfo) -> OffrlError:
    """The error that ended a job, as its own class (a bad file is `InvalidInput`)."""
    if info.error:
        return from_wire(info.error.get("code", "internal"), info.error.get("message", info.reason), info.error.get("hint", ""))
    return failure(info)


def failure(info: wire.JobInfo) -> JobFailed:
    """The `JobFailed` of a job that did not succeed. Its exit status is 2 where bad input was the reason, as it is for any bad input."""
    error = info.error or {}
    why = error.get("message") or info.reason
    said = f"job {info.job} {info.state.value}" + (f": {why}" if why and why != info.state else "")
    failed = JobFailed(said, hint=error.get("hint") or f"see `offrl logs {info.job}`")
    failed.info = info
    if info.error:
        failed.exit_status = own_error(info).exit_status
    return failed


__all__ = ["Client", "ConnectionLost", "Datasets", "Job"]
