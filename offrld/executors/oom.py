"""Whether the kernel's out-of-memory killer was at work: its counters for the memory cgroup of a process, else for the machine.

A process that it ended shows SIGKILL and nothing else. The counters only grow; two looks, one while the process lived and one after its
end, tell. Formats: cgroup v2 ``memory.events``, v1 ``memory.oom_control`` (both with a line ``oom_kill N``), ``/proc/vmstat``.
"""

from __future__ import annotations

from pathlib import Path

V1, V2 = "memory.oom_control", "memory.events"


class OomCounter:
    """The counter for one process. Make it while the process lives; ``grown`` says whether a process was killed since the last call."""

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        """``root``: the file system with ``proc`` and ``sys`` in it."""
        # The cgroup's counter, where there is one, is the better witness: the machine's counts what others' containers do as well.
        file = _of_cgroup(pid, root)
        self._file = file if file is not None and _read(file) is not None else root / "proc/vmstat"
        self._seen = _read(self._file) or 0

    def grown(self) -> bool:
        """Whether the counter has grown since it was last looked at."""
        count = _read(self._file)
        if count is None:  # the group is gone with its last process
            return False
        seen, self._seen = self._seen, count
        return count > seen


def _of_cgroup(pid: int, root: Path) -> Path | None:
    """The file of the group of the process: the kernel counts a kill in the victim's own group, wherever the limit stood."""
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
