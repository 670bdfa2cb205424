"""Options that several commands share and that are not fields of a job's specification (`offrl.cli.job_options` has those)."""

from __future__ import annotations

from typing import Annotated

import typer

from offrl.cli import completion
from offrl.cli.values import count

# What is trained, and where it acts.
Algorithm = Annotated[str, typer.Argument(metavar="ALGO", help="An algorithm of `offrl algos`.", autocompletion=completion.algorithms)]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the algorithm; may be repeated.")]
Config = Annotated[str | None, typer.Option("--config", metavar="F.toml", help="TOML file with settings; --set overrides it.")]
Env = Annotated[str, typer.Option("--env", metavar="ID", help="Gymnasium environment, created by the daemon.")]

# How it is queued.
Priority = Annotated[int, typer.Option("--priority", parser=count, metavar="P", help="Jobs with a higher priority run first.")]
After = Annotated[
    list[str] | None,
    typer.Option("--after", metavar="JOB", help="Start once JOB has succeeded; may be repeated.", autocompletion=completion.jobs),
]
Key = Annotated[str | None, typer.Option("--key", metavar="K", help="Submission key: the same key never queues a second job.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the job has ended; exit status 1 if it fails.")]

# Where a result goes.
Force = Annotated[bool, typer.Option("--force", help="Replace a file that has different content.")]
