"""The other libraries that collect in CartPole: each in a process of the peers' interpreter, which runs one round per line of input."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Self

from benchmarks.store_peers import ENVIRONMENT, ROOT, environment, last_line

LIBRARIES = {"torchrl": "TorchRL", "sb3": "SB3", "d3rlpy": "d3rlpy"}  # as peers/collect_peer.py and store_peers.py name them
GYMNASIUM = "gymnasium==1.2.2"  # TorchRL refuses version 1.0.0, which d3rlpy requires


class Absent(Exception):
    """A library cannot be measured here; the message says why."""


class Peer:
    """One of `LIBRARIES` after its first round. A context manager."""

    def __init__(self, name: str, steps: int, folder: Path) -> None:
        """Start the library's process.

        Args:
            steps: steps of a round.

        Raises:
            Absent: it could not be installed, or its first round failed.
        """
        python, failed = environment()
        if LIBRARIES[name] in failed:
            raise Absent(failed[LIBRARIES[name]])
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        if name == "torchrl":
            newer = ENVIRONMENT / "gymnasium-newer"
            if not newer.exists():
                subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--target", newer, GYMNASIUM], check=True)
            settings["PYTHONPATH"] = str(newer)
        command = [str(python), str(ROOT / "benchmarks" / "peers" / "collect_peer.py"), name, str(steps), str(folder)]
        self._log = folder / f"{name}.log"
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=settings, cwd=folder
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._answer()

    def round(self) -> tuple[float, float]:
        """Run another round. Returns its steps per second, by wall clock and by processor time."""
        self._stdin.write("\n")
        self._stdin.flush()
        wall, cpu = json.loads(self._answer())
        return wall, cpu

    def _answer(self) -> str:
        for line in self._stdout:
            if line.startswith(("ready", "[")):  # d3rlpy also logs to this stream
                return line
        raise Absent(last_line(self._log.read_text()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stdin.close()  # ends the process
        self._stdout.close()
        self._process.wait()
