"""Small stores of random episodes that tests of several packages train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def make_store(path: Path, *, discrete: bool, episodes: int = 12, seed: int = 0):
    """A small store of random episodes: terminated and truncated ones, with and without the final observation."""
    from offrl_store import Episode, EpisodeStore, Field, Schema

    random = np.random.default_rng(seed)
    action = Field("int64", low=0, high=2) if discrete else Field("float32", (2,), low=-2.0, high=2.0)
    store = EpisodeStore.create(path, Schema(observation=Field("float32", (3,)), action=action, reward=Field("float32")))
    with store.writer() as writer:
        for number in range(episodes):
            steps = int(random.integers(5, 30))
            observation = random.normal(size=(steps + (number % 3 > 0), 3)).astype(np.float32) * [1, 5, 0.1] + [0, 3, 0]
            actions = random.integers(0, 3, steps) if discrete else random.uniform(-2, 2, (steps, 2)).astype(np.float32)
            reward = random.normal(size=steps).astype(np.float32)
            writer.append(Episode(observation=observation.astype(np.float32), action=actions, reward=reward, terminated=number % 2 == 0))
    return EpisodeStore.open(path)
