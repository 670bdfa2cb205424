"""Commands about spools, in which recorded episodes wait: push, show."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from offrl.cli.connecting import connect
from offrl.cli.output import Json, emit, number, pairs, say, size

Folder = Annotated[str, typer.Argument(metavar="DIR", help="The spool's folder.")]


def register(group: typer.Typer) -> None:
    """Put the commands of this file into ``group``."""
    for command in (push, show):
        group.command()(command)


def push(folder: Folder, as_json: Json = False) -> None:
    """Send the episodes that a recorder has not sent yet."""
    from offrl.recording import push as send

    with connect() as client:
        dataset, segments = send(folder, client)
        episodes = client.datasets.show(dataset).episodes if segments else None
    if as_json:
        emit({"dataset": dataset, "segments": segments, "episodes": episodes})
    elif segments:
        say(f"sent: dataset {dataset!r} now has {number(episodes)} episodes")
    else:
        say("nothing was left to send")


def show(folder: Folder, as_json: Json = False) -> None:
    """Show what a recorder has not sent yet. An episode left open by a crash is closed as truncated."""
    from offrl.recording import Spool
    from offrl_store import EpisodeStore

    with Spool(folder) as spool:
        stores = [EpisodeStore.open(path) for _, path in spool.ready()]
        values: dict[str, Any] = {
            "dataset": spool.dataset,
            "segments": len(stores),
            "episodes": sum(map(len, stores)),
            "steps": sum(store.step_count for store in stores),
            "bytes": spool.size(),
        }
    if as_json:
        emit(values)
    else:
        pairs([(name, size(value) if name == "bytes" else str(value)) for name, value in values.items()])
