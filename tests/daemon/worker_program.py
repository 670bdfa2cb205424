"""A small real worker with the worker protocol; the job's setting ``behaviour`` chooses how it fails. Standard library only."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path


class Gone(Exception):
    """The control pipe was closed."""


class Worker:
    def __init__(self) -> None:
        self.buffer = b""
        self.closed = False
        start = self.message(None)
        if start is None:
            sys.exit(75)
        self.start = start
        log = os.open(start["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 2)  # a spare worker was started without its job's log
        os.close(log)
        os.chdir(start["folder"])
        os.environ.update(start["environment"])
        self.state = Path(start["state_dir"])
        self.run = self.state / "jobs" / start["job"]
        self.lock = open(self.run / "lock", "a")  # noqa: SIM115  held for life
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        seen = self.run / "attempt"
        if seen.exists() and int(seen.read_text()) > start["attempt"]:
            sys.exit(75)
        seen.write_text(str(start["attempt"]))
        self.alive("loading")

    def message(self, seconds: float | None) -> dict | None:
        """Return the next control line; None if none comes in time or the pipe is closed."""
        while b"\n" not in self.buffer:
            if self.closed:
                return None
            ready, _, _ = select.select([0], [], [], seconds)
            if not ready:
                return None
            data = os.read(0, 65536)
            self.closed = not data
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def emit(self, kind: str, **fields) -> None:
        line = json.dumps({"type": kind, "time": time.time(), **fields}).encode() + b"\n"
        with open(self.run / "events.jsonl", "ab") as file:
            file.write(line)
        self.send(line)

    def alive(self, busy: str = "", device_bytes: int = 0) -> None:
        """Give a sign of life, through the pipe only."""
        self.send(json.dumps({"type": "alive", "busy": busy, "device_bytes": device_bytes}).encode() + b"\n")

    def send(self, line: bytes) -> None:
        """Write to the daemon; without one, the next `check` ends the worker."""
        try:
            os.write(1, line)
        except BrokenPipeError:
            self.closed = True

    def end(self, state: str, error: dict | None = None) -> None:
        self.emit("end", state=state, error=error)
        sys.exit(0)

    def check(self, seconds: float) -> None:
        """Wait a little; end if the daemon says so."""
        told = self.message(seconds)
        if told is not None:
            self.end({"pause": "paused", "cancel": "cancelled"}[told["type"]])
        if self.closed:
            raise Gone

    # ------------------------------------------------------------------------------------------------------------ kinds
    def train(self) -> None:
        spec = self.start["spec"]
        behaviour = spec["config"].get("behaviour", "normal")
        with open(self.run / "attempts.txt", "a") as file:
            file.write(f"{self.start['attempt']} {os.getpid()} {self.start['snapshot']}\n")
        (self.run / "card").write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {self.start['device']}")
        if "device_bytes" in spec["config"]:
            self.alive(device_bytes=spec["config"]["device_bytes"])
        checkpoints = self.run / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        steps = sorted(int(path.stem) for path in checkpoints.glob("*.safetensors"))
        step = steps[-1] if steps else 0
        print(f"begins at step {step}", file=sys.stderr, flush=True)
        if behaviour == "crash":
            print("the roof is on fire", file=sys.stderr, flush=True)
            os._exit(3)
        if behaviour == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if behaviour == "memory":
            bytearray(1 << 62)  # raises MemoryError
        if behaviour == "bad_alloc":  # how C++ ends where memory cannot be had
            print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
            os.abort()
        if behaviour == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "fail":
            self.end("failed", {"code": "empty_dataset", "message": "no transitions in it", "hint": "add some"})
        if behaviour == "garbage":
            os.write(1, b"\xff\x00 not json\n{}\n[1]\n")
            with open(self.run / "events.jsonl", "ab") as file:
                file.write(b'\xff\n{"type":"progress","step":"x"}\n{"type":"what"}\n{"type":"end","state":"queued"}\n')
        if behaviour == "compiling":  # silent for longer than a loop may be, as announced; then it goes on
            self.alive("compiling")
            self.check(1.5)
        if behaviour == "stalls":  # steps, and then nothing more
            self.emit("progress", step=2, steps=spec["steps"], metrics={})
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(1)
        if behaviour in ("hang", "children"):
            child = subprocess.Popen(["sleep", "1000"]) if behaviour == "children" else None
            (self.run / "child").write_text(str(child.pid if child else 0))
            self.emit("progress", step=1, steps=spec["steps"], metrics={})
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(1)
        try:
            while step < spec["steps"]:
                self.check(0.02 if behaviour == "slow" else 0)
                step += 1
                self.emit(
                    "progress",
                    step=step,
                    steps=spec["steps"],
                    updates_per_second=50.0,
                    eta_s=0.02 * (spec["steps"] - step),
                    metrics={"loss": {str(seed): 1.0 / step for seed in spec["seeds"]}},
                )
        except Gone:
            self.checkpoint(step)
            os._exit(75)
        self.checkpoint(step)
        for seed in spec["seeds"]:
            metrics = self.run / f"seed-{seed}" / "metrics"
            metrics.mkdir(parents=True, exist_ok=True)
            (metrics / "loss.csv").write_text(f"epoch,step,value\n1,{step},{1.0 / step}\n")
        self.end("succeeded")

    def checkpoint(self, step: int) -> None:
        (self.run / "checkpoints" / f"{step:012d}.safetensors").write_bytes(b"state of step %d" % step)

    def import_(self) -> None:
        spec = self.start["spec"]
        files = self.state / "uploads" / spec["upload"] / "files" if spec["upload"] else Path(spec["path"])
        temporary = self.state / "datasets" / f".tmp-{self.start['job']}"
        temporary.mkdir(exist_ok=True)
        (temporary / "half").write_text("half")
        (temporary / "import.json").write_text(json.dumps({"job": self.start["job"]}))
        if spec["format"] == "slow":
            while True:
                self.check(0.05)
        if spec["format"] == "bad":
            self.end("failed", {"code": "invalid_input", "message": "lengths differ", "hint": "make them the same"})
        if spec["format"] == "unsaid":  # killed between the rename and the word of it
            temporary.rename(self.state / "datasets" / spec["dataset"])
            os._exit(9)
        name = self.state / "datasets" / spec["dataset"]
        count = sum(1 for path in files.rglob("*") if path.is_file()) if files.is_dir() else 1
        if not spec["append"]:
            temporary.rename(name)
        with open(name / "log", "a") as file:
            file.write("more\n" * count)
        count = len((name / "log").read_text().split())
        action = {"role": "action", "dtype": "int64", "shape": [], "n": 3}
        if spec["format"] == "continuous":
            action = {"role": "action", "dtype": "float32", "shape": [2], "low": -1.0, "high": 1.0}
        self.emit(
            "dataset",
            dataset={
                "name": spec["dataset"],
                "episodes": count,
                "transitions": 10 * count,
                "bytes": 100,
                "fields": {"action": action},
                "snapshot": f"0:{count}:abcd",
                "returns": {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0},
                "metadata": {},
            },
        )
        self.end("succeeded")

    def export(self) -> None:
        spec = self.start["spec"]
        folder = self.state / "jobs" / spec["job"] / f"seed-{spec['seed']}"
        folder.mkdir(exist_ok=True)
        suffix = {"onnx": ".onnx", "torchscript": ".pt"}[spec["format"]]
        name = f"policy-{spec['step']:012d}{suffix}"
        (folder / name).write_text(f"{spec['format']} of step {spec['step']}")
        self.end("succeeded")

    def dataset_export(self) -> None:
        folder = self.run / "dataset" / "store"
        folder.mkdir(parents=True)
        (folder / "schema.json").write_text("{}")
        (folder / "data.bin").write_bytes(b"x" * 1000)
        self.end("succeeded")


if __name__ == "__main__":
    worker = Worker()
    kind = worker.start["spec"]["kind"]
    try:
        getattr(worker, "import_" if kind == "import" else kind)()
    except Gone:
        os._exit(75)
