"""The demo's data: a mediocre, noisy rule plays CartPole-v1. Collecting 20,000 steps takes well under a second."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from offrl.rollout import make_env
from offrl_store import EpisodeStore
from offrld.collect.behaviours import NoisyPoleBehaviour
from offrld.collect.episodes import collect_episodes, schema_of

ENV_ID = "CartPole-v1"
DEFAULT_STEPS = 20_000


def collect(path: str | os.PathLike[str], steps: int | None = None, episodes: int | None = None, seed: int = 0) -> EpisodeStore:
    """Collect ``steps`` (by default 20,000) or whole ``episodes`` into a new store at ``path``; on failure nothing is left there.

    Raises `StoreExists` if the path exists, `InvalidInput` for numbers that are not positive.
    """
    if steps is None and episodes is None:
        steps = DEFAULT_STEPS
    behaviour = NoisyPoleBehaviour()
    env = make_env(ENV_ID)
    try:
        collected = collect_episodes(env, behaviour, steps=steps, episodes=episodes, seed=seed)
        store = EpisodeStore.create(path, schema_of(env, behaviour=behaviour.name, epsilons=list(behaviour.epsilons), seed=seed))
        try:
            with store.writer() as writer:
                for episode in collected:
                    writer.append(episode)
        except BaseException:
            shutil.rmtree(Path(path), ignore_errors=True)
            raise
    finally:
        env.close()
    return EpisodeStore.open(path)
