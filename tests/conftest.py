"""Fixtures that every package's tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets that lies beside the checkout; tests that need it are skipped where it is absent."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the real datasets of ../shared/data, which are not part of the repository")
    return path


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
            writer.append(
                Episode(observation=observation.astype(np.float32), action=actions, reward=reward, terminated=number % 2 == 0)
            )
    return EpisodeStore.open(path)


@pytest.fixture(scope="session")
def continuous_store(tmp_path_factory: pytest.TempPathFactory):
    """Random episodes with actions in [-2, 2]^2."""
    return make_store(tmp_path_factory.mktemp("stores") / "continuous", discrete=False)


@pytest.fixture(scope="session")
def discrete_store(tmp_path_factory: pytest.TempPathFactory):
    """Random episodes with three discrete actions."""
    return make_store(tmp_path_factory.mktemp("stores") / "discrete", discrete=True)


@pytest.fixture(scope="session")
def store_for(continuous_store, discrete_store):
    """The store whose actions fit an algorithm."""
    return lambda algorithm: discrete_store if algorithm.actions == "discrete" else continuous_store


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Two torch threads are slower than one on networks of this size, and much slower when the machine is busy."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
