"""Collect random steps of Pendulum-v1 into flat arrays with one row per step, like a lab's own logging script.

python examples/collect_pendulum.py OUT.npz [STEPS]
"""

from __future__ import annotations

import sys

import gymnasium
import numpy as np


def main(path: str, steps: int = 20_000) -> None:
    env = gymnasium.make("Pendulum-v1")
    env.action_space.seed(0)
    rows: dict[str, list] = {key: [] for key in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")}
    observation, _ = env.reset(seed=0)
    for _ in range(steps):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        for key, value in zip(rows, (observation, action, np.float32(reward), terminated, truncated, following), strict=True):
            rows[key].append(value)
        observation = env.reset()[0] if terminated or truncated else following
    np.savez_compressed(path, env_id="Pendulum-v1", **{key: np.array(values) for key, values in rows.items()})
    print(f"{path}: {steps:,} steps")


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:3]))
