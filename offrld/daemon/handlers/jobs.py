"""Requests about jobs: submit, list, control, remove."""

from __future__ import annotations

import asyncio
import time

from offrl import named, wire
from offrl.errors import Conflict, InvalidInput
from offrl.job import WRITES_DATASET, CollectSpec, ImportSpec, TrainOnlineSpec, TrainSpec
from offrl.set_values import flat
from offrld.daemon import queue
from offrld.daemon.access import roles
from offrld.daemon.access.caller import Caller
from offrld.daemon.app import App
from offrld.daemon.handlers import beforehand
from offrld.daemon.queue import datasets, fitting, job_record
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.views import job_info
from offrld.daemon.storage import inherited
from offrld.daemon.storage import rerun as reruns
from offrld.daemon.workers import catalog
from offrld.state import import_roots
from offrld.state import inherited as inherited_files


async def submit(app: App, request: wire.Submit) -> wire.Submitted:
    """Check the job and queue it."""
    spec = request.spec
    _check_start(request)
    if isinstance(spec, TrainSpec | TrainOnlineSpec):
        spec = spec.model_copy(update={"config": flat(spec.config)})
    if request.key is not None:  # first: a repeated import would otherwise collide with its own dataset
        earlier = await app.database.read(queue.by_key, app.caller().name, request.key, spec)
        if earlier is not None:
            return wire.Submitted(job=earlier, created=False)
    await app.keeper.check_room()
    uses: list[inherited.Use] = []
    if isinstance(spec, TrainSpec):
        fields = await app.database.read(datasets.fields, spec.dataset)
        descriptions = await app.catalog.ready()
        spec = catalog.checked(spec, descriptions, fields)
        if (refused := app.supervisor.devices.refused(spec.model_dump())) is not None:
            raise refused
        uses = inherited.of(spec, descriptions)
        await beforehand.check(app, spec, descriptions)
    elif isinstance(spec, ImportSpec):
        await asyncio.to_thread(_check_source, app, spec)
        if not spec.append:
            await _check_folder(app, spec.dataset)
    elif isinstance(spec, CollectSpec | TrainOnlineSpec):
        descriptions = await app.catalog.ready()
        if isinstance(spec, TrainOnlineSpec):
            fields = None if spec.dataset is None else await app.database.read(datasets.fields, spec.dataset)
            spec = catalog.checked(spec, descriptions, fields)
        else:
            catalog.checked_environment(spec.env, descriptions)
            if (spec.policy == "upload") != (spec.upload is not None):
                raise InvalidInput("policy 'upload' and an upload go together", hint="let the client upload the policy file")
            if spec.ratio is not None and not spec.policy.startswith("job:"):
                raise InvalidInput(f"ratio={spec.ratio:g} is of a job's returns", hint="pass --policy job:ID with it")
            if spec.upload is not None:
                await asyncio.to_thread(app.uploads.check_usable, spec.upload, app.caller())
        if (refused := app.supervisor.devices.refused(spec.model_dump())) is not None:
            raise refused
        uses = inherited.of_steps(spec)
        if spec.dataset is not None:
            await _check_folder(app, spec.dataset)
        await beforehand.check(app, spec, descriptions)
    job, created = await app.database.write(_submit, app, request, spec, uses, app.caller())
    if isinstance(spec, TrainSpec):
        await app.supervisor.send_pinned(spec.dataset)
    return wire.Submitted(job=job, created=created)


async def rerun(app: App, request: wire.Rerun) -> wire.Submitted:
    """Repeat a train or train-online job with the settings that its run folder records."""
    _check_start(request)
    repeat = await asyncio.to_thread(reruns.read, app.state, await app.database.read(job_record.find, request.job), request.into)
    if request.key is not None:
        earlier = await app.database.read(queue.by_key, app.caller().name, request.key, repeat.spec)
        if earlier is not None:
            return wire.Submitted(job=earlier, created=False)
    await app.keeper.check_room()
    descriptions = await app.catalog.ready()
    reruns.check(repeat, descriptions)
    if (refused := app.supervisor.devices.refused(repeat.spec.model_dump())) is not None:
        raise refused
    wanted = inherited.of(repeat.spec, descriptions) if isinstance(repeat.spec, TrainSpec) else inherited.of_steps(repeat.spec)
    uses = [use for use in wanted if use.name not in repeat.kept]
    if request.into is not None:
        if await app.database.read(datasets.mentioned, request.into):
            raise Conflict(f"dataset {request.into!r} already exists", hint="a rerun collects new steps: name a new dataset")
        await _check_folder(app, request.into)
    await beforehand.check(app, repeat.spec, descriptions, repeat.kept)
    job, created = await app.database.write(_submit, app, request, repeat.spec, uses, app.caller(), repeat)
    if isinstance(repeat.spec, TrainSpec):
        await app.supervisor.send_pinned(repeat.spec.dataset)
    return wire.Submitted(job=job, created=created)


def _check_start(request: wire.Submit | wire.Rerun) -> None:
    if request.start_at is not None and request.start_in_s is not None:
        raise InvalidInput("both start_at and start_in_s were given", hint="pass one of them")


def _submit(
    db: Connection,
    app: App,
    request: wire.Submit | wire.Rerun,
    spec: job_record.Spec,
    uses: list[inherited.Use],
    caller: Caller,
    repeat: reruns.Repeat | None = None,
) -> tuple[str, bool]:
    """Queue a job and pin the jobs that it inherits from, in one transaction: none of them can be removed in between."""
    if isinstance(spec, CollectSpec | TrainOnlineSpec | ImportSpec) and spec.dataset is not None:
        roles.check_append(db, app.state, spec.dataset, caller)
    waits = [use.job for use in uses if inherited.check(db, app.state, use)]
    start_at = request.start_at if request.start_in_s is None else time.time() + request.start_in_s
    if repeat is not None:
        job_record.find(db, repeat.of.id)  # raises Unknown if it was removed in the meantime
    job, created = queue.submit(
        db,
        spec,
        owner=caller.name,
        priority=request.priority,
        after=[*request.after, *waits],
        key=request.key,
        start_at=start_at,
        limits=app.settings.limits,
        repeats=None if repeat is None else (repeat.of.id, repeat.snapshot),
    )
    if created:
        inherited.pin(db, job, uses)
        if repeat is not None:
            inherited_files.hand_on(app.state.run(repeat.of.id), app.state.run(job), repeat.kept)
    return job, created


async def _check_folder(app: App, dataset: str) -> None:
    """Raise `Conflict` if the folder of an unknown dataset already exists."""
    folder = app.state.datasets / dataset
    if folder.exists() and not await app.database.read(datasets.mentioned, dataset):
        raise Conflict(f"{folder} exists, but the queue has no such dataset", hint="move it away, or choose another name")


def _check_source(app: App, spec: ImportSpec) -> None:
    """Check that the import's data exists and that the daemon may read it."""
    if (spec.upload, spec.path, spec.named).count(None) != 2:
        raise InvalidInput("an import reads an upload, a path or a named dataset: pass exactly one of the three")
    if spec.upload is not None:
        app.uploads.check_usable(spec.upload, app.caller())
    elif spec.path is not None:
        import_roots.checked(spec.path, app.settings.import_roots)
    else:
        named.find(str(spec.named))


async def list_jobs(app: App, request: wire.ListJobs) -> wire.Encoded:
    """List the newest jobs that fit into one message, in the order of submission."""
    return await app.database.survey(app.listing.make, request.kind, request.limit, app.settings.limits, request.before)


async def get_job(app: App, request: wire.GetJob) -> wire.JobInfo:
    """Describe one job."""
    return fitting.job(await app.database.read(job_info.info, request.job, app.settings.limits))


async def control_job(app: App, request: wire.ControlJob) -> wire.JobInfo:
    """Cancel, pause, resume, retry, start, pin or remove a job."""
    await app.database.read(roles.check_owner, request.job, app.caller())  # outside of the transaction: the owner never changes
    if request.action == "remove":
        return fitting.job(job_info.Waits(time.time()).info(await app.removal.job(request.job)))
    if request.action == "retry":
        await _check_retry(app, request.job)
    _job, intent = await app.database.write(_control, app, request, app.caller())
    app.supervisor.signal(request.job, intent)
    return fitting.job(await app.database.read(job_info.info, request.job, app.settings.limits))


def _control(db: Connection, app: App, request: wire.ControlJob, caller: Caller) -> tuple[job_record.Job, str]:
    """Control the job in the queue; return it and the intent for its worker, as `queue.control` does."""
    before = job_record.find(db, request.job)
    job, intent = queue.control(db, request.job, request.action, request.steps, app.settings.limits, operator=caller.may(roles.OPERATOR))
    if before.state.ended and not job.state.ended and job.kind in WRITES_DATASET and job.dataset is not None:
        roles.check_append(db, app.state, job.dataset, caller)  # by now, the name may belong to another dataset
    return job, intent


async def _check_retry(app: App, job_id: str) -> None:
    """Check an ended job as at its submission. An algorithm that is no longer installed is left to the worker to report."""
    job = await app.database.read(job_record.find, job_id)
    if not job.state.ended:
        return
    spec = job_record.SPEC.validate_python(job.spec)
    if isinstance(spec, TrainSpec | TrainOnlineSpec | CollectSpec):
        descriptions = await app.catalog.ready()
        installed = {algorithm["name"] for algorithm in descriptions["algorithms"]}
        if isinstance(spec, CollectSpec) or spec.algorithm in installed:
            await beforehand.check(app, spec, descriptions, inherited_files.names(app.state.run(job_id)))
    elif isinstance(spec, ImportSpec) and spec.upload:
        await asyncio.to_thread(app.uploads.check_usable, spec.upload, app.caller())
