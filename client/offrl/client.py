"""`Client`: one method for each request to the daemon."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Unpack

from offrl import upload, wire
from offrl.connection import ConnectionLost
from offrl.datasets import Datasets
from offrl.errors import InvalidInput, Unknown, nearest
from offrl.explained import build
from offrl.job import CollectSpec, TrainOnlineSpec, TrainSpec
from offrl.job_keywords import CollectOptions, TrainOnlineOptions, TrainOptions
from offrl.jobs import Job, enqueue, job_id, own_key
from offrl.session import Session
from offrl.set_values import flat

PRUNE_S = 600.0  # for one part: run folders may be large


class Client(Session):
    """A connection to a daemon. Close it, or use it as a context manager; threads may share it. A forked process, or one that unpickles it,
    opens its own connection.

    Args:
        url: ``ipc:///path/of/a.sock`` or ``tcp://HOST:PORT``; by default OFFRL_URL, else the socket below OFFRLD_STATE_DIR, else the user's
            daemon, else the machine's.
        timeout: seconds to wait for one answer.
        patience: seconds to wait for a daemon that goes away during use, so that following a job survives a restart.
        lost: called with True when the daemon is gone and the client waits for it, with False when it is back.
        key: the key file for a tcp address; by default OFFRL_KEY, else HOST.key or offrl.key in ``~/.config/offrl``. "": none.

    Raises:
        NoDaemon: no daemon listens there; raised at once.
        NotAllowed: the socket belongs to another user, or the daemon does not accept the key; from every method: the key's role does not
            permit it.
        InvalidInput: ``url`` is not an address.
        ProtocolMismatch: from every method: the daemon speaks another version of the protocol.
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
        super().__init__(url, timeout=timeout, patience=patience, key=key, lost=lost)
        self.datasets = Datasets(self)

    # ------------------------------------------------------------------------------------------------------------- the daemon
    def ping(self) -> wire.Pong:
        """Get the daemon's version, protocol, state folder and uptime."""
        return self.request(wire.Ping())

    def overview(self, *, limit: int = 50, metric: str | None = None, points: int = 60) -> wire.OverviewInfo:
        """Get the service at a glance: counts, current jobs, curves of the running ones, the machine.

        Args:
            limit: maximum number of jobs.
            metric: the metric of the curves, or ``updates_per_second``; by default each job's most informative one.
            points: maximum number of points of a curve.
        """
        return self.request(build(wire.Overview, limit=limit, metric=metric, points=points))

    def settings(self) -> wire.SettingList:
        """Get every setting of the daemon and the source of its value."""
        return self.request(wire.GetSettings())

    def audit(self, since: float = 0.0) -> Iterator[dict[str, Any]]:
        """Iterate over the daemon's audit log since the time ``since`` (seconds since the epoch), oldest entry first.

        Raises `NotAllowed` unless the caller is an operator.
        """
        after, more = 0, True
        while more:
            part = self.request(build(wire.ReadAudit, since=since, after=after))
            yield from part.entries
            more = part.more and bool(part.entries)
            after = part.entries[-1]["n"] if part.entries else after

    def algos(self, name: str | None = None) -> Any:
        """Get the algorithms: a list of {name, summary, actions, presets, config}, or the entry of ``name``.

        Raises:
            Unknown: the algorithm does not exist.
            InvalidInput: an installed package provides it, but it cannot be used.
        """
        reply = self.request(wire.Algorithms())
        if name is None:
            return reply.algorithms
        by_name = {algorithm["name"]: algorithm for algorithm in reply.algorithms}
        for problem in reply.problems:
            if problem.startswith(f"{name}: "):
                raise InvalidInput(f"algorithm {problem}", hint="repair its package and restart the daemon")
        if name not in by_name:
            raise Unknown(f"no algorithm {name!r}", hint=nearest(name, list(by_name)))
        return by_name[name]

    def algo_problems(self) -> list[str]:
        """Get one line for each unusable algorithm of the daemon's installed packages: ``name: reason``."""
        return self.request(wire.Algorithms()).problems

    def submit(
        self,
        algorithm: str,
        *,
        dataset: str | os.PathLike[str],
        seed: int | None = None,
        seeds: Iterable[int] | None = None,
        config: Mapping[str, Any] | None = None,
        start: str | Job | None = None,
        priority: int = 0,
        after: str | Job | Sequence[str | Job] = (),
        at: datetime | float | None = None,
        delay_s: float | None = None,
        key: str | None = None,
        **options: Unpack[TrainOptions],
    ) -> Job:
        """Queue a train job and return at once.

        Args:
            algorithm: a name of `algos`.
            dataset: a dataset's name, or the path of a file or folder, which is imported first (once: its name is made from its content).
                If both a dataset and a file have the name, the dataset is used; ``./NAME`` is always the file.
            seed, seeds: one or several, trained side by side in one job.
            config: settings of the algorithm by dotted name (``critic_encoder.units``); nested dicts are flattened.
            start: a job whose networks this one starts from, once it has succeeded: ``JOB``, or ``JOB:SEED`` (by default each seed starts
                from its own seed there, or else from the first). Observations and actions are scaled as in that job.
            after: jobs that must succeed first.
            at: earliest start (a datetime, or seconds since the epoch).
            delay_s: the same in seconds from now, by the daemon's clock.
            key: submitting twice with the same key gives the same job. Without one, each call has its own key, so that a lost reply does
                not lead to a second job.
            options: steps, eval_env and more: see `offrl.job_keywords.TrainOptions`. The daemon's default applies to missing ones.

        Raises:
            Unknown: the algorithm, a setting, the dataset or the environment does not exist (the hint names the nearest one).
            InvalidInput: a value of the wrong type or out of range, a bad file, an algorithm that does not fit the data.
        """
        if seed is not None and seeds is not None:
            raise InvalidInput(f"both seed={seed} and seeds={seeds!r} were given", hint="pass one of them")
        chosen_seeds = [seed] if seed is not None else None if seeds is None else list(seeds)
        values = _without_none(
            algorithm=algorithm,
            seeds=chosen_seeds,
            config=None if config is None else flat(config),
            start=None if start is None else job_id(start),
            **options,
        )
        build(TrainSpec, **values, dataset="not-known-yet")  # before anything is uploaded
        spec = build(TrainSpec, **values, dataset=self.datasets.resolve(dataset))
        try:
            start_at = at.timestamp() if isinstance(at, datetime) else at
        except (ValueError, OverflowError):  # a year that the time zone leads out of the calendar
            raise InvalidInput(f"the start time {at} has no number of seconds", hint="pass a time in the coming years") from None
        return enqueue(self, spec, priority=priority, after=after, key=key, start_at=start_at, start_in_s=delay_s)

    def rerun(self, job: str | Job, *, into: str | None = None, priority: int = 0, key: str | None = None) -> Job:
        """Repeat a train or train-online job from its run folder: with the same effective settings, seeds, snapshot of the dataset (even if
        the dataset has grown) and checkpoints inherited from other jobs. On the CPU with the same versions the result is bit-identical.

        Args:
            into: a new dataset for the steps of a train-online job; required if the original job kept its steps.
            priority, key: as for `submit`.

        Raises:
            InvalidInput: the job does not train, or ``into`` is missing.
            Conflict: the dataset ``into`` exists.
            Unknown: the job does not exist, or its dataset, algorithm or environment no longer exists.
        """
        request = build(wire.Rerun, job=job_id(job), into=into, priority=priority, key=key or own_key())
        return Job(self, self.request(request).job)

    def prune(self, *, jobs: int | None = None, days: float | None = None, dry_run: bool = False) -> list[wire.PrunedJob]:
        """Delete the ended jobs that exceed the limits, and return them. Raises `NotAllowed` unless the caller is an operator.

        Args:
            jobs: number of ended jobs to keep of each kind and owner (0: unlimited); by default from the daemon's settings.
            days: days to keep an ended job (0: unlimited); by default from the daemon's settings.
            dry_run: delete nothing; return the first 200 jobs that would be deleted.
        """
        pruned: list[wire.PrunedJob] = []
        while True:
            part = self.request(build(wire.Prune, jobs=jobs, days=days, dry_run=dry_run), timeout=PRUNE_S)
            pruned += part.jobs
            if dry_run or not part.more or not part.jobs:
                return pruned

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
        **options: Unpack[CollectOptions],
    ) -> Job:
        """Queue a job that collects steps into a new dataset, or into one of the same environment, and return at once.

        Args:
            env: a gymnasium id; the daemon creates the environment.
            policy: ``random`` (uniform actions), ``normal``, a job (``job:ID``, ``job:ID:SEED`` or the `Job`: its newest checkpoint), or
                the path of a policy file, which is uploaded.
            into: the dataset's name.
            steps: steps of the environment.
            options: epsilon, noise, envs and more: see `offrl.job_keywords.CollectOptions`. Those named ``policy_*`` describe an ONNX file
                of another program (`offrl.foreign.ForeignPolicy`).
            priority, after, key: as for `submit`.

        Raises:
            Unknown: the environment or the job does not exist.
            InvalidInput: a value of the wrong type or out of range, a bad file.
        """
        values = _without_none(env=env, dataset=into, steps=steps, **options)
        named = f"job:{policy.id}" if isinstance(policy, Job) else policy
        if isinstance(named, str) and (named in ("random", "normal") or named.startswith("job:")):
            return enqueue(self, build(CollectSpec, **values, policy=named), priority=priority, after=after, key=key)
        from offrl.foreign import opened  # loads onnxruntime

        if isinstance(named, str) and re.fullmatch("[a-z0-9]{8}", named) and not os.path.exists(named):
            raise Unknown(f"no policy file {named!r} exists", hint=f"the policy of a job is named job:{named}")
        described = build(CollectSpec, **values, policy="upload")
        opened(
            os.fspath(named), described.policy_input, described.policy_output, described.policy_argmax
        )  # refuses other files before the upload
        connection = self.connect()  # a separate one: other threads may use the client meanwhile
        try:
            sent = upload.deliver(connection, upload.scan(named))
        finally:
            connection.close()
        return enqueue(self, build(CollectSpec, **values, policy="upload", upload=sent), priority=priority, after=after, key=key)

    def train_online(
        self,
        algorithm: str,
        *,
        env: str,
        into: str | None = None,
        seed: int | None = None,
        config: Mapping[str, Any] | None = None,
        start: str | Job | None = None,
        priority: int = 0,
        after: str | Job | Sequence[str | Job] = (),
        key: str | None = None,
        **options: Unpack[TrainOnlineOptions],
    ) -> Job:
        """Queue a job that acts in an environment and trains on the collected steps, which are kept as a dataset.

        Args:
            algorithm: a name of `algos`.
            env: a gymnasium id; the daemon creates the environment.
            into: a new dataset, or one of the same environment. Optional for an algorithm that learns from its own rollouts (ppo): without
                it the steps are not kept.
            config: settings of the algorithm by dotted name; nested dicts are flattened.
            start: a job whose networks this one starts from: fine-tuning.
            options: steps, random_steps, offline and more: see `offrl.job_keywords.TrainOnlineOptions`.
            priority, after, key: as for `submit`.

        Raises what `submit` raises, also for an algorithm that cannot be trained online.
        """
        values = _without_none(
            algorithm=algorithm,
            env=env,
            dataset=into,
            seeds=None if seed is None else [seed],
            config=None if config is None else flat(config),
            start=None if start is None else job_id(start),
            **options,
        )
        return enqueue(self, build(TrainOnlineSpec, **values), priority=priority, after=after, key=key)

    def jobs(self, kind: str | None = None, *, limit: int = 1000) -> list[Job]:
        """List the jobs in order of submission, each with its ``last`` info.

        Args:
            kind: train, import, export, dataset_export, collect, train_online or all; by default all but imports.
            limit: maximum number of jobs; the newest ones are returned.
        """
        infos: list[wire.JobInfo] = []
        before = None
        while True:  # newest first, as many as fit into a message
            part = self.request(build(wire.ListJobs, kind=kind, limit=limit - len(infos), before=before))
            infos = part.jobs + infos
            before = part.before
            if before is None or len(infos) >= limit:
                return [Job(self, info.job, info) for info in infos]

    def job(self, id: str) -> Job:
        """Get the job with this id. Raises `Unknown`."""
        job = Job(self, id)
        job.info()
        return job

    def queue(self) -> wire.QueueInfo:
        """Get whether the whole queue is paused, and its number of jobs by owner."""
        info = part = self.request(wire.GetQueue())
        while part.next is not None:
            part = self.request(wire.GetQueue(after=part.next))
            info = info.model_copy(update={"owners": {**info.owners, **part.owners}, "next": None})
        return info

    def uploads(self) -> list[wire.UploadInfo]:
        """List the uploads that are unfinished or not imported yet: your own, or for an operator everybody's."""
        part = self.request(wire.ListUploads())
        uploads = part.uploads
        while part.next is not None:
            part = self.request(wire.ListUploads(after=part.next))
            uploads = uploads + part.uploads
        return uploads

    def remove_upload(self, upload: str) -> None:
        """Delete an upload. Raises `Unknown`, `NotAllowed`, and `Conflict` if an unfinished job reads it."""
        self.request(build(wire.RemoveUpload, upload=upload))

    def pause_queue(self, reason: str = "") -> wire.QueueInfo:
        """Start no further job until `resume_queue`; running jobs continue. Raises `NotAllowed` unless the caller is an operator."""
        return self.request(build(wire.ControlQueue, action="pause", reason=reason))

    def resume_queue(self) -> wire.QueueInfo:
        """Start jobs again. Raises `NotAllowed` unless the caller is an operator."""
        return self.request(wire.ControlQueue(action="resume"))


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


__all__ = ["Client", "ConnectionLost", "Datasets", "Job"]
