"""`Client`: one method for each request to the daemon."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from offrl import upload, wire
from offrl.connection import ConnectionLost
from offrl.datasets import Datasets
from offrl.errors import InvalidInput, Unknown, nearest
from offrl.explained import build
from offrl.job import CollectSpec, TrainOnlineSpec, TrainSpec
from offrl.jobs import Job, enqueue, job_id, own_key
from offrl.session import Session
from offrl.set_values import flat

PRUNE_S = 600.0  # for one part: run folders may be large


class Client(Session):
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
        super().__init__(url, timeout=timeout, patience=patience, key=key, lost=lost)
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
            "start": None if start is None else job_id(start),
            "transfer": transfer,
            "fresh_optimizer": fresh_optimizer,
            "gpu_memory_mb": gpu_memory_mb,
        }
        given = {name: value for name, value in given.items() if value is not None}
        build(TrainSpec, **given, dataset="not-known-yet")  # before anything is uploaded
        spec = build(TrainSpec, **given, dataset=self.datasets.resolve(dataset))
        start_at = at.timestamp() if isinstance(at, datetime) else at
        return enqueue(self, spec, priority=priority, after=after, key=key, start_at=start_at, start_in_s=delay_s)

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
        request = build(wire.Rerun, job=job_id(job), into=into, priority=priority, key=key or own_key())
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
            return enqueue(self, build(CollectSpec, **given, policy=named), priority=priority, after=after, key=key)
        from offrl.foreign import opened  # loads onnxruntime

        if isinstance(named, str) and re.fullmatch("[a-z0-9]{8}", named) and not os.path.exists(named):
            raise Unknown(f"there is no policy file {named!r}", hint=f"the policy of a job is named job:{named}")
        asked = build(CollectSpec, **given, policy="upload")
        opened(named, asked.policy_input, asked.policy_output, asked.policy_argmax)  # what is no policy file is said here
        connection = self.connect()  # its own, so that the client can be used meanwhile
        try:
            sent = upload.deliver(connection, upload.scan(named))
        finally:
            connection.close()
        return enqueue(self, build(CollectSpec, **given, policy="upload", upload=sent), priority=priority, after=after, key=key)

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
            "start": None if start is None else job_id(start),
            **options,
        }
        spec = build(TrainOnlineSpec, **{name: value for name, value in given.items() if value is not None})
        return enqueue(self, spec, priority=priority, after=after, key=key)

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


__all__ = ["Client", "ConnectionLost", "Datasets", "Job"]
