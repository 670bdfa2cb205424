"""`offrl demo`: collect, import, train, fetch and evaluate in an embedded daemon.

A mediocre, noisy rule plays CartPole-v1, and DiscreteCQL learns from its episodes. The learned policy, one ONNX file, is played with
onnxruntime alone and compared with the rule.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from offrl import printable, streams
from offrl.errors import CheckFailed, Conflict, OffrlError, to_wire
from offrl.policy import Policy
from offrl.rollout import evaluate
from offrld.demo.embedded import embedded_daemon

ENV = "CartPole-v1"
STEPS = 12_000
POLICY = "cartpole-policy.onnx"
GAIN = 1.5  # least ratio of the policy's mean return to that of its data


def run(out: Path, talk: Console) -> dict[str, Any]:
    """Run the whole demo; return the JSON of ``offrl demo --json``."""
    from offrld.demo import cartpole

    with tempfile.TemporaryDirectory(prefix="offrl-demo-") as folder, embedded_daemon() as client:
        talk.print(f"[bold]1[/] collecting {cartpole.DEFAULT_STEPS:,} steps of {ENV} from a noisy rule")
        store = cartpole.collect(Path(folder) / "cartpole")
        talk.print("[bold]2[/] importing them into the daemon's episode store")
        dataset = client.datasets.add("cartpole", store)
        talk.print(f"[bold]3[/] training discrete_cql for {STEPS:,} updates on {dataset.transitions:,} transitions")
        job = client.submit("discrete_cql", dataset="cartpole", steps=STEPS, eval_env=ENV)
        speeds = _follow(job, talk)
        job.wait()
        talk.print(f"[bold]4[/] fetching the policy to {out}")
        path = job.fetch(out, force=out == Path(POLICY))  # the default name may hold the file of an earlier demo
    talk.print("[bold]5[/] playing 20 episodes with onnxruntime alone")
    evaluation = evaluate(Policy(path), ENV, episodes=20)
    return {
        "dataset_return_mean": dataset.returns["mean"],
        "return_mean": evaluation.return_mean,
        "updates_per_second": speeds[-1] if speeds else None,
        "latency_us": evaluation.latency_us,
        "policy": str(path),
    }


def _follow(job: Any, talk: Console) -> list[float]:
    """Show the job's progress; return the speeds that it reported."""
    speeds: list[float] = []
    columns = (BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f} updates"), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, console=talk, transient=True, disable=not talk.is_terminal) as bar:
        task = bar.add_task("train", total=STEPS, speed="")
        for event in job.follow():
            if event.type == "progress":
                if event.updates_per_second:
                    speeds.append(event.updates_per_second)
                bar.update(task, completed=event.step, speed=f"{speeds[-1]:,.0f} updates/s" if speeds else "")
    return speeds


def table(result: dict[str, Any]) -> Table:
    """Return the result as a small table."""
    rows = Table(title=f"{ENV}, mean return of an episode", title_justify="left")
    rows.add_column("")
    rows.add_column("value", justify="right")
    rows.add_row("behaviour that made the data", f"{result['dataset_return_mean']:.1f}")
    rows.add_row("policy learned from it (20 episodes, onnxruntime)", f"{result['return_mean']:.1f}")
    rows.add_row("training speed", f"{result['updates_per_second']:,.0f} updates/s")
    latency = result["latency_us"]
    rows.add_row("latency per action, median / 99 %", f"{latency['median']:.0f} / {latency['p99']:.0f} µs")
    return rows


def main() -> int:
    """Run the command; return its exit status, 1 if the policy's return is less than `GAIN` times its data's."""
    parser = argparse.ArgumentParser(prog="offrl demo", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON value on stdout")
    parser.add_argument("--out", type=Path, default=Path(POLICY), help="file to write the policy to")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the embedded daemon is stopped on the way out
    try:
        if options.out != Path(POLICY) and options.out.is_file():
            raise Conflict(f"{options.out} exists", hint="choose another name")
        result = run(options.out, Console(stderr=True))
        if result["return_mean"] < GAIN * result["dataset_return_mean"]:
            mean, data = result["return_mean"], result["dataset_return_mean"]
            raise CheckFailed(f"the policy's mean return {mean:.1f} is less than {GAIN} times its data's {data:.1f}")
    except OffrlError as error:
        if options.json:
            print(json.dumps({"error": to_wire(error)}))
        else:
            print(f"error: {printable.line(error)}", file=sys.stderr)
        return error.exit_status
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(table(result))
        policy = printable.line(result["policy"])
        Console().print(f"the policy is {policy}; play it again with: offrl evaluate {policy} --env {ENV}", markup=False, emoji=False)
    return 0


if __name__ == "__main__":
    sys.exit(streams.run(main))
