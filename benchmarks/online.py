"""Online training to known thresholds: SAC on Pendulum-v1 (-200 within 10,000 steps), DQN on CartPole-v1 (475 within 50,000).

    python -m benchmarks.online [sac | dqn] [--seeds 0,1,2]

One line per evaluation (20 episodes, greedy), and one with the step at which the threshold was first reached. A run takes a few minutes on
one core.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import offrld
from offrld.collect import ConstantEpsilonGreedy, LinearDecayEpsilonGreedy


@dataclass(frozen=True)
class Task:
    """A run and the return that it must reach."""

    algorithm: str
    env: str
    steps: int
    threshold: float
    config: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    explorer: ConstantEpsilonGreedy | LinearDecayEpsilonGreedy | None = None


TASKS = {
    "sac": Task(
        "sac", "Pendulum-v1", 10_000, -200.0,
        {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "temp_learning_rate": 1e-3, "batch_size": 128,
         "actor_encoder.units": [64, 64], "critic_encoder.units": [64, 64]},
        {"random_steps": 400, "steps_per_epoch": 1000},
    ),
    # Stable-Baselines3's tuned settings of this task (rl-baselines3-zoo, dqn.yml).
    "dqn": Task(
        "dqn", "CartPole-v1", 50_000, 475.0,
        {"learning_rate": 2.3e-3, "batch_size": 64, "target_update_interval": 128},
        {"random_steps": 1000, "update_start": 1000, "update_interval": 256, "updates": 128, "steps_per_epoch": 5000},
        LinearDecayEpsilonGreedy(1.0, 0.04, 8_000),
    ),
}  # fmt: skip


def run(task: Task, seed: int) -> tuple[int | None, float]:
    """Train. Returns the step of the evaluation that first reached the threshold (None: never), and the best mean return."""
    learner = offrld.build(
        task.algorithm, offrld.Shapes.of_env(task.env), config=task.config, seeds=[seed], device="cpu", runner="eager", threads=1
    )
    reached, best, began = None, -np.inf, time.process_time()
    for epoch, metrics in learner.fitter_online(
        task.env, explorer=task.explorer, steps=task.steps, eval_env=task.env, eval_episodes=20, seed=seed, **task.options
    ):
        step, mean = min(epoch * task.options["steps_per_epoch"], task.steps), metrics["return_mean"][seed]
        rollout = metrics.get("rollout_return", {}).get(seed, float("nan"))
        print(
            f"{task.algorithm} {task.env} seed {seed}: step {step:,}, return {mean:.1f} ± {metrics['return_std'][seed]:.1f}, "
            f"rollouts {rollout:.1f}, {learner.step:,} updates, {time.process_time() - began:.0f} s of a core",
            flush=True,
        )
        best = max(best, mean)
        if reached is None and mean >= task.threshold:
            reached = step
    return reached, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", choices=[[], *TASKS], default=[])
    parser.add_argument("--seeds", default="0,1,2")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in chosen.tasks or TASKS:
        task = TASKS[name]
        for seed in map(int, chosen.seeds.split(",")):
            reached, best = run(task, seed)
            outcome = f"{task.threshold:g} reached at step {reached:,}" if reached is not None else f"{task.threshold:g} not reached"
            print(f"{task.algorithm} {task.env} seed {seed}: {outcome} of {task.steps:,}; best {best:.1f}", flush=True)


if __name__ == "__main__":
    main()
