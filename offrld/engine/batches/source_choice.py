"""The choice of a run's source, by device, store and memory: once per learner, with one line in the log."""

from __future__ import annotations

from collections.abc import Callable

import torch

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrld.engine.batches.prefetch import PrefetchSource
from offrld.engine.batches.resident import SHARE, Resident, ResidentSource, free_bytes, needed_bytes
from offrld.engine.batches.source import HostSource, Request, Source

FEEDS = ("auto", "host", "prefetch", "resident")


class SourceChoice:
    """Opens the sources of one learner.

    Args:
        feed: ``host`` (batches are filled when they are read; zero-copy on the CPU), ``prefetch`` (a thread fills batches in advance;
            pinned memory if there is a GPU), ``resident`` (the store is on the device and is sampled there), or ``auto``: host on the
            CPU; on a GPU resident if the store needs at most half of the free memory, else prefetch. All make the same batches.
        log: receives one line that names the choice.

    Raises:
        InvalidInput: an unknown feed.
    """

    def __init__(self, store: EpisodeStore, device: torch.device, feed: str, log: Callable[[str], None]) -> None:
        if feed not in FEEDS:
            raise InvalidInput(f"feed {feed!r} is unknown", hint="use " + ", ".join(FEEDS))
        self.store, self._device, self._log = store, device, log
        self._requested, self._chosen = feed, ""
        self._resident: Resident | None = None

    @property
    def feed(self) -> str:
        """The name of the chosen source; empty before the first `open`."""
        return self._chosen

    def open(self, request: Request, *, ahead: bool = True) -> Source:
        """Open a source for ``request``; the first request decides the choice.

        Args:
            ahead: many updates follow in order, so that a thread pays off.

        Raises:
            InvalidInput: the feed is ``resident`` and the store does not fit on the device.
        """
        if not self._chosen:
            self._chosen, why = self._choose(request)
            self._log(f"feed: {self._chosen}, {why}")
        if self._chosen == "resident":
            if self._resident is None:
                self._resident = Resident(self.store, self._device)
            return ResidentSource(self._resident, request)
        if self._chosen == "prefetch" and ahead:
            return PrefetchSource(self.store, request, self._device)
        return HostSource(self.store, request)

    def _choose(self, request: Request) -> tuple[str, str]:
        """The feed, and why it was chosen."""
        if self._requested in ("host", "prefetch"):
            return self._requested, "as requested"
        if self._requested == "auto" and self._device.type != "cuda":
            return "host", f"because the device is {self._device}"
        needed, free = needed_bytes(self.store, request), free_bytes(self._device)
        room = f"the store takes {_size(needed)} of {_size(free)} free on {self._device}"
        if self._requested == "resident":
            if needed > free:
                raise InvalidInput(f"feed 'resident' does not fit: {room}", hint="use the feed prefetch, or auto")
            return "resident", f"as requested: {room}"
        return ("resident", f"because {room}") if needed <= SHARE * free else ("prefetch", f"because {room}, more than {SHARE:.0%}")


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
