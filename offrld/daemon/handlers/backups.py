"""Requests about backups: begin, read, end."""

from __future__ import annotations

import asyncio

from offrl import wire
from offrl.errors import NotAllowed
from offrld.daemon.access.caller import LOCAL
from offrld.daemon.app import App
from offrld.daemon.storage import backup


async def begin_backup(app: App, request: wire.BeginBackup) -> wire.BackupBegun:
    """Freeze the state while nothing is removed."""
    caller = app.caller()
    if request.keys and caller.name != LOCAL:
        hint = "run it as the service's user on its machine: sudo -u offrld offrl backup"
        raise NotAllowed(f"{caller} may not have the daemon's keys", hint=hint)
    async with app.removal.lock:
        return await asyncio.to_thread(backup.begin, app.state, keys=request.keys, version=app.version)


async def read_backup(app: App, request: wire.ReadBackup) -> wire.Data:
    """Read bytes of a frozen file."""
    return wire.Data(data=await asyncio.to_thread(backup.read, app.state, request.backup, request.path, request.offset, request.size))


async def end_backup(app: App, request: wire.EndBackup) -> wire.Done:
    """Delete the frozen copy."""
    await asyncio.to_thread(backup.end, app.state, request.backup)
    return wire.Done()
