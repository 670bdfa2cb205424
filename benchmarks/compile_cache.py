"""The time of the first update of a compiled run, with an empty compile cache and with the cache of an earlier run.

Each run is a process with one thread, like a worker; the cache is a folder, like `cache/inductor` in the daemon's state folder.

    python -m benchmarks.compile_cache [ALGORITHM] [--runs 3]     prints the seconds of each run; the first has an empty cache
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.train import make_data
from benchmarks.train_speed import DISCRETE, make_store
from offrl_store import EpisodeStore
from offrld.algos import get
from offrld.engine import Learner


def first_update(name: str, store: str, cache: str) -> float:
    """Measure the seconds of the first update of a compiled run, with its compilation or its reading of the cache."""
    algorithm = get(name)
    config = algorithm.configure()
    learner = Learner.create(algorithm, config, EpisodeStore.open(store), device="cpu", threads=1, runner="compile", cache_dir=cache)
    start = time.perf_counter()
    learner.run(1)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithm", nargs="?", default="td3_bc")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--inside", nargs=2, metavar=("STORE", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(first_update(options.algorithm, *options.inside)))
        return
    with tempfile.TemporaryDirectory() as folder:
        store, cache = Path(folder, "store"), Path(folder, "cache")
        discrete = options.algorithm in DISCRETE
        make_store(store, make_data(Path(folder, "arrays.npz"), discrete=discrete, steps=2000), discrete=discrete)
        command = [sys.executable, "-m", "benchmarks.compile_cache", options.algorithm, "--inside", str(store), str(cache)]
        for _ in range(options.runs):
            print(f"{json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout):.1f}", flush=True)


if __name__ == "__main__":
    main()
