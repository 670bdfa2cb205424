"""The command doctor: check everything between this machine and a trained policy, one line per check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from offrl.cli.connecting import connect
from offrl.cli.output import Json, emit, say

if TYPE_CHECKING:
    from offrl.wire import Check

COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


def register(app: typer.Typer) -> None:
    """Put the command of this file into ``app``."""
    app.command()(doctor)


def doctor(
    no_train: Annotated[bool, typer.Option("--no-train", help="Skip the ten seconds of training.")] = False, as_json: Json = False
) -> None:
    """Check the client, daemon, disk and devices, and train for ten seconds; exit status 1 if a check fails."""
    from offrl.doctor import examine

    checks: list[Check] = []

    def see(check: Check) -> None:
        checks.append(check)
        if not as_json:
            _print(check)

    versions = examine(connect, see, train=not no_train)
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        emit({"ok": not failed, "checks": [check.model_dump(mode="json") for check in checks], "versions": versions})
    if failed:
        raise typer.Exit(1)


def _print(check: Check) -> None:
    text = f"  {check.name}: {check.message}" + (f"; {check.hint}" if check.hint else "")
    say(text, word=check.status.ljust(4), colour=COLOURS[check.status])
