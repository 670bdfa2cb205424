"""Returns that d3rlpy reaches on a file, for rows of `benchmarks.scores` that ../shared/reference-scores.md does not have.

    python d3rlpy_scores.py FILE ENV ALGORITHM STEPS SEEDS [NAME=VALUE ...]
        prints {"algorithm", "settings", "seeds", "returns", "updates_per_second"}

Its defaults except for the given settings, one thread, actions scaled from [-2, 2] on Pendulum; the mean over 20 greedy episodes with
reset(seed=1000..1019) after the last update. The target return of a transformer is the mean return of the best tenth of the file's
episodes, as for ours.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import d3rlpy
import gymnasium
import h5py
import numpy as np
import torch
from d3rlpy.logging import NoopAdapterFactory

CONFIGS = {
    "ddpg": d3rlpy.algos.DDPGConfig,
    "td3": d3rlpy.algos.TD3Config,
    "bear": d3rlpy.algos.BEARConfig,
    "plas_with_perturbation": d3rlpy.algos.PLASWithPerturbationConfig,
    "cal_ql": d3rlpy.algos.CalQLConfig,
    "prdc": d3rlpy.algos.PRDCConfig,
    "nfq": d3rlpy.algos.NFQConfig,
    "discrete_sac": d3rlpy.algos.DiscreteSACConfig,
    "decision_transformer": d3rlpy.algos.DecisionTransformerConfig,
    "discrete_decision_transformer": d3rlpy.algos.DiscreteDecisionTransformerConfig,
    "tacr": d3rlpy.algos.TACRConfig,
}


def rollout(act: Callable[[Any, float], Any], env: gymnasium.Env, seed: int) -> float:
    """Play an episode with ``act(observation, reward)``. Returns its return."""
    observation, _ = env.reset(seed=seed)
    total, reward, ended = 0.0, 0.0, False
    while not ended:
        observation, step_reward, terminated, truncated, _ = env.step(act(observation, reward))
        reward = float(step_reward)
        total += reward
        ended = terminated or truncated
    return total


def main(path: str, env_id: str, name: str, steps: int, seeds: int, settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    with h5py.File(path) as file:
        data = {key: file[key][:] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
    dataset = d3rlpy.dataset.MDPDataset(
        data["observations"], data["actions"], data["rewards"], data["terminals"].astype(np.float32), data["timeouts"].astype(np.float32)
    )
    env, returns, speeds = gymnasium.make(env_id), [], []
    scaled = env_id.startswith("Pendulum")
    scaler = d3rlpy.preprocessing.MinMaxActionScaler(minimum=np.array([-2.0]), maximum=np.array([2.0]))
    returns_of_file = sorted(float(episode.compute_return()) for episode in dataset.episodes)
    target = float(np.mean(returns_of_file[-max(1, round(0.1 * len(returns_of_file))) :]))
    discrete = name.startswith("discrete_")
    greedy = {"action_sampler": d3rlpy.algos.GreedyTransformerActionSampler()} if discrete else {}  # it would sample
    for seed in range(seeds):
        d3rlpy.seed(seed)
        algorithm = CONFIGS[name](**({"action_scaler": scaler} if scaled else {}), **settings).create(device="cpu:0")
        start = time.perf_counter()
        options = {"logger_adapter": NoopAdapterFactory(), "show_progress": False, "save_interval": 10**9}
        algorithm.fit(dataset, n_steps=steps, n_steps_per_epoch=steps, **options)
        speeds.append(steps / (time.perf_counter() - start))
        totals = []
        for episode in range(20):
            if hasattr(algorithm, "as_stateful_wrapper"):
                wrapper = algorithm.as_stateful_wrapper(target_return=target, **greedy)
                wrapper.reset()
                totals.append(rollout(wrapper.predict, env, 1000 + episode))
            else:
                totals.append(rollout(lambda o, r: algorithm.predict(o[None])[0], env, 1000 + episode))  # noqa: B023
        returns.append(round(float(np.mean(totals)), 1))
    speed = round(float(np.median(speeds)), 1)
    print(json.dumps({"algorithm": name, "settings": settings, "seeds": seeds, "returns": returns, "updates_per_second": speed}))


if __name__ == "__main__":
    settings = {name: json.loads(value) for name, value in (word.split("=", 1) for word in sys.argv[6:])}
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), settings)
