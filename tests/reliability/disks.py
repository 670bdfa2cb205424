"""A small disk of a daemon's own: a tmpfs in a mount namespace, which can be filled, freed, and made read-only under a running service.

Only root may mount; elsewhere `SmallDisk.unavailable` says why, and the tests that need one are skipped.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SmallDisk:
    """The folder ``where`` is a tmpfs for all that is started with `program`; from outside it is seen at `inside`."""

    def __init__(self, where: Path, megabytes: int) -> None:
        self._where = where
        command = f"mount -t tmpfs -o size={megabytes}m none {where} && echo mounted && exec sleep 100000"
        self._holder = subprocess.Popen(["unshare", "-m", "sh", "-c", command], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"mounted\n"

    @staticmethod
    def unavailable() -> str:
        """Why there can be none here; "" where there can."""
        command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            return "needs the program unshare"
        return "" if done.returncode == 0 else f"may not mount: {done.stderr.strip()}"

    @property
    def enter(self) -> tuple[str, ...]:
        """A command line put behind this runs with the disk in its place."""
        return ("nsenter", "-t", str(self._holder.pid), "-m")

    @property
    def program(self) -> tuple[str, ...]:
        """The daemon on this disk."""
        return (*self.enter, sys.executable, "-m", "offrld.daemon.main")

    @property
    def inside(self) -> Path:
        """The disk as the test sees it."""
        return Path(f"/proc/{self._holder.pid}/root{self._where}")

    def fill(self) -> None:
        """Fill all free space."""
        try:
            with (self.inside / "filler").open("ab", buffering=0) as file:
                while file.write(bytes(4096)) == 4096:
                    pass
        except OSError as error:
            if error.errno != 28:
                raise

    def free(self) -> None:
        """Free the space again."""
        (self.inside / "filler").unlink(missing_ok=True)

    def remount(self, option: str) -> None:
        """``ro`` or ``rw``."""
        subprocess.run([*self.enter, "mount", "-o", f"remount,{option}", str(self._where)], check=True)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


@contextmanager
def small_disk(where: Path, megabytes: int) -> Iterator[SmallDisk]:
    """One for a ``with`` block."""
    where.mkdir(parents=True, exist_ok=True)
    disk = SmallDisk(where, megabytes)
    try:
        yield disk
    finally:
        disk.close()
