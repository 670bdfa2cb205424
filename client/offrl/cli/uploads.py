"""Commands about uploads that are unfinished, or not imported yet: ls, rm."""

from __future__ import annotations

from typing import Annotated

import typer

from offrl.cli.connecting import connect
from offrl.cli.output import Json, emit, number, say, seconds, size, table


def register(group: typer.Typer) -> None:
    """Put the commands of this file into ``group``."""
    group.command()(ls)
    group.command()(rm)


def ls(as_json: Json = False) -> None:
    """List your uploads that are unfinished or not imported yet; operators see everybody's."""
    with connect() as client:
        found = client.uploads()
    if as_json:
        emit(found)
        return
    headers = ["upload", "owner", "files", "arrived", "size", "idle", "state"]
    rows = [
        [
            each.upload,
            each.owner or "",
            number(each.files),
            size(each.bytes),
            size(each.size),
            seconds(each.age_s),
            f"read by job {each.job}" if each.job else "finished" if each.finished else "unfinished",
        ]
        for each in found
    ]
    table(headers, rows, right=headers[2:6])


def rm(
    upload: Annotated[str, typer.Argument(metavar="ID", help="The upload, as `offrl uploads ls` shows it.")], as_json: Json = False
) -> None:
    """Delete an upload; refused while a job reads it."""
    with connect() as client:
        client.remove_upload(upload)
    if as_json:
        emit({"upload": upload, "removed": True})
    else:
        say(f"removed {upload}")
