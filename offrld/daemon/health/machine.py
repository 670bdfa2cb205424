"""The machine that the daemon runs on, in figures: processors, memory, disk, cards, and the daemon's own share.

All but the cards comes from /proc. The cards are asked for by ``nvidia-smi``, which takes up to a second, or for ever where the driver
hangs: nobody waits for it, and it is not asked again before the last answer is old.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from offrl.wire import Gpu, MachineInfo

BETWEEN_S = 0.5  # samples of processor time closer together than this say nothing
GPU_S = 2.0  # age at which the cards are read again
GPU_WAIT_S = 1.5  # for the first answer of the cards; later ones are not waited for
CGROUP = Path("/sys/fs/cgroup")
GPU_LIMIT_S = 20.0  # a driver that hangs
GPU_QUERY = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
MIB = 1 << 20


class Machine:
    """Figures of this machine; processor shares are those since the sample before."""

    def __init__(self, folder: Path) -> None:
        """``folder``: the disk that counts is the one that holds it."""
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
        """The figures now."""
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
        finally:  # also where the daemon ends meanwhile
            if process is not None and process.returncode is None:
                process.kill()
            self._asked, self._asking = time.monotonic(), None


def parse_cards(text: str) -> list[Gpu]:
    """The cards in what nvidia-smi prints; a figure that a card does not have ("[N/A]") is None."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != len(GPU_QUERY.split(",")) or not parts[0].isdigit():
            continue
        percent, used, total, degrees, watts = (_figure(part) for part in parts[2:])
        found.append(
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
    return found


def _figure(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _processor_times() -> tuple[float, float]:
    """Clock ticks of all processors since the start of the machine: in total, and idle."""
    try:
        parts = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0, 0.0
    return float(sum(parts)), float(sum(parts[3:5]))  # user nice system idle iowait irq softirq steal


def _memory() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines) if value.split()}


def memory_left() -> tuple[int, int]:
    """Bytes that a process could get, and bytes in all: of the machine, or of its container where that has less."""
    found = _memory()
    free, total = found.get("MemAvailable", 1 << 62), found.get("MemTotal", 1 << 62)
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            free, total = min(free, int(limit) - int(used)), min(total, int(limit))
    except (OSError, ValueError):  # no container, or an older kernel's
        pass
    return free, total


def resident_of(pid: int) -> int:
    """Bytes of a process in memory; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
