"""Requests about uploads: open, write, finish, list, remove. Threads do the work, one request of an upload after the other."""

from __future__ import annotations

import asyncio

from offrl import wire
from offrl.errors import Conflict
from offrld.daemon.app import App
from offrld.daemon.queue import UNFINISHED
from offrld.daemon.queue.database import Connection

PART = 2000  # uploads in one message


async def open_upload(app: App, request: wire.OpenUpload) -> wire.UploadOpened:
    """Begin or continue an upload."""
    async with app.one_at_a_time(f"upload {request.upload}"):
        if not await asyncio.to_thread(app.uploads.known, request.upload):
            await app.keeper.check_room(sum(file.size for file in request.files))
        elif left := await asyncio.to_thread(app.uploads.still_to_come, request.upload):  # else its bytes are already counted
            await app.keeper.check_room(left)
        received = await asyncio.to_thread(app.uploads.open, request.upload, request.files, app.caller())
    return wire.UploadOpened(upload=request.upload, received=received)


async def write_chunk(app: App, request: wire.WriteChunk) -> wire.Received:
    """Store one chunk."""
    async with app.one_at_a_time(f"upload {request.upload}"):
        received = await asyncio.to_thread(
            app.uploads.write, request.upload, request.path, request.offset, request.data, request.crc32, app.caller()
        )
    return wire.Received(received=received)


async def finish_upload(app: App, request: wire.FinishUpload) -> wire.Done:
    """Check the whole upload and make it usable."""
    async with app.one_at_a_time(f"upload {request.upload}"):
        await asyncio.to_thread(app.uploads.finish, request.upload, app.caller())
    return wire.Done()


async def list_uploads(app: App, request: wire.ListUploads) -> wire.UploadList:
    """List the caller's own uploads, or for an operator all; one part at a time."""
    infos = await asyncio.to_thread(app.uploads.listing, app.caller())
    names = [info.upload for info in infos]
    if request.after is not None:
        infos = infos[names.index(request.after) + 1 :] if request.after in names else []
    jobs = await app.database.read(_readers)
    part = [info.model_copy(update={"job": jobs.get(info.upload)}) for info in infos[:PART]]
    return wire.UploadList(uploads=part, next=part[-1].upload if len(infos) > PART else None)


async def remove_upload(app: App, request: wire.RemoveUpload) -> wire.Done:
    """Delete an upload, unless a job still reads it."""
    async with app.one_at_a_time(f"upload {request.upload}"):
        await asyncio.to_thread(app.uploads.check_removable, request.upload, app.caller())
        if (job := (await app.database.read(_readers)).get(request.upload)) is not None:
            raise Conflict(f"upload {request.upload} is read by job {job}", hint=f"wait for it, or `offrl cancel {job}` first")
        await asyncio.to_thread(app.uploads.remove, request.upload)
    return wire.Done()


def _readers(db: Connection) -> dict[str, str]:
    """Return the uploads that unfinished jobs read: upload -> job."""
    rows = db.execute(
        f"SELECT json_extract(spec, '$.upload'), id FROM jobs WHERE kind IN ('import', 'collect') AND state IN {UNFINISHED}"
        " AND json_extract(spec, '$.upload') IS NOT NULL"
    )
    return {row[0]: row[1] for row in rows}
