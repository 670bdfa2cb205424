"""Each page of docs/tutorials runs as one program, its shell blocks against a daemon; so do the scripts that the pages name."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from pages import DOCS, links, run_page

import offrl
from offrl.environments.procgen import ProcgenEnv
from offrl.sweep import plan
from offrl_store import EpisodeStore, check
from offrld.embedded import embedded_daemon
from offrld.importers import import_into
from offrld.importers.atari_export import write_replay

TUTORIALS = DOCS / "tutorials"
EXAMPLES = DOCS.parent / "examples"


def procgen_is_there() -> bool:
    try:
        ProcgenEnv("coinrun")
    except gymnasium.error.DependencyNotInstalled:
        return False
    return True


needs_procgen = pytest.mark.skipif(not procgen_is_there(), reason="procgen is not installed: pip install --no-deps procgen-mirror gym3")
needs_atari = pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="ale-py is not installed: pip install offrl[atari]")


@pytest.fixture
def daemon(monkeypatch) -> Iterator[offrl.Client]:
    """A daemon of the test's own, which its shell blocks find; without spare workers, which few jobs do not repay."""
    folder = Path(tempfile.mkdtemp(prefix="offrl-", dir="/tmp"))  # short: a socket's path has 107 bytes
    (folder / "state").mkdir()
    (folder / "state" / "offrld.toml").write_text("[workers]\nspare = 0\n")
    try:
        with embedded_daemon(folder / "state") as client:
            monkeypatch.setenv("OFFRL_URL", client.url)
            yield client
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def example(name: str, *arguments: object) -> str:
    """What a script of examples/ prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def transitions(daemon: offrl.Client) -> dict[str, int]:
    """The daemon's datasets and their steps' number."""
    return {each.name: each.transitions for each in daemon.datasets.ls()}


def test_what_the_pages_name_is_there():
    pages = sorted(TUTORIALS.glob("*.md"))
    assert [page.stem for page in pages] == ["atari", "collect-and-store", "collectors", "procgen"]
    for page in pages:
        scripts = [EXAMPLES / name for name in re.findall(r"examples/(\w+\.py)", page.read_text())]
        assert len(scripts) == 1
        for target in [*links(page), *scripts]:
            assert target.exists(), f"{page.name}: {target}"


# --- d3rlpy ---
def test_collect_and_store(daemon):
    names = run_page(TUTORIALS / "collect-and-store.md", least=6, shell_blocks=True)
    assert len(names["epochs"]) == 2
    assert transitions(daemon) == {"random": 1000, "replay": 800, "trained": 500}
    assert import_into("replay-of-the-job.h5", "of-the-job").step_count == 800


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.slow
def test_three_datasets_of_an_environment(env, tmp_path):
    assert "replay: 400 steps" in example("three_datasets.py", env, tmp_path / "out", "--steps", 400)
    for name in ("random", "replay", "trained"):
        assert check(tmp_path / "out" / name) == []
        assert import_into(tmp_path / "out" / f"{name}.h5", name).step_count == 400


# --- TorchRL ---
def test_collectors(daemon):
    names = run_page(TUTORIALS / "collectors.md", least=6, shell_blocks=True)
    assert names["learner"].step == 50
    assert transitions(daemon) == {"cartpole": 1000}
    assert import_into("cartpole-torchrl", "cartpole").step_count == 1000


def test_the_workers_of_the_page_are_a_program(tmp_path):
    text = (TUTORIALS / "collectors.md").read_text()
    (tmp_path / "workers.py").write_text(re.search(r"```\n(from offrld.collect import MultiSync.*?)```", text, re.DOTALL)[1])
    ran = subprocess.run([sys.executable, "workers.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert EpisodeStore.open("many").step_count == 400


@pytest.mark.slow
def test_the_off_policy_loop():
    told = example("off_policy_loop.py", "CartPole-v1", "--frames", 600, "--batch", 200, "--updates", 5)
    assert "600 frames" in told
    assert offrl.Policy("off-policy/policy.onnx").discrete
    assert EpisodeStore.open("off-policy/store").step_count == 600


# --- d4rl-atari ---
@needs_atari
def test_atari(daemon, monkeypatch):
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", "")  # the page sets it
    names = run_page(TUTORIALS / "atari.md", least=6, shell_blocks=True)
    assert 0 <= names["action"] < 4
    assert daemon.datasets.show("breakout").episodes >= 1
    assert offrl.Policy("policy.onnx").predict(names["batch"].observation[:2]).shape == (2,)


@needs_atari
@pytest.mark.slow
def test_the_script_trains_on_the_replay_data(monkeypatch):
    from offrld.collect import collect

    write_replay(collect("offrld/breakout-v0", steps=300, into="played", seed=0), "mirror", "breakout")
    for variable, value in (("OFFRL_ATARI_SOURCE", "mirror"), ("OFFRL_DATASETS", "datasets"), ("D4RL_DATASET_DIR", "d4rl")):
        monkeypatch.setenv(variable, value)
    told = example("atari_replay.py", "breakout-mixed-v0", "--steps", 2, "--batch-size", 4, "--episodes", 0)
    assert "breakout-mixed-v0: 300 steps" in told
    assert offrl.Policy("atari.onnx").discrete


# --- gen_dgrl ---
def grid(name: str) -> Any:
    """A grid file of the page."""
    text = (TUTORIALS / "procgen.md").read_text()
    return json.loads(re.search(rf"> {name} <<'END'\n(.*?)END", text, re.DOTALL)[1])


def test_the_grids_of_the_procgen_page_are_the_jobs_that_it_names():
    agents, behaviour = plan(grid("agents.json"), trials=5), plan(grid("behaviour.json"), trials=2)
    assert [job.algorithm for job in agents] == [
        "discrete_bc",
        "discrete_bcq",
        "discrete_cql",
        "discrete_iql",
        "discrete_decision_transformer",
        "discrete_decision_transformer",
    ]
    assert {job.options["preset"] for job in agents} == {"procgen", "procgen-bct"} and {job.seeds for job in agents} == {(0, 1, 2, 3, 4)}
    assert [(job.options["env"], job.seeds) for job in behaviour] == [
        (f"offrld/procgen-{game}-train-v0", (seed,)) for game in ("maze", "miner", "starpilot") for seed in (0, 1)
    ]


@needs_procgen
@pytest.mark.slow
def test_procgen(daemon):
    run_page(TUTORIALS / "procgen.md", least=5, shell_blocks=True)
    assert {"expert", "medium", "starpilot", "starpilot-half", "starpilot-level"} <= set(transitions(daemon))
    assert len(Path("agents.txt").read_text().splitlines()) == 6
    assert offrl.Policy("starpilot.onnx").discrete


@needs_procgen
@pytest.mark.slow
def test_every_agent_of_the_sweep_is_trained(daemon):
    daemon.collect("offrld/procgen-starpilot-train-v0", into="starpilot", steps=300, envs=2).wait()
    jobs = [trial.submit(daemon) for trial in plan({**grid("agents.json"), "steps": 1, "batch_size": 4})]
    assert len(jobs) == 6
    for job in jobs:
        assert job.wait(timeout=300).step == 1


@needs_procgen
@pytest.mark.slow
def test_the_script_makes_files_of_the_game(tmp_path):
    options = ("--steps", 256, "--envs", 4, "--rollout", 32, "--evaluations", 2, "--collect", 400)
    example("procgen_data.py", "starpilot", tmp_path / "out", *options)
    for ratio in ("1", "0.5"):
        made = import_into(tmp_path / "out" / f"starpilot-{ratio}", ratio)
        assert 0 < made.step_count <= 400 and all(each.terminated for each in made.episodes)  # what the end cut is left out
