"""An environment that ends the process of its job: said to be its doing, and evaluated no more than twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import offrl
from offrl.errors import JobFailed

PLUGINS = Path(__file__).parents[1] / "worker" / "plugins"


def installed(folder: Path) -> str:
    """Install the environments' entry points as pip would; return the folders to search."""
    about = folder / "failing-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[offrl.environments]\nfailing = offrld_failing_env\n")
    return f"{folder}:{PLUGINS}"


def cart_pole() -> dict[str, np.ndarray]:
    ends = np.zeros(100, bool)
    ends[19::20] = True
    random = np.random.default_rng(0)
    return {
        "observations": random.normal(size=(100, 4)).astype(np.float32),
        "actions": random.integers(0, 2, 100),
        "rewards": np.ones(100, np.float32),
        "terminals": ends,
        "timeouts": np.zeros(100, bool),
    }


def submitted(client: offrl.Client) -> offrl.Job:
    client.datasets.add("d", cart_pole())
    return client.submit(
        "discrete_bc",
        dataset="d",
        steps=20,
        eval_every=10,
        eval_env="Crashing-v0",
        eval_episodes=1,
        device="cpu",
        runner="eager",
        config={"encoder.units": [8], "batch_size": 8},
    )


def test_a_crash_in_an_evaluation_names_the_environment(own_daemon, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path))
    own_daemon.settings("[retry]\nattempts = 1\n")
    with offrl.Client(own_daemon.start().url) as client:
        job = submitted(client)
        with pytest.raises(JobFailed):
            job.wait(100)
        info = job.info()
        fault = "Fatal Python error: Segmentation fault in the environment's own code ("
        assert info.reason.startswith(f"the worker was killed by SIGSEGV: {fault}")
        assert info.error["hint"].startswith("the environment or one of its libraries ended the process")
        assert "defect in offrld" not in str(info.error)


def test_training_succeeds_without_the_evaluations_that_end_the_process(own_daemon, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path))
    own_daemon.settings("[retry]\nattempts = 3\nfirst_s = 0\n")
    with offrl.Client(own_daemon.start().url) as client:
        info = submitted(client).wait(100)
        assert (info.state, info.attempt, info.step) == ("succeeded", 3, 20)
        assert info.reason == "2 evaluations, the last at step 20 failed: the process ended in 2 evaluations in a row"
