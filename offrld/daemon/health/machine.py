"""Figures of the machine: processors, memory, disk, cards, and the daemon's own share.

All but the cards come from /proc. ``nvidia-smi`` reads the cards, which takes up to a second, or for ever if the driver hangs: requests do
not wait for it, and it does not run again before its last answer is old.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from offrl.wire import Gpu, MachineInfo

BETWEEN_S = 0.5  # shortest useful time between two samples of processor time
GPU_S = 2.0  # age at which the cards are read again
GPU_WAIT_S = 1.5  # for the first answer of nvidia-smi; nobody waits for later ones
CGROUP = Path("/sys/fs/cgroup")
GPU_LIMIT_S = 20.0  # then the driver counts as hung
GPU_QUERY = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
MIB = 1 << 20


class Machine:
    """Reads the figures of this machine; processor shares count since the last sample."""

    def __init__(self, folder: Path) -> None:
        """``folder``: the figures are those of the disk that holds it."""
        self._folder = folder
        self._smi = shutil.which("nvidia-smi")
        self._cards: list[Gpu] = []
        self._asked = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._total, self._idle = _processor_times()
        self._own, self._at = time.process_time(), time.monotonic()
        self._busy: float | None = None
        self._share: float | None = None

    async def look(self) -> MachineInfo:
        """Return the figures now."""
        cards = await self._gpus()
        self._sample()
        memory = _memory()
        disk = shutil.disk_usage(self._folder)
        return MachineInfo(
            host=os.uname().nodename,
            cpus=len(os.sched_getaffinity(0)),
            load=list(os.getloadavg()),
            cpu_percent=self._busy,
            memory_bytes=memory.get("MemTotal"),
            memory_free_bytes=memory.get("MemAvailable"),
            disk_bytes=disk.total,
            disk_free_bytes=disk.free,
            daemon_cpu_percent=self._share,
            daemon_memory_bytes=_resident(),
            gpus=cards,
        )

    def _sample(self) -> None:
        now = time.monotonic()
        if now - self._at < BETWEEN_S:
            return
        total, idle = _processor_times()
        own = time.process_time()
        if total > self._total:
            self._busy = round(100.0 * (1.0 - (idle - self._idle) / (total - self._total)), 1)
        self._share = round(100.0 * (own - self._own) / (now - self._at), 1)
        self._total, self._idle, self._own, self._at = total, idle, own, now

    async def _gpus(self) -> list[Gpu]:
        if self._smi is None:
            return []
        if self._asking is None and time.monotonic() - self._asked > GPU_S:
            first = self._asked == float("-inf")
            self._asking = asyncio.get_running_loop().create_task(self._ask())
            if first:
                await asyncio.wait([self._asking], timeout=GPU_WAIT_S)
        return self._cards

    async def _ask(self) -> None:
        command = [str(self._smi), f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"]
        process: asyncio.subprocess.Process | None = None
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
            text, _ = await asyncio.wait_for(process.communicate(), GPU_LIMIT_S)
            self._cards = parse_cards(text.decode(errors="replace")) if process.returncode == 0 else []
        except (OSError, TimeoutError):
            self._cards = []
        finally:  # also if the daemon ends in the meantime
            if process is not None and process.returncode is None:
                process.kill()
            self._asked, self._asking = time.monotonic(), None


def parse_cards(text: str) -> list[Gpu]:
    """Parse the cards in nvidia-smi's output; a figure that a card does not have ("[N/A]") is None."""
    cards = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != len(GPU_QUERY.split(",")) or not parts[0].isdigit():
            continue
        percent, used, total, degrees, watts = (_figure(part) for part in parts[2:])
        cards.append(
            Gpu(
                index=int(parts[0]),
                name=parts[1],
                percent=percent,
                temperature_c=degrees,
                power_w=watts,
                memory_bytes=None if total is None else int(total * MIB),
                memory_used_bytes=None if used is None else int(used * MIB),
            )
        )
    return cards


def _figure(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _processor_times() -> tuple[float, float]:
    """Return the clock ticks of all processors since the start of the machine: in total, and idle."""
    try:
        parts = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0, 0.0
    return float(sum(parts)), float(sum(parts[3:5]))  # user nice system idle iowait irq softirq steal


def _memory() -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines) if value.split()}


def memory_left() -> tuple[int, int]:
    """Return free and total memory in bytes: those of the machine, or of its container if that has less."""
    memory = _memory()
    free, total = memory.get("MemAvailable", 1 << 62), memory.get("MemTotal", 1 << 62)
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            free, total = min(free, int(limit) - int(used)), min(total, int(limit))
    except (OSError, ValueError):  # no container, or an older kernel
        pass
    return free, total


def resident_of(pid: int) -> int:
    """Return the resident bytes of a process; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _resident() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
