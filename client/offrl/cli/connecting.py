"""The connection of a command, which waits for a daemon that is starting."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offrl.cli.output import talk

if TYPE_CHECKING:
    from offrl.client import Client

BEGIN_S = 2.0  # for `offrl serve` in another terminal to lock its state folder
START_S = 60.0  # from the lock until the daemon listens: a busy machine, or the check of a large database
LOOK_S = 0.1  # between two attempts


def connect(**options: Any) -> Client:
    """Make a client of the daemon, with the options and errors of `offrl.client.Client`."""
    from offrl.client import Client
    from offrl.errors import NoDaemon

    began, announced = time.monotonic(), False
    while True:
        try:
            return Client(lost=_lost, **options)
        except NoDaemon:
            waited = time.monotonic() - began
            starting = _starting()
            if waited >= (START_S if starting else BEGIN_S if _usual() else 0.0):
                raise
            if starting and not announced:
                announced = True
                talk("the daemon is starting")
            time.sleep(LOOK_S)


def _lost(gone: bool) -> None:
    talk("no daemon there any more; trying again" if gone else "the daemon is back")


def _usual() -> bool:
    """Whether the environment gives no address of the daemon."""
    return not os.environ.get("OFFRL_URL") and not os.environ.get("OFFRLD_STATE_DIR")


def _starting() -> bool:
    """Whether a daemon of this machine has locked its state folder: it does so before it listens."""
    from offrl import address

    if os.environ.get("OFFRL_URL"):
        return False
    named = os.environ.get("OFFRLD_STATE_DIR")
    return any(_locked(Path(folder)) for folder in ([named] if named else address.usual_state_dirs()))


def _locked(state_dir: Path) -> bool:
    try:
        process = int((state_dir / "run" / "offrld.lock").read_text())
        return b"offrld" in Path(f"/proc/{process}/cmdline").read_bytes()
    except (OSError, ValueError):  # no daemon was here, or its process has ended
        return False
