"""The command about the audit log: audit."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Annotated, Any

import typer

from offrl.cli.connecting import connect
from offrl.cli.output import Json, emit, table
from offrl.cli.output import moment as as_moment
from offrl.cli.values import UNITS
from offrl.errors import InvalidInput

SHOWN = ("n", "time", "caller", "role", "address", "action", "outcome")  # they have columns of their own


def register(app: typer.Typer) -> None:
    """Put the command of this file into ``app``."""
    app.command()(audit)


def audit(
    since: Annotated[
        str, typer.Option("--since", metavar="T", help="Oldest entry to show: 90m, 24h, 7d, or a time such as 2026-11-30T12:00.")
    ] = "24h",
    as_json: Json = False,
) -> None:
    """Show who changed what. Operators only."""
    with connect() as client:
        entries = list(client.audit(moment(since)))
    if as_json:
        emit(entries)
    else:
        headers = ["time", "caller", "action", "outcome", "about", "from"]
        table(headers, [_row(entry) for entry in entries])


def moment(text: str) -> float:
    """Return seconds since the epoch for a time, or for an age such as ``90m``. Raises `InvalidInput`."""
    if match := re.fullmatch(r"(\d{1,9})([smhdw])", text, re.ASCII):
        return max(0.0, time.time() - int(match[1]) * UNITS[match[2]])
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise InvalidInput(f"--since {text!r} is not a time", hint="for example 90m, 24h, 7d, 2026-11-30 or 2026-11-30T12:00") from None


def _row(entry: dict[str, Any]) -> list[str]:
    about = " ".join(f"{name}={value}" for name, value in entry.items() if name not in SHOWN)
    return [as_moment(entry["time"]), f"{entry['caller']} ({entry['role']})", entry["action"], entry["outcome"], about, entry["address"]]
