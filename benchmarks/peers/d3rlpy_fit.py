"""Updates per second of d3rlpy's `fit`, run by `benchmarks.train` and `benchmarks.train_speed` in its own virtual environment.

python d3rlpy_fit.py ALGORITHM DATA.npz BATCH STEPS    prints {"updates_per_second": ..., "updates_per_cpu_second": ...}
"""

from __future__ import annotations

import json
import sys
import time

import d3rlpy
import numpy as np
import torch
from d3rlpy.logging import NoopAdapterFactory

CONFIGS = {
    "awac": d3rlpy.algos.AWACConfig,
    "bc": d3rlpy.algos.BCConfig,
    "cql": d3rlpy.algos.CQLConfig,
    "decision_transformer": d3rlpy.algos.DecisionTransformerConfig,
    "discrete_bc": d3rlpy.algos.DiscreteBCConfig,
    "discrete_cql": d3rlpy.algos.DiscreteCQLConfig,
    "double_dqn": d3rlpy.algos.DoubleDQNConfig,
    "dqn": d3rlpy.algos.DQNConfig,
    "iql": d3rlpy.algos.IQLConfig,
    "rebrac": d3rlpy.algos.ReBRACConfig,
    "sac": d3rlpy.algos.SACConfig,
    "td3_bc": d3rlpy.algos.TD3PlusBCConfig,
}
WARM = 50  # updates before the measurement


def main(name: str, path: str, batch: int, steps: int) -> None:
    torch.set_num_threads(1)
    data = np.load(path)
    dataset = d3rlpy.dataset.MDPDataset(
        data["observations"], data["actions"], data["rewards"], data["terminals"].astype(np.float32), data["timeouts"].astype(np.float32)
    )
    algorithm = CONFIGS[name](batch_size=batch).create(device="cpu:0")
    epoch, times = 10 if steps < 500 else 50, []

    def look(*_: object) -> None:
        times.append((time.perf_counter(), time.process_time()))

    options = {"n_steps": steps + WARM, "n_steps_per_epoch": epoch, "logger_adapter": NoopAdapterFactory(), "show_progress": False}
    if name == "decision_transformer":
        # It has no fitter to iterate over; the callback comes after every update.
        algorithm.fit(dataset, **options, save_interval=10**9, callback=look)
        (start, start_cpu), (end, end_cpu), count = times[WARM - 1], times[-1], len(times) - WARM
    else:
        for _ in algorithm.fitter(dataset, **options, save_interval=10**9):
            look()
        (start, start_cpu), (end, end_cpu) = times[WARM // epoch - 1], times[-1]
        count = epoch * (len(times) - WARM // epoch)
    print(json.dumps({"updates_per_second": count / (end - start), "updates_per_cpu_second": count / (end_cpu - start_cpu)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
