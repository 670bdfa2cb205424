"""Scores against the reference: train on the files of ../shared/data as the reference did, and print the table of docs/results.md.

Each row is one `offrl submit ... --eval-env` with three to ten seeds against a daemon in another process; then every policy is fetched
and evaluated again with `offrl evaluate`, which must give the same mean return. About 75 minutes on one core.

    python -m benchmarks.scores [--rows hopper] [--out scores.json]
    python -m benchmarks.scores --table scores.json ...        only print the table of finished runs, seeds of a row joined
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offrld.embedded import embedded_daemon

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
# name -> environment, return of the random policy, return of the final behaviour policy
ENVIRONMENTS = {
    "cartpole": ("CartPole-v1", 26.0, 500.0),
    "pendulum": ("Pendulum-v1", -1275.3, -149.3),
    "hopper": ("Hopper-v5", 19.1, 628.6),
}
LIMIT = 10.0  # allowed distance below the reference's mean, in normalised points
FAST = ("learning_rate=1e-3", "target_update_interval=100")
RATES = ("actor_learning_rate=1e-3", "critic_learning_rate=1e-3")
SMALL = ("batch_size=16", "transformer.layers=2", "transformer.heads=4")


@dataclass(frozen=True)
class Row:
    """One comparison: file, algorithm, updates, the reference's mean return (None: not measured), settings beyond the preset."""

    dataset: str
    algorithm: str
    steps: int
    reference: float | None
    settings: tuple[str, ...] = ()
    seeds: tuple[int, int] = (0, 9)  # first and last; ten if scores vary much between seeds and checkpoints

    @property
    def name(self) -> str:
        return f"{self.dataset} {self.algorithm}"

    @property
    def environment(self) -> tuple[str, float, float]:
        return ENVIRONMENTS[self.dataset.split("-")[0]]

    def command(self) -> list[str]:
        """Return the `offrl` command that trains this row."""
        settings = [word for setting in self.settings for word in ("--set", setting)]
        return [
            "submit",
            self.algorithm,
            "--dataset",
            self.dataset,
            "--steps",
            str(self.steps),
            "--seeds",
            "{}-{}".format(*self.seeds),
            "--preset",
            "d3rlpy",
            *settings,
            "--eval-env",
            self.environment[0],
        ]

    def normalised(self, value: float) -> float:
        """Normalise a return: 0 for the random policy, 100 for the final behaviour policy."""
        _, random, best = self.environment
        return 100 * (value - random) / (best - random)


ROWS = (
    Row("cartpole-replay", "discrete_cql", 10_000, 458),
    Row("cartpole-replay", "discrete_bc", 10_000, 400),
    Row("cartpole-random", "dqn", 10_000, 102, FAST),
    Row("cartpole-random", "double_dqn", 10_000, 106, FAST),
    Row("pendulum-replay", "bc", 10_000, -386, seeds=(0, 2)),
    Row("pendulum-replay", "td3_bc", 10_000, -222, seeds=(0, 2)),
    Row("pendulum-replay", "iql", 10_000, -592, seeds=(0, 2)),
    Row("cartpole-replay", "dqn", 10_000, 9, seeds=(0, 2)),
    Row("cartpole-replay", "double_dqn", 10_000, 13, seeds=(0, 2)),
    Row("cartpole-replay", "discrete_bcq", 10_000, 14, seeds=(0, 2)),
    Row("pendulum-replay", "sac", 10_000, -535, seeds=(0, 2)),
    Row("pendulum-replay", "awac", 3_000, -205, seeds=(0, 2)),
    Row("pendulum-replay", "bcq", 3_000, -220, seeds=(0, 2)),
    Row("pendulum-replay", "cql", 2_000, -566, seeds=(0, 2)),
    Row("pendulum-replay", "crr", 3_000, -1425, seeds=(0, 2)),
    Row("pendulum-replay", "plas", 5_000, -997, seeds=(0, 2)),
    Row("pendulum-replay", "rebrac", 3_000, -996, seeds=(0, 2)),
    # Not in ../shared/reference-scores.md: measured with `benchmarks/peers/d3rlpy_scores.py`, three seeds, of DDPG ten.
    Row("pendulum-replay", "ddpg", 5_000, -453, seeds=(0, 2)),
    Row("pendulum-replay", "td3", 5_000, -333, seeds=(0, 2)),
    Row("pendulum-replay", "plas_with_perturbation", 3_000, -993, seeds=(0, 2)),
    Row("pendulum-replay", "prdc", 2_000, -1395, seeds=(0, 2)),
    Row("pendulum-replay", "cal_ql", 1_000, -649, seeds=(0, 2)),
    Row("cartpole-replay", "nfq", 5_000, 9, seeds=(0, 2)),
    Row("cartpole-replay", "discrete_sac", 5_000, 18, seeds=(0, 2)),
    Row("pendulum-replay", "bear", 1_000, -1104, seeds=(0, 2)),
    Row("pendulum-replay", "decision_transformer", 500, -953, ("batch_size=16", "learning_rate=1e-3"), seeds=(0, 2)),
    Row("pendulum-replay", "tacr", 200, -1353, ("batch_size=16", *RATES), seeds=(0, 2)),
    Row("cartpole-replay", "discrete_decision_transformer", 200, 208, SMALL, seeds=(0, 2)),
    Row("hopper-medium-replay", "bc", 50_000, 379),
    Row("hopper-medium-replay", "td3_bc", 30_000, 473, ("observation_scaler=standard",), seeds=(0, 2)),
    Row("hopper-medium-replay", "iql", 20_000, 609),
)


def offrl(*words: str, url: str) -> Any:
    """Run an `offrl` command with --json. Returns its output."""
    command = [sys.executable, "-m", "offrl.cli", *words, "--json"]
    done = subprocess.run(command, env={**os.environ, "OFFRL_URL": url}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"offrl {' '.join(words)}: {done.stdout.strip() or done.stderr.strip()}")
    return json.loads(done.stdout)


def measure(row: Row, url: str, folder: Path) -> dict[str, Any]:
    """Train, fetch and evaluate one row."""
    result = offrl(*row.command(), "--wait", url=url)
    seeds = range(row.seeds[0], row.seeds[1] + 1)
    trained = [result["metrics"]["return_mean"][str(seed)] for seed in seeds]
    fetched = []
    for seed in seeds:
        policy = folder / f"{result['job']}-{seed}.onnx"
        offrl("fetch", result["job"], "--seed", str(seed), "--out", str(policy), url=url)
        fetched.append(offrl("evaluate", str(policy), "--env", row.environment[0], "--episodes", "20", url=url)["return_mean"])
    speed = result["updates_per_second"]
    return {"row": row.name, "seeds": [*seeds], "trained": trained, "fetched": fetched, "updates_per_second": speed}


def table(results: list[dict[str, Any]]) -> str:
    """Format the Markdown table of docs/results.md."""
    lines = [
        "| data | algorithm | updates | return per seed | mean | reference | normalised | reference | fetched file has the same return |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        parts = [result for result in results if result["row"] == row.name]
        if not parts:
            continue
        parts.sort(key=lambda result: result["seeds"])
        result = {key: [value for part in parts for value in part[key]] for key in ("trained", "fetched")}
        mean = statistics.mean(result["trained"])
        mine, reference = row.normalised(mean), None if row.reference is None else row.normalised(row.reference)
        short = "" if reference is None or mine >= reference - LIMIT else " **below**"
        theirs = ("", "") if reference is None else (f"{row.reference:.0f}", f"{reference:.0f}")
        seeds = "; ".join(f"{value:.0f}" for value in result["trained"])
        settings = f" ({', '.join(row.settings)})" if row.settings else ""
        same = "yes" if result["trained"] == result["fetched"] else "**no**"
        lines.append(
            f"| {row.dataset} | {row.algorithm}{settings} | {row.steps:,} | {seeds} | {mean:.0f} | {theirs[0]} "
            f"| {mine:.0f}{short} | {theirs[1]} | {same} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", help="the row of this name (`pendulum-replay td3`), or else the rows whose name contains it")
    parser.add_argument("--seeds", default="", help="first-last; overrides the seeds of the rows")
    parser.add_argument("--out", type=Path, help="JSON file of the results, written after every row")
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of such files")
    options = parser.parse_args()
    if options.table:
        print(table([result for path in options.table for result in json.loads(path.read_text())]))
        return
    results: list[dict[str, Any]] = []
    named = [row for row in ROWS if row.name == options.rows]
    chosen = named or [row for row in ROWS if options.rows in row.name]
    if options.seeds:
        first, last = map(int, options.seeds.split("-"))
        chosen = [replace(row, seeds=(first, last)) for row in chosen]
    with tempfile.TemporaryDirectory() as folder, embedded_daemon() as client:
        for dataset in dict.fromkeys(row.dataset for row in chosen):
            client.datasets.add(dataset, DATA / f"{dataset}.hdf5")
        for row in chosen:
            results.append(measure(row, client.url, Path(folder)))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
