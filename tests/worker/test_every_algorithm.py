"""Every algorithm of the registry through a real daemon: trained, evaluated, fetched, and run by onnxruntime in its environment."""

from __future__ import annotations

import csv
import importlib
import io
import math
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnxruntime
import pytest
from cheap_settings import FROM_DATA, cheap_settings

import offrl
from offrl.errors import InvalidInput
from offrl.rollout import evaluate
from offrld import settings
from offrld.algos import get
from offrld.embedded import embedded_daemon

pytestmark = pytest.mark.slow

STEPS = 12
EPISODES, LENGTH = 8, 60
WAIT_S = 590
ENVIRONMENTS = {"continuous": "Pendulum-v1", "discrete": "CartPole-v1"}
OWN_STAGE = {"dynamics_steps": STEPS // 2}  # the model first, then the policy
ROLLOUTS = {"rollout_interval": 2, "rollout_batch_size": 20, "rollout_horizon": 2, "generated_maxlen": 200}
WARM_UP = {name: {"warmup_steps": STEPS // 2} for name in ("bear", "plas", "plas_with_perturbation")}
SETTINGS = {**WARM_UP, "mopo": {**OWN_STAGE, **ROLLOUTS}, "combo": {**OWN_STAGE, **ROLLOUTS}}
# The jobs that algorithms use, by name; and the algorithms that run once more with an already trained model.
TAKES = {"fqe": {"policy": "td3_bc"}, "discrete_fqe": {"policy": "discrete_bc"}}
WITH_MODEL = {f"{name} with a model": name for name in ("mopo", "combo")}
DISCRETE_MODEL = "ensemble_dynamics of discrete actions"
RUNS = {**{name: name for name in FROM_DATA}, **WITH_MODEL, DISCRETE_MODEL: "ensemble_dynamics"}


def kind_of(run: str) -> str:
    return "discrete" if run == DISCRETE_MODEL or get(RUNS[run]).actions == "discrete" else "continuous"


def collected(env_id: str) -> dict[str, np.ndarray]:
    """Episodes of random actions."""
    env, rows = gymnasium.make(env_id), {name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    env.action_space.seed(0)
    for episode in range(EPISODES):
        observation, _ = env.reset(seed=episode)
        for step in range(LENGTH):
            action = env.action_space.sample()
            following, reward, terminated, truncated, _ = env.step(action)
            ended = truncated or step == LENGTH - 1
            for name, value in zip(rows, (observation, action, reward, terminated, ended and not terminated), strict=True):
                rows[name].append(value)
            observation = following
            if terminated or ended:
                break
    env.close()
    return {name: np.asarray(values, np.float32 if name == "rewards" else None) for name, values in rows.items()}


def small(run: str) -> dict[str, Any]:
    """Settings under which the run takes a second."""
    algorithm = get(RUNS[run])
    units = {name: [16, 16] for name in settings.describe(algorithm.config) if name.endswith(".units")}
    return {**units, **cheap_settings(algorithm), **SETTINGS.get(algorithm.name, {})}


@pytest.fixture(scope="module")
def client() -> Iterator[offrl.Client]:
    folder = Path(tempfile.mkdtemp(prefix="offrl-", dir="/tmp"))  # short: a socket's path has 107 bytes
    (folder / "offrld.toml").write_text("[slots]\ntrain = 2\n")
    try:
        with embedded_daemon(folder) as client:
            yield client
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def jobs(client) -> dict[str, offrl.Job]:
    """All runs, submitted at once; those that take another job wait for it by themselves."""
    for kind, env_id in ENVIRONMENTS.items():
        client.datasets.add(kind, collected(env_id))
    made: dict[str, offrl.Job] = {}
    takes = {**TAKES, **{run: {"dynamics": "ensemble_dynamics"} for run in WITH_MODEL}}
    for run in sorted(RUNS, key=lambda run: run in takes):
        algorithm, kind = get(RUNS[run]), kind_of(run)
        evaluated = {"eval_env": ENVIRONMENTS[kind], "eval_episodes": 1} if algorithm.has_policy else {}
        config = {**small(run), **{name: made[other].id for name, other in takes.get(run, {}).items()}}
        made[run] = client.submit(
            algorithm.name, dataset=kind, steps=STEPS, config=config, validation=0.2, runner="eager", device="cpu", **evaluated
        )
    return made


def documented(algorithm: str) -> set[str]:
    """The metrics that the algorithm's file documents."""
    text = importlib.import_module(f"offrld.algos.{algorithm}").__doc__
    listed = text.partition("Metrics:")[2].partition("\n\n")[0]
    return set(re.findall(r"`(\w+)`", listed))


@pytest.mark.parametrize("run", RUNS)
def test_it_trains_and_writes_its_metrics(run, jobs):
    job, algorithm = jobs[run], get(RUNS[run])
    info = job.wait(WAIT_S, check=False)
    assert info.state == "succeeded", f"{info.reason}\n{job.log()}"
    assert info.step == STEPS
    metrics = job.metrics()
    expected = documented(algorithm.name)
    if run in WITH_MODEL:
        expected -= {"dynamics_loss", "dynamics_error"}  # learned by the other job
    assert expected <= set(metrics)
    validated = "action_match" if kind_of(run) == "discrete" else "action_error"
    assert (f"validation_{validated}" in metrics) == algorithm.has_policy
    assert {name in metrics for name in ("return_mean", "return_std")} == {algorithm.has_policy}
    assert all(math.isfinite(value) for by_seed in metrics.values() for value in by_seed.values()), metrics


@pytest.mark.parametrize("run", [run for run, name in RUNS.items() if get(name).has_policy])
def test_its_fetched_policy_acts_in_the_environment_with_onnxruntime_alone(run, jobs, tmp_path):
    jobs[run].wait(WAIT_S)
    env_id, path = ENVIRONMENTS[kind_of(run)], jobs[run].fetch(tmp_path / "policy.onnx")
    policy, session = offrl.Policy(path), onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert (policy.metadata["algorithm"], policy.metadata["step"], policy.env_id) == (RUNS[run], STEPS, env_id)
    env = gymnasium.make(env_id)
    observation, _ = env.reset(seed=5)
    reward, context = 0.0, start(session, policy)
    policy.reset()
    for _ in range(15):
        now = {"observation": observation[None].astype(np.float32), "reward": np.float32([reward])}
        outputs = session.run(None, {**context, **{name: value for name, value in now.items() if name in names(session)}})
        for output, value in zip(session.get_outputs()[1:], outputs[1:], strict=True):
            context[output.name.removeprefix("next_")] = value
        action = outputs[0][0]
        assert env.action_space.contains(action), action
        np.testing.assert_array_equal(policy.act(observation, reward), action)
        observation, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
    env.close()
    # The file is the very one that was evaluated.
    assert evaluate(policy, env_id, 1, 1000).return_mean == jobs[run].metrics()["return_mean"][0]


def names(session: onnxruntime.InferenceSession) -> list[str]:
    return [entry.name for entry in session.get_inputs()]


def start(session: onnxruntime.InferenceSession, policy: offrl.Policy) -> dict[str, np.ndarray]:
    """What a policy that remembers takes beside the observation at an episode's first step; nothing for others."""
    dtypes = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    held = {i.name: np.zeros((1, *i.shape[1:]), dtypes[i.type]) for i in session.get_inputs() if i.name.startswith("context.")}
    return {**held, "target_return": np.float32([policy.target_return])} if held else {}


@pytest.mark.parametrize("run", [run for run, name in RUNS.items() if not get(name).has_policy])
def test_an_algorithm_without_a_policy_reports_that(run, jobs, client, tmp_path):
    jobs[run].wait(WAIT_S)
    with pytest.raises(InvalidInput, match="learns no policy"):
        jobs[run].fetch(tmp_path / "policy.onnx")
    with pytest.raises(InvalidInput, match="learns no policy"):
        client.submit(RUNS[run], dataset=kind_of(run), eval_env=ENVIRONMENTS[kind_of(run)])
    assert jobs[run].fetch(tmp_path / "model.safetensors", "checkpoint").stat().st_size > 1000
    with zipfile.ZipFile(jobs[run].fetch(tmp_path / "metrics.zip", "metrics")) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("seed-0/dynamics_loss.csv").decode())))
    assert rows[-1]["step"] == str(STEPS)
