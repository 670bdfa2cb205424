"""Sweeps: grids of settings as jobs, with seeds that train together and names that make a second sending harmless."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from offrl.errors import InvalidInput, Unknown
from offrl.sweep import plan, read

GRID = """
algorithm = "td3_bc"
dataset = "hopper"
steps = 1_000_000
set = {batch_size = 128}

[grid]
alpha = [1.0, 2.5]
"critic_encoder.units" = [[32, 32], [64]]
"""


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return path


def test_every_combination_is_a_job_in_the_order_of_the_file(grid):
    jobs = plan(read(grid), trials=3)
    assert [job.settings["alpha"] for job in jobs] == [1.0, 1.0, 2.5, 2.5]
    assert [job.settings["critic_encoder.units"] for job in jobs] == [[32, 32], [64]] * 2
    assert {job.settings["batch_size"] for job in jobs} == {128}
    assert {job.seeds for job in jobs} == {(0, 1, 2)}
    assert [job.name for job in jobs][:2] == ["hopper-td3_bc-alpha1.0-units32x32_0-2", "hopper-td3_bc-alpha1.0-units64_0-2"]


def test_json_and_toml_say_the_same(grid, tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(read(grid)))
    assert plan(read(path)) == plan(read(grid))


def test_jobs_that_differ_in_nothing_but_the_seed_train_together():
    jobs = plan({"algorithm": "bc", "dataset": "d", "grid": {"seed": [0, 7], "learning_rate": [1e-3, 1e-4]}}, trials=2)
    assert [job.seeds for job in jobs] == [(0, 1, 7, 8)] * 2
    assert [job.name for job in jobs] == ["d-bc-learning_rate0.001_0-1,7-8", "d-bc-learning_rate0.0001_0-1,7-8"]


def test_options_of_submit_may_vary_as_well():
    jobs = plan({"steps": 10, "grid": {"algorithm": ["bc", "iql"], "dataset": ["a", "b"], "eval_env": ["Hopper-v5"]}})
    assert [(job.algorithm, job.options) for job in jobs] == [
        (algorithm, {"steps": 10, "dataset": dataset, "eval_env": "Hopper-v5"}) for algorithm in ("bc", "iql") for dataset in ("a", "b")
    ]
    assert all(job.settings == {} for job in jobs)


def test_names_that_would_be_equal_are_told_apart():
    jobs = plan({"algorithm": "td3_bc", "dataset": "d", "grid": {"actor_encoder.units": [[8]], "note": ["a b", "a/b"]}})
    assert len({job.name for job in jobs}) == 2
    again = plan({"algorithm": "td3_bc", "dataset": "d", "grid": {"actor_encoder.units": [[8]], "note": ["a b", "a/b"]}})
    assert [job.name for job in jobs] == [job.name for job in again]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"algorithm": "bc", "dataset": "d"}, "no table `grid`"),
        ({"algorithm": "bc", "dataset": "d", "grid": {"gamma": 0.9}}, "gamma = 0.9"),
        ({"algorithm": "bc", "dataset": "d", "grid": {"gamma": []}}, "gamma = []"),
        ({"dataset": "d", "grid": {"gamma": [0.9]}}, "not name an algorithm"),
        ({"algorithm": "bc", "grid": {"gamma": [0.9]}}, "not name a dataset"),
        ({"algorithm": "bc", "dataset": "d", "grid": {"seed": ["x"]}}, "seed 'x'"),
        ({"algorithm": "bc", "dataset": "d", "grid": {"seeds": [[0, 1]]}}, "seeds is filled in"),
        ({"algorithm": "bc", "dataset": "d", "grid": {"a": list(range(200)), "b": list(range(200))}}, "40,000 combinations"),
    ],
)
def test_a_grid_that_is_none_is_refused(content, says):
    with pytest.raises(InvalidInput, match=re.escape(says)):
        plan(content)


@pytest.mark.parametrize(("name", "text"), [("grid.toml", "a = "), ("grid.json", "{"), ("grid.json", "[1]")])
def test_a_file_that_is_none_is_refused(name, text, tmp_path, cli):
    path = tmp_path / name
    path.write_text(text)
    ran = cli("sweep", path)
    assert ran.status == 2
    assert str(path) in ran.err
    assert ran.err.count("\n") == 1


def test_saved_commands_are_those_that_are_printed_and_can_be_run(grid, tmp_path, cli):
    printed = cli("sweep", grid, "--trials", "2").out.splitlines()
    file = tmp_path / "commands.txt"
    assert cli("sweep", grid, "--trials", "2", "--save", file).status == 0
    assert file.read_text().splitlines() == printed
    assert shlex.split(printed[0]) == [
        "offrl",
        "submit",
        "td3_bc",
        "--dataset",
        "hopper",
        "--steps",
        "1000000",
        "--set",
        "batch_size=128",
        "--set",
        "alpha=1.0",
        "--set",
        "critic_encoder.units=[32, 32]",
        "--seeds",
        "0-1",
        "--key",
        "hopper-td3_bc-alpha1.0-units32x32_0-1",
    ]


def test_a_sweep_is_submitted_once_however_often_it_is_sent(client, offrl_cli, tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    rows = {
        "observations": rng.normal(size=(60, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (60, 1)).astype(np.float32),
        "rewards": np.ones(60, np.float32),
        "terminals": np.arange(1, 61) % 20 == 0,
    }
    client.datasets.add("sweep-data", rows)
    path = tmp_path / "grid.toml"
    path.write_text('algorithm = "bc"\ndataset = "sweep-data"\nsteps = 20\n[grid]\nlearning_rate = [1e-3, 1e-2]\n')
    first = offrl_cli("sweep", path, "--trials", "2", "--submit", "--json").json
    again = offrl_cli("sweep", path, "--trials", "2", "--submit", "--json").json
    assert first == again
    assert len({each["job"] for each in first}) == 2
    for each, rate in zip(first, (1e-3, 1e-2), strict=True):
        info = client.job(each["job"]).wait(timeout=120)
        assert info.seeds == [0, 1]
        assert info.spec["config"]["learning_rate"] == rate
    # The printed command names the same job: its key is the job's.
    command = offrl_cli("sweep", path, "--trials", "2").out.splitlines()[1]
    assert offrl_cli(*shlex.split(command)[1:]).out.strip() == first[1]["job"]


def test_online_each_seed_is_a_job_of_its_own():
    grid = {"algorithm": "ppo", "env": "CartPole-v1", "envs": 8, "step_timeout_s": 3.0, "grid": {"clip": [0.1, 0.2]}}
    jobs = plan(grid, trials=2)
    assert [(job.name, job.seeds) for job in jobs] == [
        ("CartPole-v1-ppo-clip0.1_0", (0,)),
        ("CartPole-v1-ppo-clip0.1_1", (1,)),
        ("CartPole-v1-ppo-clip0.2_0", (0,)),
        ("CartPole-v1-ppo-clip0.2_1", (1,)),
    ]
    assert jobs[0].arguments() == [
        "offrl",
        "train-online",
        "ppo",
        "--env",
        "CartPole-v1",
        "--envs",
        "8",
        "--step-timeout",
        "3.0",
        "--set",
        "clip=0.1",
        "--seed",
        "0",
        "--key",
        "CartPole-v1-ppo-clip0.1_0",
    ]


PUBLISHED = {
    "grid": {"env_name": ["miner", "coinrun"], "ppo_epoch": [3], "num_levels": [200], "resume": [True], "num_env_steps": [25_000_000]}
}  # fmt: skip


def test_the_published_grid_of_ppo_is_taken_as_it_is():
    jobs = plan(PUBLISHED, trials=5)
    assert len(jobs) == 10
    assert [job.name for job in jobs[:2]] == [f"miner-easy-200-ppo-lr0.0005-epoch3-mb8-v0.5-ha0.01_{trial}" for trial in (0, 1)]
    first = jobs[0]
    assert (first.command, first.algorithm, first.options["env"]) == ("train-online", "ppo", "offrld/procgen-miner-train-v0")
    assert (first.options["steps"], first.options["envs"], first.options["preset"]) == (25_000_000, 64, "procgen")
    assert first.options["eval_every"] == 50 * 64 * 256 and first.options["eval_sample"] is True
    assert first.settings == {
        "rollout_steps": 256,
        "batch_size": 2048,
        "epochs": 3,
        "clip": 0.2,
        "entropy_coef": 0.01,
        "optimizer.eps": 1e-5,
        "gae_lambda": 0.95,
        "gamma": 0.999,
        "encoder.feature_size": 256,
        "learning_rate": 5e-4,
        "optimizer.clip_grad_norm": 0.5,
        "value_coef": 0.5,
    }


@pytest.mark.parametrize(
    ("agent", "algorithm", "preset"),
    [
        ("bc", "discrete_bc", "procgen"),
        ("bcq", "discrete_bcq", "procgen"),
        ("cql", "discrete_cql", "procgen"),
        ("iql", "discrete_iql", "procgen"),
        ("dt", "discrete_decision_transformer", "procgen"),
        ("bct", "discrete_decision_transformer", "procgen-bct"),
    ],
)
def test_the_offline_agents_are_ours_with_their_settings(agent, algorithm, preset, client):
    grid = {"algo": agent, "steps": 1, "grid": {"env_name": ["coinrun"], "lr": [5e-4], "batch_size": [8], "agent_model": ["pporesnetbase"]}}
    (job,) = plan(grid)
    assert job.name.startswith(f"coinrun-easy-200-{agent}-p1.0-lr0.0005-bs8-pporesnetbase")
    assert (job.command, job.algorithm, job.options["dataset"], job.options["preset"]) == ("submit", algorithm, "coinrun", preset)
    if agent != "iql":
        assert (job.settings["learning_rate"], job.settings["encoder.type"]) == (5e-4, "impala")
    with pytest.raises(Unknown, match="no dataset 'coinrun'"):  # and every setting is one that the daemon's algorithm takes
        job.submit(client)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"algo": "sac"}, "algo 'sac'"),
        ({"clip_parm": 0.1}, "'clip_parm' is not a parameter"),
        ({"num_levels": 7}, "levels 0 and 7 of them"),
        ({"algo": "bc", "percentile": 0.5}, "percentile 0.5"),
        ({"algo": "bc", "agent_model": "vit"}, "agent_model 'vit'"),
    ],
)
def test_a_published_grid_with_what_is_not_ours_is_refused(values, says):
    with pytest.raises(InvalidInput, match=re.escape(says)):
        plan({**values, "grid": {"env_name": ["coinrun"]}})


def test_a_sweep_that_is_refused_amid_its_jobs_says_which_are_queued(client, offrl_cli, tmp_path):
    import numpy as np

    rows = {
        "observations": np.zeros((20, 3), np.float32),
        "actions": np.linspace(-1, 1, 20, dtype=np.float32)[:, None],
        "rewards": np.ones(20, np.float32),
        "terminals": np.arange(1, 21) % 10 == 0,
    }
    client.datasets.add("sweep-there", rows)
    path = tmp_path / "grid.toml"
    path.write_text('algorithm = "bc"\nsteps = 20\n[grid]\ndataset = ["sweep-there", "sweep-absent"]\n')
    refused = offrl_cli("sweep", path, "--submit")
    assert refused.status == 2 and "sweep-absent" in refused.err
    job = client.jobs()[-1]
    assert f"1 of 2 jobs are in the queue: {job.id};" in refused.err
    path.write_text('algorithm = "bc"\nsteps = 20\n[grid]\ndataset = ["sweep-there"]\n')
    assert [each["job"] for each in offrl_cli("sweep", path, "--submit", "--json").json] == [job.id]
    none = offrl_cli("sweep", path, "--set", "steps=0", "--submit")
    assert none.status == 2 and "in the queue" not in none.err
