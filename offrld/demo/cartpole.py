"""The demo's data: CartPole-v1 played by a mediocre, noisy rule, collected into a store in well under a second per 20,000 steps."""

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
    """Collects into a new store at ``path``: ``steps`` (20,000 unless told) or whole ``episodes``. Leaves nothing there when it fails.

    Raises `StoreExists` when the path is taken, `InvalidInput` for numbers that are not positive.
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
