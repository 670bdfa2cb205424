"""Which source feeds a run: the choice by device, store and memory, made once per learner and told in the log."""

from __future__ import annotations

from collections.abc import Callable

import torch

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrld.engine.source import HostSource, Request, Source

FEEDS = ("auto", "host")


class Supply:
    """Opens the sources of one learner.

    Args:
        feed: ``host``, or ``auto``: what suits the device.
        log: takes one line that names the choice.
    """

    def __init__(self, store: EpisodeStore, device: torch.device, feed: str, log: Callable[[str], None]) -> None:
        if feed not in FEEDS:
            raise InvalidInput(f"feed {feed!r} is unknown", hint="use " + ", ".join(FEEDS))
        self._store, self._device = store, device
        self.feed = "host"
        log(f"feed: {self.feed}")

    def open(self, request: Request, *, ahead: bool = True) -> Source:
        """A source for ``request``. ahead: it will be asked for many updates in order, so that a thread is worth while."""
        return HostSource(self._store, request)
