"""Updates per second of d3rlpy's `fit`, run by `benchmarks.train` in a virtual environment of its own.

    python d3rlpy_fit.py ALGORITHM DATA.npz BATCH STEPS    prints {"updates_per_second": ...}
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
    "bc": d3rlpy.algos.BCConfig,
    "td3_bc": d3rlpy.algos.TD3PlusBCConfig,
    "iql": d3rlpy.algos.IQLConfig,
    "rebrac": d3rlpy.algos.ReBRACConfig,
    "dqn": d3rlpy.algos.DQNConfig,
    "discrete_cql": d3rlpy.algos.DiscreteCQLConfig,
}


def main(name: str, path: str, batch: int, steps: int) -> None:
    torch.set_num_threads(1)
    data = np.load(path)
    dataset = d3rlpy.dataset.MDPDataset(
        data["observations"], data["actions"], data["rewards"], data["terminals"].astype(np.float32), data["timeouts"].astype(np.float32)
    )
    algorithm = CONFIGS[name](batch_size=batch).create(device="cpu:0")
    times = []
    fitter = algorithm.fitter(
        dataset, n_steps=steps + 50, n_steps_per_epoch=50, logger_adapter=NoopAdapterFactory(), show_progress=False, save_interval=10**9
    )
    for _ in fitter:
        times.append(time.perf_counter())
    print(json.dumps({"updates_per_second": 50 * (len(times) - 1) / (times[-1] - times[0])}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
