"""`make bench`: updates per second of a real job compared with d3rlpy's `fit`, as ratios.

One CPU thread each, batch 256, networks 256x256, observation 17, action 6 (DQN: 6 choices), 100,000 transitions. Ours runs through
a daemon and its worker, d3rlpy in its own virtual environment (`.venv-peers`, made on first use). The two alternate, so that other load on
the machine affects both; figures are medians over the repeats.

    python -m benchmarks.train [--algorithms bc,dqn,td3_bc] [--repeats 3] [--seconds 8]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import offrl
from offrld.embedded import embedded_daemon

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers"
PEERS_FOLDER = ROOT / "benchmarks" / "peers"
D3RLPY = "2.8.1"
BATCH = 256
GOALS = {"td3_bc": 1.3, "bc": 2.0, "dqn": 2.0}  # ratios to reach
DISCRETE = ("dqn", "discrete_cql")
SETTINGS = {"td3_bc": {"observation_scaler": "none"}}


def make_data(path: Path, *, discrete: bool, steps: int = 100_000) -> dict[str, np.ndarray]:
    """Write random transitions in 1,000-step episodes, as flat D4RL arrays in an .npz. Returns the arrays."""
    random = np.random.default_rng(0)
    ends = np.arange(1, steps + 1) % 1000 == 0
    arrays = {
        "observations": random.normal(size=(steps, 17)).astype(np.float32),
        "actions": random.integers(0, 6, steps) if discrete else random.uniform(-1, 1, (steps, 6)).astype(np.float32),
        "rewards": random.normal(size=steps).astype(np.float32),
        "terminals": ends & (np.arange(steps) % 2000 < 1000),
        "timeouts": ends & (np.arange(steps) % 2000 >= 1000),
    }
    np.savez(path, **arrays)
    return arrays


def peers_python() -> Path:
    """Return the interpreter of the peers' virtual environment, which is made on first use (the pinned torch first)."""
    python = PEERS / "bin" / "python"
    if not (PEERS / ".installed").exists():
        print("making .venv-peers ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "torch==2.13.0"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"d3rlpy=={D3RLPY}"], check=True)
        (PEERS / ".installed").touch()
    return python


def theirs(python: Path, name: str, data: Path, updates: int) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    script = PEERS_FOLDER / "d3rlpy_fit.py"
    command = [str(python), str(script), name, str(data), str(BATCH), str(updates)]
    with tempfile.TemporaryDirectory() as folder:
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=folder)
    return json.loads(out.stdout.strip().splitlines()[-1])["updates_per_second"]


def ours(client: offrl.Client, name: str, dataset: str, updates: int) -> float:
    """Measure updates per second of a job, from its first report to the report of its last update."""
    job = client.submit(name, dataset=dataset, steps=updates, config={"batch_size": BATCH, **SETTINGS.get(name, {})}, threads=1)
    reports: list[tuple[float, int]] = []
    for event in job.follow():
        if event.type == "progress" and event.step > (reports[-1][1] if reports else 0):  # ignores reports after the last update
            reports.append((event.time, event.step))
    job.wait()
    (start, first), (end, last) = reports[0], reports[-1]
    return (last - first) / (end - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", default="bc,dqn,td3_bc")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="approximate duration of a measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    python = peers_python()
    results = {}
    with tempfile.TemporaryDirectory() as folder, embedded_daemon() as client:
        files = {kind: Path(folder) / f"{kind}.npz" for kind in ("continuous", "discrete")}
        for kind, path in files.items():
            make_data(path, discrete=kind == "discrete")
            client.datasets.add(kind, path)
        for name in options.algorithms.split(","):
            kind = "discrete" if name in DISCRETE else "continuous"
            mine, peer = [], []
            speed = 300.0
            for _ in range(options.repeats):
                mine.append(ours(client, name, kind, max(400, round(speed * options.seconds))))
                speed = mine[-1]
                peer.append(theirs(python, name, files[kind], max(200, round(speed / 2 * options.seconds) // 50 * 50)))
            results[name] = {
                "offrl": statistics.median(mine),
                "d3rlpy": statistics.median(peer),
                "ratio": statistics.median(a / b for a, b in zip(mine, peer, strict=True)),
                "goal": GOALS.get(name),
            }
    if options.json:
        print(json.dumps(results))
        return
    print(f"\nupdates per second, one thread, batch {BATCH}; {platform.machine()}, {os.cpu_count()} cores; median of {options.repeats}")
    print(f"{'algorithm':<14}{'offrl job':>12}{'d3rlpy fit':>12}{'ratio':>8}{'goal':>8}")
    for name, row in results.items():
        goal = "-" if row["goal"] is None else f"{row['goal']:.1f}"
        print(f"{name:<14}{row['offrl']:>12.0f}{row['d3rlpy']:>12.0f}{row['ratio']:>8.2f}{goal:>8}")


if __name__ == "__main__":
    main()
