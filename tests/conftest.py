"""Fixtures that every package's tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from small_stores import make_store

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets that lies beside the checkout; tests that need it are skipped where it is absent."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the real datasets of ../shared/data, which are not part of the repository")
    return path


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
def _no_cache_of_the_user(tmp_path_factory):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Two torch threads are slower than one on networks of this size, and much slower when the machine is busy."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
