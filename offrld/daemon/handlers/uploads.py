"""Requests of an upload: begin, chunk, finish. The work is done in threads, one request of an upload after the other."""

from __future__ import annotations

import asyncio

from offrl import wire
from offrld.daemon.app import App


async def open_upload(app: App, request: wire.OpenUpload) -> wire.UploadOpened:
    """Begin or go on."""
    async with app.one_at_a_time(f"upload {request.upload}"):
        if not await asyncio.to_thread(app.uploads.known, request.upload):  # what was begun is counted, and may go on
            await app.keeper.check_room(sum(file.size for file in request.files))
        received = await asyncio.to_thread(app.uploads.open, request.upload, request.files, app.caller())
    return wire.UploadOpened(upload=request.upload, received=received)


async def write_chunk(app: App, request: wire.WriteChunk) -> wire.Received:
    """Keep one chunk."""
    async with app.one_at_a_time(f"upload {request.upload}"):
        received = await asyncio.to_thread(
            app.uploads.write, request.upload, request.path, request.offset, request.data, request.crc32, app.caller()
        )
    return wire.Received(received=received)


async def finish_upload(app: App, request: wire.FinishUpload) -> wire.Done:
    """Check everything and make it usable."""
    async with app.one_at_a_time(f"upload {request.upload}"):
        await asyncio.to_thread(app.uploads.finish, request.upload, app.caller())
    return wire.Done()
