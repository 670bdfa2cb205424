"""The other replay buffers of the store's benchmark: their virtual environment, made on first use, and their figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv-store-peers"
TORCH = "torch==2.13.0"  # first and by its pin: an unpinned torch would bring several gigabytes of CUDA packages
PACKAGES = {
    "cpprb": ["cpprb==11.0.0"],
    "SB3": ["stable-baselines3==2.9.2"],
    "TorchRL": ["tensordict==0.14.3", "torchrl==0.14.1"],
    "d3rlpy": ["d3rlpy==2.8.1"],
}
NAMES = tuple(PACKAGES)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def environment() -> tuple[Path, dict[str, str]]:
    """Return the peers' interpreter, and the reason for each peer that could not be installed. Every run tries again."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed.json"
    if not python.exists():
        print(f"making {ENVIRONMENT.name} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
    installed = json.loads(stamp.read_text()) if stamp.exists() else {}
    failed = {}
    for name, packages in {"torch": [], **PACKAGES}.items():
        wanted = [TORCH, *packages]
        if installed.get(name) == wanted:
            continue
        print(f"installing {' '.join(wanted)} ...", file=sys.stderr)
        run = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True)
        if run.returncode:
            failed[name] = f"it could not be installed: {last_line(run.stderr)}"
            continue
        installed[name] = wanted
        stamp.write_text(json.dumps(installed))
    return python, failed


def measure(transitions: int, frames: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Measure each peer in its own process. Returns {peer: {"figures": {work: number}, "notes": [missing works and the reasons]}}."""
    python, failed = environment()
    script = ROOT / "benchmarks" / "peers" / "store_peer.py"
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ""}
    results: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        if name in failed:
            results[name] = {"figures": {}, "notes": [failed[name]]}
            continue
        command = [str(python), str(script), name.lower(), str(transitions), str(frames), str(folder)]
        run = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=folder)
        if run.returncode:
            results[name] = {"figures": {}, "notes": [f"it ended with status {run.returncode}: {last_line(run.stderr)}"]}
        else:
            results[name] = json.loads(last_line(run.stdout))
    return results
