"""Detect kills by the kernel's out-of-memory killer, from its counter for the memory cgroup of a process or else for the machine.

A process that it killed shows only SIGKILL. The counters never shrink, so a growth between a read during the process's life and one after
its end shows a kill. Formats: cgroup v2 ``memory.events``, v1 ``memory.oom_control`` (both with a line ``oom_kill N``), ``/proc/vmstat``.
"""

from __future__ import annotations

from pathlib import Path

V1, V2 = "memory.oom_control", "memory.events"


class OomCounter:
    """The counter for one process. Make it while the process lives; `grown` returns whether the counter has grown since."""

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        """``root``: the folder that holds ``proc`` and ``sys``."""
        # The cgroup's counter is better, if there is one: the machine's also counts kills in other containers.
        file = _of_cgroup(pid, root)
        self._file = file if file is not None and _read(file) is not None else root / "proc/vmstat"
        self._seen = _read(self._file) or 0

    def grown(self) -> bool:
        """Return whether the counter has grown since it was last read."""
        count = _read(self._file)
        if count is None:  # the group disappeared with its last process
            return False
        seen, self._seen = self._seen, count
        return count > seen


def _of_cgroup(pid: int, root: Path) -> Path | None:
    """Return the counter file of a process's own group: the kernel counts a kill there, whichever group had the limit."""
    unified = None
    try:
        lines = (root / f"proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    base = root / "sys/fs/cgroup"
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return base / "memory" / path.strip("/") / V1
        if not controllers:
            unified = base / path.strip("/") / V2
    return unified


def _read(file: Path) -> int | None:
    try:
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        pass
    return None
