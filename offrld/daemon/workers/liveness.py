"""The signs of life of one worker: when it gave the last one, what it is busy with, and how long it may be silent.

The worker gives them from its training loop, never from a thread beside it, so a loop that hangs is silent. Every line of its stdout
counts as a sign of life.
"""

from __future__ import annotations

import json
import time

from offrld.daemon.config import Grace


class Liveness:
    """Create it when the worker starts. `line` takes the worker's lines; `left_s` is how long it may still be silent."""

    def __init__(self, grace: Grace, *, loops: bool) -> None:
        """``loops``: once started, this kind of job gives signs all the time; the others always get the longer limit."""
        self._grace, self._loops = grace, loops
        self._since = time.monotonic()
        self.heard = False  # whether the worker has sent a line
        self.busy = "starting"
        self.device_bytes = 0  # peak memory on a card that the worker has reported

    def line(self, line: bytes) -> bool:
        """Take a line of the worker's stdout. Return False if it is only a sign of life and holds no other news."""
        self._since = time.monotonic()
        self.heard = True
        if b'"alive"' not in line[:40]:
            if b'"progress"' in line[:40]:
                self.busy = ""
            return True
        try:
            sign = json.loads(line)
            busy, device_bytes = sign.get("busy"), sign.get("device_bytes")
        except (ValueError, AttributeError):
            return True
        self.busy = str(busy or "")[:100]
        if isinstance(device_bytes, int):
            self.device_bytes = max(self.device_bytes, device_bytes)
        return False

    @property
    def limit_s(self) -> float:
        """The longest silence that is allowed now, in seconds."""
        return max(self._grace.busy_s, self._grace.hang_s) if self.busy or not self._loops else self._grace.hang_s

    @property
    def left_s(self) -> float:
        """Seconds of silence that are left; negative once the worker counts as hung."""
        return self._since + self.limit_s - time.monotonic()

    def silence(self, step: int) -> str:
        """Describe the silence, with the last known step."""
        activity = f" while {self.busy}" if self.busy else ""
        return f"no sign of life for {self.limit_s:g} s{activity}, last step {step}"
