"""`make bench-store`: compare the store with the same memory traffic in plain C and with other replay buffers, as Markdown tables.

    python -m benchmarks.store [--quick] [--no-peers] [--json] [--folder FOLDER]

One thread. Ours and the limit alternate; figures are medians over the rounds. Each peer runs in its own process in `.venv-store-peers`
(made on first use). The files are in FOLDER (default: a temporary folder); its disk determines the figures of writing and of a cold cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import store_growth, store_peers, store_works
from benchmarks.peers.store_data import N_STEPS, STACK, Data
from benchmarks.store_limits import compile_limits
from benchmarks.store_works import Size
from offrl_store.kernels import kernels


@dataclass(frozen=True)
class Work:
    """A row of the table, with its goal as published for another machine, and the ratio to the limit that the goal meant there."""

    label: str
    unit: str
    goal: str = ""
    goal_ratio: str = ""
    scale: float = 1.0


WORKS = {
    "sample 256": Work("256 transitions", "us", "16", "1.28"),
    "sample 4096": Work("4,096 transitions", "us", "180", "1.13"),
    "stacks": Work("32 stacks of 4 of 84x84, with next", "us", "60", "0.97"),
    "windows": Work("64 windows of 20", "us", "40", "1.43"),
    "n-step": Work("256 transitions, n = 3", "us", "24", "1.26"),
    "prioritized": Work("prioritized 256: sample + update", "us", "60", "1.00"),
    "epochs": Work("256 transitions in epochs", "us"),
    "returns": Work("256 transitions with returns", "us"),
    "normals": Work("1,536 normal numbers", "us"),
    "open": Work("open", "ms", "3", "10"),
    "memory": Work("open: memory", "MB", "5"),
    "write": Work("write whole episodes", "M rows/s", "", "0.60", 1e-6),
    "step": Work("append step by step", "k/s", "500", "", 1e-3),
    "step batch": Work("append steps of 8 environments", "k/s", "500", "", 1e-3),
}


def figure(value: float | None) -> str:
    """Format a figure with three digits, or a missing one as a dash."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)


def works_table(results: dict[str, dict[str, float]], peers: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, work in WORKS.items():
        ours, limit = results[name]["ours"], results[name].get("limit")
        theirs = [peers.get(peer, {"figures": {}})["figures"].get(name) for peer in store_peers.NAMES]
        values = [None if value is None else value * work.scale for value in (ours, limit, *theirs)]
        ratio = results[name].get("ratio")
        rows.append(
            [
                work.label,
                work.unit,
                *map(figure, values[:2]),
                "-" if ratio is None else f"{ratio:.2f}",
                *map(figure, values[2:]),
                work.goal or "-",
                work.goal_ratio or "-",
            ]
        )
    return table(["work", "unit", "ours", "limit", "ours / limit", *store_peers.NAMES, "goal", "goal / limit"], rows)


def growth_table(growth: list[tuple[int, dict[str, float] | None]]) -> str:
    rows = []
    for transitions, figures in growth:
        if figures is None:
            rows.append([f"{transitions:,}", "does not fit into memory", "-", "-"])
        else:
            rows.append([f"{transitions:,}", figure(figures["ours"]), figure(figures["limit"]), f"{figures['ratio']:.2f}"])
    return table(["transitions", "256 of them: ours, us", "limit", "ours / limit"], rows)


def cold_table(cold: dict[str, dict[str, float]]) -> str:
    rows = [
        [label, *(figure(x[name]) for name in ("ours first", "limit first", "ours", "limit", "warm")), f"{x['resident']:.1%}"]
        for label, x in cold.items()
    ]
    return table(
        [
            "cold cache, ms per batch",
            "first: ours",
            "first: limit",
            "first ten: ours",
            "first ten: limit",
            "warm: ours",
            "left in the cache",
        ],
        rows,
    )


def measure(folder: Path, data: Data, size: Size, largest: int) -> dict[str, Any]:
    """Measure all of our figures."""
    library = compile_limits(folder)
    store = store_works.vectors(folder / "vectors", data)
    store_works.touch(store)
    works = {
        "sample 256": store_works.sample(store, library, size, 256),
        "sample 4096": store_works.sample(store, library, size, 4096),
        "n-step": store_works.sample(store, library, size, 256, n_steps=N_STEPS),
        "epochs": store_works.sample(store, library, size, 256, replacement=False),
        "returns": store_works.sample(store, library, size, 256, returns=True),
        "windows": store_works.windows(store, library, size),
        "prioritized": store_works.prioritized(store, library, size, data),
        "normals": store_works.normals(size),
        "open": store_works.opened(store, size),
        "memory": store_works.open_memory(store),
    }
    path = store.path
    del store  # mapped pages would stay in the cache
    cold = {"256 transitions": store_growth.cold(path, library, 256, 1, 5) | {"warm": works["sample 256"]["ours"] / 1e3}}
    pixels = store_works.frames(folder / "frames", data)
    store_works.touch(pixels)
    works["stacks"] = store_works.sample(pixels, library, size, 32, stack=STACK)
    path = pixels.path
    del pixels
    cold["32 stacks of 4"] = store_growth.cold(path, library, 32, STACK, 5) | {"warm": works["stacks"]["ours"] / 1e3}
    works["write"] = store_works.write(folder, data, max(5, size.rounds // 3))
    works["step"] = store_works.stepped(folder, data, 5, batch=False)
    works["step batch"] = store_works.stepped(folder, data, 5, batch=True)
    return {"works": works, "cold": cold, "growth": store_growth.growth(folder, library, size, largest)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100,000 transitions, 5,000 frames, fewer rounds, growth up to 10^6")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help="folder of the stores (default: a temporary folder)")
    arguments = parser.parse_args()
    data = Data(100_000, 5_000) if arguments.quick else Data(1_000_000, 100_000)
    size, largest = (Size(5, 200), 1_000_000) if arguments.quick else (Size(21, 300), 100_000_000)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        results = measure(Path(name), data, size, largest)
        results["peers"] = {} if arguments.no_peers else store_peers.measure(data.transitions, data.frames, Path(name))
    if arguments.json:
        print(json.dumps({"kernels": kernels().NAME, **results}))
        return
    load = os.getloadavg()[0]
    print(
        f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the end; "
        f"kernels: {kernels().NAME}; {data.transitions:,} transitions (observation 17, action 6, float32), {data.frames:,} frames"
    )
    print(f"\n{works_table(results['works'], results['peers'])}\n")
    for peer, result in results["peers"].items():
        for note in result["notes"]:
            print(f"{peer}: {note}")
    print(f"\n{growth_table(results['growth'])}\n\n{cold_table(results['cold'])}")


if __name__ == "__main__":
    main()
