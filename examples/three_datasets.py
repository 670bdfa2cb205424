"""Create D4RL's three kinds of datasets for an environment (random, replay, trained) as stores and as d3rlpy files.

python examples/three_datasets.py ENV OUT [--steps N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium

import offrld
from offrl_store import EpisodeStore
from offrld.collect import ConstantEpsilonGreedy, collect
from offrld.importers import export_dataset


def main(env_id: str, out: Path, steps: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    env = gymnasium.make(env_id)
    collect(env, steps=steps, into=out / "random", seed=0)

    discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
    explorer = ConstantEpsilonGreedy(0.3) if discrete else None  # SAC samples its own actions
    learner = offrld.build("dqn" if discrete else "sac", env)
    learner.fit_online(env, out / "replay", explorer, steps=steps, random_steps=steps // 10, steps_per_epoch=max(1, steps // 10))
    learner.save(out / "learner.safetensors")

    collect(env, learner, steps=steps, into=out / "trained", seed=1)
    for name in ("random", "replay", "trained"):
        store = EpisodeStore.open(out / name)
        export_dataset(store, out / f"{name}.h5", "d3rlpy")
        print(f"{name}: {store.step_count:,} steps, mean return {store.stats()['return']['mean']:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", help="gymnasium id")
    parser.add_argument("out", type=Path, help="output folder; created if missing")
    parser.add_argument("--steps", type=int, default=100_000, help="steps per dataset [100000]")
    arguments = parser.parse_args()
    main(arguments.env, arguments.out, arguments.steps)
