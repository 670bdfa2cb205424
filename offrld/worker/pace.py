"""The size of a block of updates, and their speed."""

from __future__ import annotations

from collections import deque

BLOCK_S = 0.25  # target duration of a block: control messages take effect between two blocks
WINDOW_S = 10.0  # the speed is measured over this time


class Pace:
    """Measures blocks of updates. The first block is one update, whose time (compiling, warming up) does not count."""

    def __init__(self) -> None:
        self.block = 1
        self._recent: deque[tuple[int, float]] = deque()
        self._updates, self._seconds = 0, 0.0
        self._warm = False

    def add(self, updates: int, seconds: float) -> None:
        """Add a block and the time that it took."""
        if not self._warm:
            self._warm = True
            return
        self._recent.append((updates, seconds))
        self._updates += updates
        self._seconds += seconds
        while len(self._recent) > 1 and self._seconds - self._recent[0][1] > WINDOW_S:
            old_updates, old_seconds = self._recent.popleft()
            self._updates -= old_updates
            self._seconds -= old_seconds
        # At most four times the last block: the first blocks predict the next ones poorly.
        self.block = max(1, min(4 * self.block, int((self.updates_per_second or 1.0) * BLOCK_S)))

    @property
    def updates_per_second(self) -> float | None:
        """The speed over the last `WINDOW_S`; None before the first measurement."""
        return self._updates / self._seconds if self._updates and self._seconds > 0 else None

    def seconds(self, updates: int) -> float:
        """Return the expected time for a number of updates."""
        speed = self.updates_per_second
        return updates / speed if speed else 0.0
