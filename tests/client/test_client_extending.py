"""The worked example of docs/extending.md: installed by pip, listed, trained in-process and by a real daemon; and broken packages."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from client_daemon import start_daemon, stop_daemon

import offrl
from offrl.errors import InvalidInput, Unknown

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plugin"
WAIT_S = 100
ENCODER = {"encoder": "fourier", "encoder.options.features": 8}


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """A folder with the example as pip installs it, and a package whose algorithms cannot be used."""
    source, folder = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("installed")
    shutil.copytree(EXAMPLE, source)  # a build leaves files beside what it builds
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", folder, source]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (folder / "offrl_test_broken.py").write_text("raise RuntimeError('no card\\nhere')\n")
    (folder / "offrl_test_none.py").write_text("ALGORITHM = None\n")
    info = folder / "offrl_test_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offrl-test-broken\nVersion: 1.0\n")
    points = "broken_bc = offrl_test_broken\nnone_bc = offrl_test_none\niql = offrl_test_broken\n"
    (info / "entry_points.txt").write_text(f"[offrl.algorithms]\n{points}")
    return folder


@pytest.fixture
def installed(target, monkeypatch):
    """The packages in this process."""
    monkeypatch.syspath_prepend(str(target))
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.startswith(("offrl_filtered", "offrl_test_"))]:
        del sys.modules[name]


def test_its_names_are_listed_without_an_import(installed):
    from offrld.algos import ALGORITHMS, get, names

    assert {"filtered_bc", "broken_bc"} <= set(names())
    assert not any(name.startswith(("offrl_filtered", "offrl_test_")) for name in sys.modules)
    assert names().count("iql") == 1
    assert get("iql") is ALGORITHMS["iql"]
    with pytest.raises(Unknown) as caught:
        get("filterd_bc")
    assert caught.value.hint == "did you mean 'filtered_bc'?"


def test_what_is_no_algorithm_is_refused(installed):
    from offrld.algos import get

    with pytest.raises(InvalidInput, match=r"'broken_bc' of 'offrl.algorithms' cannot be loaded from \w+: RuntimeError: no card"):
        get("broken_bc")
    with pytest.raises(InvalidInput, match=r"'none_bc' of 'offrl.algorithms' is None, not an Algorithm"):
        get("none_bc")


def test_it_trains_in_process_and_its_policy_has_a_file(installed, continuous_store, tmp_path):
    import offrld
    from offrld.export.onnx import export_policy

    learner = offrld.train("filtered_bc", continuous_store, steps=3, preset="sharp", config={**ENCODER, "batch_size": 16})
    assert learner.config.temperature == 0.1
    assert learner.state.params["policy.encoder.weight"].shape[1:] == (8, 3)
    path = tmp_path / "policy.onnx"
    assert export_policy(learner.policy(0), path, observation=("float32", (3,)), discrete=False, metadata={"space": learner.space}) < 1e-5
    assert offrl.Policy(path).act(np.zeros(3, np.float32)).shape == (2,)
    with pytest.raises(InvalidInput, match="encoder fourier has no option 'feature'"):
        offrld.train("filtered_bc", continuous_store, steps=1, config={"encoder": "fourier", "encoder.options.feature": 8})


def test_a_daemon_lists_and_trains_it_and_tells_what_is_broken(target, monkeypatch, cli):
    import os

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(target), *filter(None, [os.environ.get("PYTHONPATH")])]))
    folder = Path(tempfile.mkdtemp(prefix="offrl-", dir="/tmp"))  # short: a socket's path has 107 bytes
    daemon = start_daemon(folder / "state")
    try:
        monkeypatch.setenv("OFFRL_URL", daemon.url)
        ran = cli("algos")
        assert "filtered_bc" in ran.out
        assert "broken_bc" not in ran.out
        assert "not usable: broken_bc: 'broken_bc' of 'offrl.algorithms' cannot be loaded from offrl_test_broken" in ran.err
        assert "not usable: none_bc" in ran.err
        assert "fourier" in cli("algos", "filtered_bc").out
        assert "no card" in cli("algos", "broken_bc").err
        log = (folder / "daemon.log").read_text()
        assert log.count("cannot be used: broken_bc") == 1
        random = np.random.default_rng(0)
        data = {
            "observations": random.normal(size=(60, 3)).astype(np.float32),
            "actions": random.uniform(-1, 1, (60, 2)).astype(np.float32),
            "rewards": random.normal(size=60).astype(np.float32),
            "terminals": np.arange(60) % 20 == 19,
        }
        with offrl.Client(daemon.url) as client:
            client.datasets.add("small", data)
            with pytest.raises(InvalidInput, match="broken_bc"):
                client.submit("broken_bc", dataset="small", steps=1)
            job = client.submit("filtered_bc", dataset="small", steps=20, config=ENCODER, preset="sharp", runner="eager")
            job.wait(WAIT_S)
            assert {"value_loss", "policy_loss"} <= set(job.metrics())
            assert offrl.Policy(job.fetch(folder / "policy.onnx")).act(np.zeros(3, np.float32)).shape == (2,)
    finally:
        stop_daemon(daemon)
        shutil.rmtree(folder, ignore_errors=True)
