"""Small flat datasets and files in the layouts of the formats, written with h5py and NumPy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest


@pytest.fixture
def flat() -> dict[str, np.ndarray]:
    """Ten steps: an episode of 4 that ends terminated, one of 3 that is cut, one of 3 that ends terminated. Two-dimensional actions."""
    rng = np.random.default_rng(0)
    ends = {"terminals": [3, 9], "timeouts": [6]}
    return {
        "observations": rng.normal(size=(10, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(10, 2)).astype(np.float32),
        "rewards": rng.normal(size=10).astype(np.float32),
        **{key: np.isin(np.arange(10), rows) for key, rows in ends.items()},
    }


@pytest.fixture
def write_h5(tmp_path: Path):
    """Writes arrays (None: left out) and attributes into an HDF5 file and gives its path."""

    def write(arrays: dict[str, Any], name: str = "data.hdf5", attributes: dict[str, Any] | None = None) -> Path:
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                if value is not None:
                    file[key] = value
            file.attrs.update(attributes or {})
        return path

    return write


@pytest.fixture(scope="session")
def same_episodes():
    """Asserts that two sequences of episodes are equal, value for value and dtype for dtype."""

    def check(left: Any, right: Any) -> None:
        left, right = list(left), list(right)
        assert len(left) == len(right)
        for ours, theirs in zip(left, right, strict=True):
            assert ours.terminated == theirs.terminated
            assert ours.final_missing == theirs.final_missing
            pairs = [(ours.action, theirs.action), (ours.reward, theirs.reward)]
            if isinstance(ours.observation, dict):
                assert ours.observation.keys() == theirs.observation.keys()
                pairs += [(ours.observation[key], theirs.observation[key]) for key in ours.observation]
            else:
                pairs.append((ours.observation, theirs.observation))
            assert ours.extra.keys() == theirs.extra.keys()
            pairs += [(ours.extra[key], theirs.extra[key]) for key in ours.extra]
            for a, b in pairs:
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)

    return check
