"""Real play of Breakout in the layout of the replay data, a server over a folder, and places of one's own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from object_server import serving

from offrl.rollout import make_env
from offrl_store import EpisodeStore
from offrld.collect import RandomBehaviour, collect_episodes, schema_of
from offrld.importers.atari_export import write_replay

STEPS = 600


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Folders of this test in place of those of the user."""
    for variable, folder in (("D4RL_DATASET_DIR", "d4rl"), ("MINARI_DATASETS_PATH", "minari"), ("OFFRL_DATASETS", "stores")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    for variable in ("OFFRL_ATARI_SOURCE", "OFFRL_D4RL_SOURCE", "MINARI_REMOTE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OFFRL_DOWNLOADS", "0")
    monkeypatch.setattr("offrld.datasets.download.WAIT_S", 0.01)


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    with serving(root) as made:
        yield made


@pytest.fixture(scope="session")
def played(tmp_path_factory) -> EpisodeStore:
    """600 steps of Breakout at random, in single frames; the last episode is cut."""
    env = make_env("offrld/breakout-v0")
    path = tmp_path_factory.mktemp("played") / "store"
    with EpisodeStore.create(path, schema_of(env)).writer() as writer:
        for episode in collect_episodes(env, RandomBehaviour(), steps=STEPS, seed=0):
            writer.append(episode)
    env.close()
    return EpisodeStore.open(path)


@pytest.fixture(scope="session")
def bucket(played, tmp_path_factory) -> Path:
    """The same steps as epochs 1 to 3 of run 1, as the bucket has them: 200 steps each, cut in the middle of episodes."""
    root = tmp_path_factory.mktemp("bucket")
    write_replay(played, root, "breakout", index=1, epochs=3)
    return root
