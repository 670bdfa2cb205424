"""A collect job: write the steps of a policy in an environment into a dataset, across pauses and crashes."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from offrl.errors import InvalidInput
from offrl.job import CollectSpec
from offrl.printable import counted
from offrl.rollout import make_env
from offrl_store.disk import write_atomic
from offrld.collect.collector import Collector
from offrld.collect.explorers import explorer_of
from offrld.state.files import remove
from offrld.worker.control import Stopped
from offrld.worker.growing_dataset import StepsDataset, give_up, whole_steps, writer_of
from offrld.worker.job import WorkerJob
from offrld.worker.pace import Pace

POLICY = "policy.onnx"  # in the run folder: the uploaded file
RECORD_S = 5.0  # time between two records of the count


def run(job: WorkerJob[CollectSpec]) -> str:
    """Collect, and return the remark for a success. Raises `OffrlError`, `Stopped`; whole episodes are kept in either case."""
    data = StepsDataset(job, job.spec.dataset)
    try:
        return _collect(job, data)
    finally:
        data.remove_empty()


def _collect(job: WorkerJob[CollectSpec], data: StepsDataset) -> str:
    spec = job.spec
    policy = _policy(job)
    job.control.check()
    fresh = not data.path.exists()
    collector = Collector(
        partial(make_env, spec.env),
        policy,
        envs=spec.envs,
        vectorization="async" if spec.processes else "sync",
        seed=spec.seed,
        deterministic=None if spec.policy == "upload" else not spec.sample,
        max_frames_per_traj=spec.max_episode_steps,
        explorer=explorer_of(epsilon=spec.epsilon, epsilon_end=spec.epsilon_end, epsilon_steps=spec.epsilon_steps, noise=spec.noise),
        frames_per_batch=spec.envs,
        into=data.path,
        limit=spec.limit,
        note=data.note,
        keep=data.keep(data.open()),
        step_timeout_s=spec.step_timeout_s,
        given_up=partial(give_up, job),
    )
    with collector:
        if fresh:
            data.created()
        writer = writer_of(collector)
        writer.commit()  # the episodes that a crash left open
        before = data.steps_before(writer.store)
        if "collector" in data.record:
            collector.load_state_dict(data.record["collector"])
            job.report.message(f"resumed at step {before}")
        collector.frames = before
        try:
            _loop(job, data, collector)
        except Stopped as stopped:
            collector.discard() if stopped.reason == "cancel" else collector.cut()
            _record(job, data, collector, last=True)
            raise
        except Exception:
            _record(job, data, collector, last=True)  # the open episodes are complete, as truncated ones
            raise
    return f"{counted(collector.frames, 'step')} of {collector.behaviour.name} in {spec.env}"


def _loop(job: WorkerJob[CollectSpec], data: StepsDataset, collector: Collector) -> None:
    spec = job.spec
    pace, recorded = Pace(), time.monotonic()
    while collector.frames < spec.steps:
        job.control.check()
        began, left = time.perf_counter(), spec.steps - collector.frames
        frames = min(left, max(spec.envs, pace.block // spec.envs * spec.envs))
        collector.run(frames)
        pace.add(frames, time.perf_counter() - began)
        speed = pace.updates_per_second
        job.report.progress(collector.frames, spec.steps, updates_per_second=speed, eta_s=left / speed if speed else None)
        if time.monotonic() - recorded > RECORD_S:
            _record(job, data, collector)
            recorded = time.monotonic()
    collector.cut()
    _record(job, data, collector, last=True)
    job.report.progress(collector.frames, spec.steps, updates_per_second=pace.updates_per_second, force=True)


def _record(job: WorkerJob[CollectSpec], data: StepsDataset, collector: Collector, *, last: bool = False) -> None:
    """Make everything durable, and record the progress of the job."""
    writer = writer_of(collector)
    writer.keep(data.keep(writer.store))
    collector.sync()
    data.save(writer.store, whole_steps(collector), collector=collector.state_dict())
    data.report(writer.store, last=last)
    if last:
        job.report.progress(collector.frames, job.spec.steps, force=True)


def _policy(job: WorkerJob[CollectSpec]) -> Any:
    """Return the policy that acts, in a form that `Collector` accepts."""
    spec = job.spec
    if spec.policy in ("random", "normal"):
        return spec.policy
    if spec.policy == "upload":
        from offrl.foreign import opened

        if spec.sample:
            raise InvalidInput("a policy file is deterministic and cannot sample", hint="use job:ID: its checkpoint can sample")
        return opened(_uploaded(job), spec.policy_input, spec.policy_output, spec.policy_argmax)
    from offrld.collect.trained_behaviours import LearnerBehaviour
    from offrld.inprocess.training import load
    from offrld.worker import inherited

    reference = spec.policy.removeprefix("job:")
    seed = inherited.taken(reference)[1]
    learner = load(inherited.keep(job.state, job.run, "policy", reference, spec.ratio), device="cpu", runner="eager", threads=spec.threads)
    if not learner.algorithm.acts:
        raise InvalidInput(
            f"job {reference} is of {learner.algorithm.name}, which learns no policy", hint="name a job of an algorithm that does"
        )
    return LearnerBehaviour(learner, deterministic=not spec.sample, seed=seed)


def _uploaded(job: WorkerJob[CollectSpec]) -> Any:
    """Return the path of the uploaded file; the first attempt moves it into the run folder."""
    policy, upload = job.run.path / POLICY, job.spec.upload
    assert upload is not None  # the specification checks it
    if not policy.exists():
        files = sorted(job.state.upload_files(upload).glob("*"))
        if len(files) != 1 or not files[0].is_file():
            raise InvalidInput(f"upload {upload!r} is not one policy file", hint="submit the job again")
        write_atomic(policy, files[0].read_bytes())
    remove(job.state.upload(upload))
    return policy
