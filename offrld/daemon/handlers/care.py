"""Requests for the operation of the service: overview, self-check, retention, settings."""

from __future__ import annotations

import asyncio
import time

from offrl import wire
from offrld.daemon import settings_list
from offrld.daemon.app import App
from offrld.daemon.health import checkup as checks
from offrld.daemon.queue.views import overview as reads


async def overview(app: App, request: wire.Overview) -> wire.OverviewInfo:
    """Read the queue once, and the figures of the machine."""
    look = await app.database.survey(reads.look, request.limit, request.metric, request.points, app.settings)
    return wire.OverviewInfo(
        time=time.time(),
        version=app.version,
        state_dir=str(app.state.root),
        uptime_s=round(time.monotonic() - app.started, 3),
        counts=look.counts,
        jobs=look.jobs,
        left_off=look.left_off,
        history=look.history,
        paused=look.pause,
        spare=app.supervisor.spare,
        uploads=await asyncio.to_thread(app.uploads.unfinished),
        machine=await app.machine.look(),
    )


async def checkup(app: App, request: wire.Checkup) -> wire.CheckList:
    """Check the service. One check runs at a time: it writes to the disk, or starts a process."""
    async with app.one_at_a_time("checkup"):
        if request.part == "devices":
            results, versions = await checks.devices(app.state)
        else:
            results = await asyncio.to_thread(checks.service, app.state, app.settings)
            results += [await app.database.survey(checks.database), await app.database.read(checks.queue)]
            if failing := app.passes.report():
                results.append(checks.background(failing))
            if app.settings.disk.quota_bytes:
                results.append(checks.quota(await app.keeper.used(), app.settings.disk.quota_bytes))
            versions = {"offrld": app.version, **checks.versions()}
    return wire.CheckList(time=time.time(), checks=results, versions=versions)


async def prune(app: App, request: wire.Prune) -> wire.Pruned:
    """Apply retention at once, with the limits of the settings or of the request; one part at a time."""
    keep = app.settings.keep
    jobs = keep.jobs if request.jobs is None else request.jobs
    days = keep.days if request.days is None else request.days
    pruned, more = await app.keeper.prune(jobs, days, dry_run=request.dry_run)
    return wire.Pruned(jobs=pruned, more=more)


async def get_settings(app: App, request: wire.GetSettings) -> wire.SettingList:
    """List every setting of this daemon."""
    return wire.SettingList(file=str(app.sources.file), settings=settings_list.listing(app.settings, app.sources))
