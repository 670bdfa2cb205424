"""Train PPO on a Procgen game and write episodes at shares of its final return as gen_dgrl's .npz files.

    python examples/procgen_data.py GAME OUT [--steps N] [--ratios 1.0 0.5]

It starts its own daemon in OUT/state. Run it again to continue an interrupted run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from offrld.embedded import embedded_daemon


def main(game: str, out: Path, *, steps: int, envs: int, rollout: int, evaluations: int, collected: int, ratios: list[float]) -> None:
    env = f"offrld/procgen-{game}-train-v0"
    out.mkdir(parents=True, exist_ok=True)
    with embedded_daemon(out / "state") as client:
        behaviour = client.train_online(
            "ppo",
            env=env,
            preset="procgen",
            steps=steps,
            envs=envs,
            key=f"{game}-ppo",
            config={"rollout_steps": rollout, "batch_size": envs * rollout // 8},
            eval_env=env,
            eval_sample=True,
            eval_every=max(1, steps // evaluations),
        )
        info = behaviour.wait()
        print(f"PPO after {info.step:,} steps: {info.metrics['return_mean']}")
        for ratio in ratios:
            name = f"{game}-{ratio:g}"
            job = client.collect(env, behaviour, into=name, steps=collected, ratio=ratio, sample=True, envs=envs, key=name)
            job.wait()
            if not (out / name).exists():
                client.datasets.export(name, out / name, format="gen_dgrl")
            shown = client.datasets.show(name)
            print(f"{out / name}: {shown.episodes} episodes, {shown.transitions:,} steps")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("game", help="game, for example coinrun (docs/procgen.md)")
    parser.add_argument("out", type=Path, help="output folder; each ratio gets a subfolder")
    parser.add_argument("--steps", type=int, default=25_000_000, help="PPO training steps [25000000]")
    parser.add_argument("--envs", type=int, default=64, help="parallel environments [64]")
    parser.add_argument("--rollout", type=int, default=256, help="steps of each environment between updates [256]")
    parser.add_argument("--evaluations", type=int, default=30, help="checkpoints to choose from [30]")
    parser.add_argument("--collect", type=int, default=1_000_000, help="steps per dataset [1000000]")
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0, 0.5], help="shares of the final return [1.0 0.5]")
    arguments = parser.parse_args()
    main(
        arguments.game,
        arguments.out,
        steps=arguments.steps,
        envs=arguments.envs,
        rollout=arguments.rollout,
        evaluations=arguments.evaluations,
        collected=arguments.collect,
        ratios=arguments.ratios,
    )
