"""`make bench-train`: updates per second of every algorithm compared with d3rlpy's `fit` and eager single-file code, as ratios.

One CPU thread each, batch 256, networks 256x256 (Decision Transformer: batch 64, context 20, d3rlpy's network), preset `d3rlpy`,
observation 17, action 6 (discrete: 6 choices), 100,000 transitions. Ours is a `Learner` in its own process, as in a worker (`make bench`
measures whole jobs through a daemon); d3rlpy runs in `.venv-peers`, the single-file scripts (`benchmarks/peers/corl_*`) with our torch. All
alternate, so that other load on the machine affects all; figures are medians over the repeats. ``--cpu`` counts processor seconds instead
of wall clock, for a busy machine.

    python -m benchmarks.train_speed [--algorithms td3_bc,iql] [--repeats 5] [--seconds 6] [--quick] [--cpu] [--json]
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
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.train import PEERS_FOLDER, ROOT, make_data, peers_python
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.algos import ALGORITHMS
from offrld.engine import Learner
from offrld.engine.updates.allocator import keep_freed_memory

# algorithm -> initial estimate of updates per second, goal of the ratio to d3rlpy, single-file script
ROWS: dict[str, tuple[float, float | None, str | None]] = {
    "td3_bc": (250, 2.2, "corl_td3_bc"),
    "sac": (150, 1.9, "corl_sac"),
    "awac": (200, 1.9, None),
    "iql": (180, 1.9, "corl_iql"),
    "rebrac": (250, 1.9, None),
    "cql": (18, 2.5, "corl_cql"),
    "bc": (700, 2.6, None),
    "dqn": (550, 2.6, None),
    "double_dqn": (450, 2.6, None),
    "discrete_cql": (400, 2.6, None),
    "discrete_bc": (700, 2.6, None),
    "decision_transformer": (2, 1.5, None),
}
BATCHES = {"decision_transformer": 64}
DISCRETE = ("discrete_bc", "discrete_cql", "double_dqn", "dqn")
WARM = 20


# --- Ours -------------------------------------------------------------------------------------------------------------------------


def make_store(path: Path, arrays: dict[str, np.ndarray], *, discrete: bool) -> None:
    """Write the same transitions to an episode store."""
    action = Field("int64", low=0, high=5) if discrete else Field("float32", (6,), low=-1.0, high=1.0)
    store = EpisodeStore.create(path, Schema(observation=Field("float32", (17,)), action=action, reward=Field("float32")))
    ends = np.flatnonzero(arrays["terminals"] | arrays["timeouts"]) + 1
    with store.writer() as writer:
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            rows = slice(start, end)
            writer.append(
                Episode(
                    observation=arrays["observations"][rows],
                    action=arrays["actions"][rows],
                    reward=arrays["rewards"][rows],
                    terminated=bool(arrays["terminals"][end - 1]),
                )
            )


def measure_ours(name: str, path: str, batch: int, steps: int) -> None:
    """Measure the rate of a `Learner` and print it as JSON; runs in its own process."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as a worker does
    algorithm = ALGORITHMS[name]
    config = algorithm.configure({"batch_size": batch}, preset="d3rlpy")
    learner = Learner.create(algorithm, config, EpisodeStore.open(path), device="cpu", threads=1)
    learner.run(WARM)
    start, start_cpu = time.perf_counter(), time.process_time()
    learner.run(steps)
    learner.metrics()
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(json.dumps({"updates_per_second": steps / wall, "updates_per_cpu_second": steps / cpu, "linear": learner.linear}))


# --- All, taking turns ------------------------------------------------------------------------------------------------------------


def run(command: list[object], *, field: str) -> float:
    """Run a measuring process. Returns the rate that it prints."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": paths}
    with tempfile.TemporaryDirectory() as folder:
        out = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, cwd=folder)
    if out.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{out.stderr}")
    return json.loads(out.stdout.strip().splitlines()[-1])[field]


def measure(name: str, files: dict[str, Path], options: argparse.Namespace) -> dict[str, float | None]:
    """Measure median rates and ratios of an algorithm."""
    speed, goal, script = ROWS[name]
    batch, kind = BATCHES.get(name, 256), "discrete" if name in DISCRETE else "continuous"
    data, store = files[kind], files[f"{kind} store"]
    field = "updates_per_cpu_second" if options.cpu else "updates_per_second"
    ours = [sys.executable, "-m", "benchmarks.train_speed", "--measure", name, store, batch]
    theirs = [peers_python(), PEERS_FOLDER / "d3rlpy_fit.py", name, data, batch]
    plain = None if script is None else [sys.executable, PEERS_FOLDER / f"{script}.py", data, batch]
    rates: dict[str, list[float]] = {"offrl": [], "d3rlpy": [], "eager": []}
    for _ in range(options.repeats):
        rates["offrl"].append(run([*ours, max(20, round(speed * options.seconds))], field=field))
        rates["d3rlpy"].append(run([*theirs, max(20, round(speed / 2 * options.seconds / 50) * 50)], field=field))
        if plain is not None:
            rates["eager"].append(run([*plain, max(20, round(speed / 2 * options.seconds))], field=field))
    figures: dict[str, float | None] = {key: statistics.median(values) if values else None for key, values in rates.items()}
    for key in ("d3rlpy", "eager"):
        pairs = list(zip(rates["offrl"], rates[key], strict=False))
        figures[f"to {key}"] = statistics.median(a / b for a, b in pairs) if pairs else None
    return figures | {"goal": goal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", default=",".join(name for name in ROWS if name in ALGORITHMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="approximate duration of a measurement of ours")
    parser.add_argument("--quick", action="store_true", help="one short repeat, to check that the benchmark works")
    parser.add_argument("--cpu", action="store_true", help="count processor seconds instead of wall clock")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=4, metavar=("NAME", "STORE", "BATCH", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, path, batch, steps = options.measure
        measure_ours(name, path, int(batch), int(steps))
        return
    if options.quick:
        options.repeats, options.seconds = 1, 1.5
    peers_python()
    files, results = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("continuous", "discrete"):
            files[kind], files[f"{kind} store"] = Path(folder) / f"{kind}.npz", Path(folder) / kind
            make_store(files[f"{kind} store"], make_data(files[kind], discrete=kind == "discrete"), discrete=kind == "discrete")
        for name in options.algorithms.split(","):
            results[name] = measure(name, files, options)
            if not options.json:
                show(name, results[name], first=len(results) == 1, options=options)
    if options.json:
        print(json.dumps(results))


def show(name: str, row: dict[str, float | None], *, first: bool, options: argparse.Namespace) -> None:
    if first:
        unit = "processor second" if options.cpu else "second"
        print(f"updates per {unit}, one thread; {platform.machine()}, {os.cpu_count()} cores; median of {options.repeats}")
        print(f"{'algorithm':<22}{'offrl':>9}{'d3rlpy':>9}{'ratio':>7}{'goal':>6}{'eager':>9}{'ratio':>7}")

    def cell(value: float | None, width: int, digits: int) -> str:
        return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"

    digits = 1 if (row["offrl"] or 0.0) < 50 else 0
    columns = (("offrl", 9, digits), ("d3rlpy", 9, digits), ("to d3rlpy", 7, 2), ("goal", 6, 1), ("eager", 9, digits), ("to eager", 7, 2))
    print(f"{name:<22}" + "".join(cell(row[key], width, places) for key, width, places in columns), flush=True)


if __name__ == "__main__":
    main()
