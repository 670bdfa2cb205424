"""Commands about backups: backup, restore."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from offrl.cli.connecting import connect
from offrl.cli.keys import StateDir, state_folder
from offrl.cli.output import Json, emit, moment, number, say, size


def register(app: typer.Typer) -> None:
    """Put the commands of this file into ``app``."""
    app.command()(backup)
    app.command()(restore)


def backup(
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder on this machine.")],
    keys: Annotated[bool, typer.Option("--keys", help="Include the daemon's secret key and the list of clients.")] = False,
    as_json: Json = False,
) -> None:
    """Copy the queue, datasets and jobs of a running daemon. Operators only."""
    from offrl import backup as backups
    from offrl.cli.progress import bytes_bar

    with connect() as client, bytes_bar(f"backup {out}") as moved:
        about = backups.backup(client, out, keys=keys, progress=moved)
    _print(out, about, as_json)


def restore(
    source: Annotated[str, typer.Argument(metavar="IN", help="The folder of a backup.")],
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Restore a backup into an empty state folder; needs no daemon."""
    from offrl import backup as backups
    from offrl.cli.progress import bytes_bar

    target = state_folder(state_dir)
    with bytes_bar(f"restore {source}") as moved:
        about = backups.restore(source, target, progress=moved)
    _print(str(target), about, as_json)


def _print(path: str, about: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit({"path": path, **about})
    else:
        keys = "with keys" if about["keys"] else "without keys"
        say(f"{path}: {number(about['files'])} files, {size(about['bytes'])}, {keys}, state of {moment(about['time'])}")
