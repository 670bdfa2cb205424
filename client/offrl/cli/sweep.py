"""The command sweep: a grid of settings as jobs, printed, saved as a script, or submitted."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from offrl.cli.output import Json, emit, table, talk
from offrl.cli.values import setting


def register(app: typer.Typer) -> None:
    """Put the command of this file into ``app``."""
    app.command()(sweep)


def sweep(
    grid: Annotated[str, typer.Argument(metavar="GRID", help="A TOML or JSON file: options for all jobs, and lists in a table `grid`.")],
    trials: Annotated[int, typer.Option("--trials", metavar="N", help="Seeds of each combination, trained together.", min=1)] = 1,
    first_seed: Annotated[int, typer.Option("--first-seed", metavar="S", help="The first of them.", min=0)] = 0,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the sweep: the names of its jobs, which are their keys, begin with it.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option or setting for all jobs; may be repeated.")
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Queue the jobs; those that were sent before are found again.")] = False,
    save: Annotated[str | None, typer.Option("--save", metavar="FILE", help="Write the commands into a file.")] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the commands, which is also what happens without an option.")] = False,
    as_json: Json = False,
) -> None:
    """Train all combinations of a grid. Prints a command for each job, or with --submit the jobs."""
    from offrl.errors import InvalidInput
    from offrl.sweep import plan, read

    if only_print + submit + (save is not None) > 1:
        raise InvalidInput("--print, --save and --submit are three ways", hint="give one of them")
    content = read(grid)
    jobs = plan({**content, **dict(map(setting, sets or []))}, trials=trials, first_seed=first_seed, name=name)
    if submit:
        from offrl.client import Client

        found: list[dict[str, Any]] = []
        with Client() as client:
            for job in jobs:
                found.append({"name": job.name, "job": job.submit(client).id})
        if as_json:
            emit(found)
        else:
            table(["name", "job"], [[each["name"], each["job"]] for each in found])
        return
    commands = [shlex.join(job.arguments()) for job in jobs]
    if save is not None:
        _write(save, commands)
        talk(f"{len(commands)} commands in {save}")
    if as_json:
        emit([{"name": job.name, "command": command} for job, command in zip(jobs, commands, strict=True)])
    elif save is None:
        print("\n".join(commands))


def _write(path: str, commands: list[str]) -> None:
    from offrl.errors import InvalidInput

    try:
        Path(path).write_text("".join(f"{command}\n" for command in commands), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot write {path!r}: {error.strerror}", hint="name a file in a folder that is there") from None
