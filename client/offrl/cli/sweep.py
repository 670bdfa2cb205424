"""The command sweep: a grid of settings as jobs, printed, saved as a script, or submitted."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offrl import outfile, printable
from offrl.cli import options
from offrl.cli.connecting import connect
from offrl.cli.output import Json, emit, say, table, talk
from offrl.cli.values import count, setting
from offrl.errors import Conflict, InvalidInput, OffrlError

if TYPE_CHECKING:
    from offrl.sweep import Trial


def register(app: typer.Typer) -> None:
    """Put the command of this file into ``app``."""
    app.command()(sweep)


def sweep(
    grid: Annotated[str, typer.Argument(metavar="GRID", help="TOML or JSON file: options for all jobs, and lists in a table `grid`.")],
    trials: Annotated[int, typer.Option("--trials", parser=count, metavar="N", help="Seeds of each combination, trained together.")] = 1,
    first_seed: Annotated[int, typer.Option("--first-seed", parser=count, metavar="S", help="First seed.")] = 0,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option or setting for all jobs; may be repeated.")
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Prefix of all job names, for example to submit a grid again with other options.")
    ] = "",
    submit: Annotated[bool, typer.Option("--submit", help="Queue the jobs; jobs of an earlier submission are not repeated.")] = False,
    save: Annotated[str | None, typer.Option("--save", metavar="FILE", help="Write the commands to a file; - is stdout.")] = None,
    force: options.Force = False,
    only_print: Annotated[bool, typer.Option("--print", help="Print the commands (the default).")] = False,
    as_json: Json = False,
) -> None:
    """Train all combinations of a grid. Prints a command for each job, or with --submit the jobs."""
    from offrl.sweep import plan, read

    if only_print + submit + (save is not None) > 1:
        raise InvalidInput("--print, --save and --submit exclude each other", hint="pass one of them")
    content = read(grid)
    jobs = plan({**content, **dict(map(setting, sets or []))}, trials=trials, first_seed=first_seed, name=name)
    if submit:
        found: list[dict[str, Any]] = []
        with connect() as client:
            for job in jobs:
                try:
                    found.append({"name": job.name, "job": job.submit(client).id})
                except Conflict as error:  # of its key, which is its name
                    raise Conflict(
                        f"a job {job.name} with other options already exists: {error.message}",
                        hint="send these under another name: --name NAME",
                    ) from None
                except OffrlError:
                    if found:
                        sent = " ".join(each["job"] for each in found)
                        talk(f"{len(found)} of {len(jobs)} jobs are in the queue: {sent}; the corrected sweep does not queue them again")
                    raise
        if as_json:
            emit(found)
        else:
            table(["name", "job"], [[each["name"], each["job"]] for each in found])
        return
    commands = [_command(job) for job in jobs]
    if save not in (None, "-"):
        outfile.write(save, "".join(f"{command}\n" for command in commands), force=force)
        talk(f"{len(commands)} commands in {save}")
    if as_json:
        emit([{"name": job.name, "command": command} for job, command in zip(jobs, commands, strict=True)])
    elif save in (None, "-"):
        for command in commands:
            say(command)


def _command(job: Trial) -> str:
    """A job as a line for a shell. Raises `InvalidInput` for what no line can hold."""
    command = shlex.join(job.arguments())
    if printable.line(command) != command:
        raise InvalidInput(f"job {job.name}: a value holds control characters", hint="leave them out")
    return command
