"""Write your own off-policy loop: a collector fills a bounded store, a sampler reads it, and a learner updates between batches.

python examples/off_policy_loop.py ENV [--frames N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium

import offrld
from offrld.collect import Collector, ConstantEpsilonGreedy


def main(env_id: str, frames: int, per_batch: int, updates: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    env = gymnasium.make(env_id)
    discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
    learner = offrld.build("double_dqn" if discrete else "sac", env, config={"batch_size": 64})
    random = min(1_000, frames // 10)
    collector = Collector(
        env,
        learner,
        frames_per_batch=per_batch,
        total_frames=frames,
        into=out / "store",
        limit=100_000,
        init_random_frames=random,
        explorer=ConstantEpsilonGreedy(0.1) if discrete else None,
    )
    with collector:
        for number, _ in enumerate(collector):
            collector.writer.commit()
            store = collector.store
            if not len(store):  # no episode has ended yet
                continue
            sampler = store.transitions(batch_size=64, seed=number)
            for _ in range(updates):
                learner.update(sampler.sample())
            recent = store.returns[-10:].mean()
            print(f"{collector.frames:,} frames, {len(store)} episodes, mean return of the last ten {recent:.1f}")
    learner.export(out / "policy.onnx")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", help="gymnasium id")
    parser.add_argument("--out", type=Path, default=Path("off-policy"), help="folder for store and policy [off-policy]")
    parser.add_argument("--frames", type=int, default=50_000, help="environment steps [50000]")
    parser.add_argument("--batch", type=int, default=200, help="environment steps between updates [200]")
    parser.add_argument("--updates", type=int, default=100, help="updates after each batch [100]")
    arguments = parser.parse_args()
    main(arguments.env, arguments.frames, arguments.batch, arguments.updates, arguments.out)
