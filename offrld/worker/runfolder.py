"""A job's run folder: where everything in it stands, and the lock and attempt number that let only one worker write there."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from offrl.job import POLICY_SUFFIXES
from offrl_store.disk import write_atomic
from offrld.json_safe import json_safe
from offrld.worker.control import Control

LOCK_WAIT_S = 30.0  # a worker whose daemon was killed has this long to notice and let go


class Fenced(Exception):
    """Another worker has this job: a later attempt was started, or one that still runs holds the lock."""


class StateFolder:
    """The daemon's state folder, as far as a worker uses it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.datasets = self.path / "datasets"
        self.uploads = self.path / "uploads"
        self.inductor_cache = self.path / "cache" / "inductor"
        self.policy_templates = self.path / "cache" / "policies"

    def dataset(self, name: str) -> Path:
        """The store of that name."""
        return self.datasets / name

    def run(self, job: str) -> RunFolder:
        """The run folder of a job."""
        return RunFolder(self.path / "jobs" / job)


class RunFolder:
    """The paths of one job's run folder. `claim` before writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "spec.json"
        self.config = path / "config.json"
        self.events = path / "events.jsonl"
        self.checkpoints = path / "checkpoints"
        self.dataset = path / "dataset"
        self.taken = path / "taken"  # checkpoints of other jobs that this one goes on from, kept since its first attempt
        self.evaluating = path / "evaluating"  # while an evaluation goes on: how many have begun since one has ended
        self.temporary = path / "tmp"
        self._lock: int | None = None

    def claim(self, attempt: int, control: Control, wait_s: float = LOCK_WAIT_S) -> None:
        """Take the folder's lock and record this attempt.

        Waits up to ``wait_s`` seconds for a worker that still holds the lock. Raises `Fenced` where that takes longer or a
        later attempt was there already, and `Stopped` where the job is told to stop meanwhile.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                control.check()
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise Fenced(f"another worker still holds {self.path} after {wait_s:.0f} s") from None
                control.wait(0.02)
        self._lock = descriptor  # held until the process ends: the kernel lets go of it then, whatever the end
        path = self.path / "attempt"
        seen = int(path.read_text() or 0) if path.exists() else 0
        if seen > attempt:
            raise Fenced(f"attempt {seen} of this job was started after this one ({attempt})")
        write_atomic(path, f"{attempt}\n".encode())

    def checkpoint(self, step: int) -> Path:
        """The checkpoint file of a step."""
        return self.checkpoints / f"{step:012d}.safetensors"

    def checkpoint_steps(self) -> list[int]:
        """The steps of which there is a checkpoint, ascending."""
        if not self.checkpoints.is_dir():
            return []
        found = (re.fullmatch(r"(\d{12})\.safetensors", entry.name) for entry in self.checkpoints.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def seed(self, seed: int) -> Path:
        """The folder of one seed's outputs."""
        return self.path / f"seed-{seed}"

    def policy(self, seed: int, step: int, format: str = "onnx") -> Path:
        """The exported policy of a seed at a step."""
        return self.seed(seed) / f"policy-{step:012d}{POLICY_SUFFIXES[format]}"

    def metrics(self, seed: int) -> Path:
        """The folder of a seed's metric files."""
        return self.seed(seed) / "metrics"

    def tensorboard(self, seed: int) -> Path:
        """The folder of a seed's TensorBoard events."""
        return self.seed(seed) / "tensorboard"


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of a JSON value; numbers that JSON cannot hold become null."""
    write_atomic(path, (json.dumps(json_safe(value), indent=1, allow_nan=False) + "\n").encode())


def remove(path: Path) -> None:
    """Remove a file or a folder with everything in it; nothing happens where it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
