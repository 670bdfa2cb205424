"""Shell completion: the daemon's jobs, datasets and algorithms; nothing if the daemon does not answer at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from offrl import printable

if TYPE_CHECKING:
    from offrl.client import Client

PATIENCE_S = 0.3  # a shell that hangs at the tab key is worse than one that offers nothing
JOBS = 200

Words = list[tuple[str, str]]


def jobs(incomplete: str) -> Words:
    """Return ids of jobs, the newest first, each with a description."""

    def ask(client: Client) -> Words:
        infos = [job.last for job in reversed(client.jobs("all", limit=JOBS)) if job.last is not None]
        return [(info.job, " ".join(filter(None, (info.state.value, info.algorithm or info.kind, info.dataset)))) for info in infos]

    return _offered(ask, incomplete)


def datasets(incomplete: str) -> Words:
    """Return names of datasets, each with its number of episodes."""
    return _offered(lambda client: [(each.name, f"{each.episodes} episodes") for each in client.datasets.ls()], incomplete)


def algorithms(incomplete: str) -> Words:
    """Return names of algorithms, each with its summary."""
    return _offered(lambda client: [(each["name"], each["summary"]) for each in client.algos()], incomplete)


def _offered(ask: Callable[[Client], Words], incomplete: str) -> Words:
    """Return the daemon's answer if it comes in time. A thread that still waits is abandoned: the process ends anyway."""
    found: Words = []

    def work() -> None:
        from offrl.client import Client
        from offrl_store.errors import OffrlError

        try:
            with Client(timeout=PATIENCE_S, patience=0.0) as client:
                found.extend(ask(client))
        except OffrlError:  # no daemon, or no permission: offer nothing
            return

    import offrl.client  # noqa: F401  loaded before the clock runs

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return [(printable.line(name), printable.line(about)) for name, about in list(found) if name.startswith(incomplete)]
