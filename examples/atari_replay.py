"""Train on Atari replay data, named as in d4rl-atari, and write a policy file. Each frame is stored once.

    python examples/atari_replay.py breakout-mixed-v0 [--steps N] [--episodes N]

docs/atari.md describes the data's source and cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import offrl
import offrld


def main(name: str, steps: int, batch_size: int, episodes: int, out: Path) -> None:
    store, env = offrld.datasets.get(name)
    print(f"{name}: {store.step_count:,} steps in {len(store):,} episodes, mean return {store.stats()['return']['mean']:.1f}")
    learner = offrld.train(
        "discrete_cql",
        store,
        steps=steps,
        config={
            "frame_stack": 4,
            "batch_size": batch_size,
            "observation_scaler": "pixel",
            "reward_scaler": "clip",
            "reward_scaler.low": -1.0,
            "reward_scaler.high": 1.0,
        },
    )
    learner.export(out)
    policy = offrl.Policy(out)
    for number in range(episodes):
        frame, _ = env.reset(seed=number)
        policy.reset()
        total, over = 0.0, False
        while not over:
            frame, reward, terminated, truncated, _ = env.step(policy.act(frame))
            total, over = total + float(reward), terminated or truncated
        print(f"episode {number}: {total:.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="GAME-{mixed,medium,expert}-v{0..4} or GAME-epoch-N-v{0..4}")
    parser.add_argument("--steps", type=int, default=100_000, help="updates [100000]")
    parser.add_argument("--batch-size", type=int, default=32, help="transitions per update [32]")
    parser.add_argument("--episodes", type=int, default=5, help="evaluation episodes at the end [5]")
    parser.add_argument("--out", type=Path, default=Path("atari.onnx"), help="policy file [atari.onnx]")
    arguments = parser.parse_args()
    main(arguments.name, arguments.steps, arguments.batch_size, arguments.episodes, arguments.out)
