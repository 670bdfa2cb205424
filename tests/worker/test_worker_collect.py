"""Collect and train-online workers on real environments: the dataset, its steps over pauses and kills, and the messages."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open

from offrl import Policy
from offrl_store import EpisodeStore, check

PLUGINS = Path(__file__).parent / "plugins"
SMALL = {"actor_encoder.units": [16], "critic_encoder.units": [16], "batch_size": 32}


def steps(store: EpisodeStore) -> int:
    return int(store.episode_table["steps"].sum())


def test_the_dataset_has_exactly_the_collected_steps(start, tmp_path):
    worker = start("c1", {"kind": "collect", "env": "CartPole-v1", "dataset": "d", "steps": 1234, "envs": 3, "epsilon": 0.5, "seed": 4})
    assert worker.end()["state"] == "succeeded"
    store = EpisodeStore.open(tmp_path / "datasets" / "d")
    assert steps(store) == 1234 and check(store.path) == []
    assert store.episode_metadata(0) == {**store.episode_metadata(0), "job": "c1", "policy": "random", "epsilon": 0.5}
    info = worker.of_type("dataset")[-1]["dataset"]
    assert (info["name"], info["snapshot"]) == ("d", str(store.snapshot()))
    assert worker.of_type("progress")[-1]["step"] == 1234


def test_a_paused_and_a_killed_collection_continue_the_count(start, tmp_path, wait_for):
    spec = {"kind": "collect", "env": "Pendulum-v1", "dataset": "d", "steps": 200_000}
    worker = start("c1", spec)
    worker.until(lambda event: event["type"] == "progress" and event["step"] > 500)
    worker.send({"type": "pause"})
    assert worker.end()["state"] == "paused"
    path = tmp_path / "datasets" / "d"
    paused = steps(EpisodeStore.open(path))
    assert worker.of_type("progress")[-1]["step"] == paused
    second = start("c1", spec, attempt=2)
    second.until(lambda event: event["type"] == "progress" and event["step"] > paused + 2000)
    second.signal(signal.SIGKILL)
    second.wait()
    third = start("c1", spec, attempt=3)
    assert third.end()["state"] == "succeeded"
    store = EpisodeStore.open(path)
    assert steps(store) == 200_000 and check(path) == []
    assert f"resumed at step {paused}" in [event["message"] for event in second.of_type("message")]


def test_a_cancelled_collection_keeps_whole_episodes(start, tmp_path):
    worker = start("c1", {"kind": "collect", "env": "Pendulum-v1", "dataset": "d", "steps": 10**8})
    worker.until(lambda event: event["type"] == "progress" and event["step"] > 500)
    worker.send({"type": "cancel"})
    assert worker.end()["state"] == "cancelled"
    store = EpisodeStore.open(tmp_path / "datasets" / "d")
    assert len(store) > 1 and set(store.episode_table["steps"]) == {200}
    assert worker.of_type("dataset")[-1]["dataset"]["snapshot"] == str(store.snapshot())


def test_the_error_of_a_broken_environment_names_the_line_and_the_episode_is_kept(start, tmp_path):
    plugin = {"PYTHONPATH": str(PLUGINS)}
    worker = start("c1", {"kind": "collect", "env": "offrld_breaking_env:Breaking-v0", "dataset": "d", "steps": 1000}, environment=plugin)
    error = worker.end()["error"]
    assert error["code"] == "environment_failed"
    assert "at step 57, step 17 of its episode: RuntimeError: the arm is stuck" in error["message"]
    assert EpisodeStore.open(tmp_path / "datasets" / "d").episode_table["steps"].tolist() == [20, 20, 17]
    worker = start(
        "c2",
        {"kind": "collect", "env": "offrld_breaking_env:Hanging-v0", "dataset": "h", "steps": 1000, "step_timeout_s": 0.3},
        environment=plugin,
    )
    error = worker.end()["error"]
    assert error["code"] == "environment_failed" and "has not come back for 0.3 s" in error["message"]
    assert EpisodeStore.open(tmp_path / "datasets" / "h").episode_table["steps"].tolist() == [20, 20, 17]


def test_a_failed_collection_leaves_no_dataset(start, tmp_path):
    worker = start("c1", {"kind": "collect", "env": "CartPole-v1", "dataset": "d", "steps": 10, "noise": 0.1})
    assert "take no normal noise" in worker.end()["error"]["message"]
    assert not (tmp_path / "datasets" / "d").exists()


def test_online_training_learns_collects_and_exports_a_policy(start, tmp_path):
    spec = {
        "kind": "train_online",
        "algorithm": "sac",
        "env": "Pendulum-v1",
        "dataset": "d",
        "steps": 700,
        "config": SMALL,
        "random_steps": 200,
        "update_interval": 10,
        "updates": 2,
        "eval_env": "Pendulum-v1",
        "eval_episodes": 1,
        "eval_every": 350,
    }
    worker = start("o1", spec)
    assert worker.end()["state"] == "succeeded"
    store = EpisodeStore.open(tmp_path / "datasets" / "d")
    assert steps(store) == 700 and check(store.path) == []
    policy = Policy(worker.run / "seed-0" / "policy-000000000700.onnx")
    assert policy.metadata["step"] == 102 and policy.act(np.zeros(3, np.float32)).shape == (1,)  # 51 times two updates: from step 200 on
    rows = (worker.run / "seed-0" / "metrics" / "return_mean.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["350", "700"]
    assert {"rollout_return", "critic_loss", "return_mean"} <= worker.of_type("progress")[-1]["metrics"].keys()

    # Its newest checkpoint acts in a collection, and another run goes on from it.
    drawn = start("c1", {"kind": "collect", "env": "Pendulum-v1", "dataset": "d", "steps": 250, "policy": "job:o1", "sample": True})
    assert drawn.end()["state"] == "succeeded"
    store.refresh()
    assert steps(store) == 950 and store.episode_metadata(len(store) - 1)["policy"] == "sac sampled"
    tuned = start("o2", {**spec, "steps": 250, "start": "o1", "dataset": "e", "offline": "d", "eval_env": None, "eval_every": None})
    assert tuned.end()["state"] == "succeeded", tuned.log.read_text()
    # Nothing was evaluated; the policy and the run's record name the environment, and the record the offline dataset's snapshot.
    assert Policy(tuned.run / "seed-0" / "policy-000000000250.onnx").metadata["dataset"]["env_id"] == "Pendulum-v1"
    record = json.loads((tuned.run / "spec.json").read_text())
    assert (record["env_id"], record["snapshot"]) == ("Pendulum-v1", str(store.snapshot()))
    assert json.loads((worker.run / "spec.json").read_text())["snapshot"] is None


def test_an_online_run_that_diverges_ends_and_names_the_step_of_the_environment(start):
    # Random actions throughout: the environment would refuse those of the broken policy first.
    spec = {"kind": "train_online", "algorithm": "sac", "env": "Pendulum-v1", "dataset": "d", "steps": 600, "random_steps": 600}
    config = {**SMALL, "critic_learning_rate": 1e25}
    worker = start("o1", {**spec, "config": config, "update_interval": 5}, environment={"OFFRLD_CHECKPOINT_SECONDS": "0"})
    end = worker.end()
    assert (end["state"], end["error"]["code"]) == ("failed", "diverged")
    step = int(end["error"]["message"].rpartition(" ")[2])
    assert step > 200  # the first episode, and with it the first update, ends there: fewer than 100 updates were made
    for path in (worker.run / "checkpoints").glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            assert all(np.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118


def test_a_killed_online_run_continues_from_its_checkpoint_and_repeats_lost_updates(start, tmp_path):
    spec = {
        "kind": "train_online",
        "algorithm": "sac",
        "env": "Pendulum-v1",
        "dataset": "d",
        "steps": 12_000,
        "config": SMALL,
        "update_interval": 20,
    }
    worker = start("o1", spec, environment={"OFFRLD_CHECKPOINT_SECONDS": "0.5"})
    worker.until(lambda event: event["type"] == "progress" and event["step"] > 1000)
    worker.signal(signal.SIGKILL)
    worker.wait()
    again = start("o1", spec, attempt=2)
    assert again.end()["state"] == "succeeded"
    [message] = [event["message"] for event in again.of_type("message") if event["message"].startswith("resumed")]
    step = int(message.split()[3].rstrip(","))
    assert 200 < step < 12_000
    store = EpisodeStore.open(tmp_path / "datasets" / "d")
    assert steps(store) == 12_000 and check(store.path) == []
    from offrld.engine.updates import checkpoint

    _, description = checkpoint.read(sorted((worker.run / "checkpoints").glob("*.safetensors"))[-1])
    assert description["step"] == 591  # one every 20 steps from 200 on, where the first episode ended: as many as without a kill


def test_algorithms_that_cannot_train_online_are_refused_in_one_line(start):
    worker = start("o1", {"kind": "train_online", "algorithm": "bc", "env": "Pendulum-v1", "dataset": "d", "steps": 100})
    error = worker.end()["error"]
    assert error["code"] == "invalid_input" and "bc cannot be trained online" in error["message"]
    assert json.loads((worker.run / "events.jsonl").read_text().splitlines()[-1])["state"] == "failed"


PPO = {
    "kind": "train_online",
    "algorithm": "ppo",
    "env": "CartPole-v1",
    "envs": 4,
    "steps": 2500,
    "config": {"rollout_steps": 64, "batch_size": 64, "epochs": 4, "encoder.units": [16]},
}


def test_ppo_learns_from_its_own_steps_and_keeps_them_if_a_dataset_is_named(start, tmp_path):
    worker = start("p1", {**PPO, "dataset": "d", "eval_env": "CartPole-v1", "eval_episodes": 2, "eval_every": 1000, "eval_sample": True})
    assert worker.end()["state"] == "succeeded", worker.log.read_text()
    store = EpisodeStore.open(tmp_path / "datasets" / "d")
    assert steps(store) == 2560 and check(store.path) == []  # ten rollouts of 4 times 64 steps
    rows = (worker.run / "seed-0" / "metrics" / "return_mean.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["1024", "2048", "2560"]
    assert [int(path.stem) for path in sorted((worker.run / "checkpoints").glob("*.safetensors"))] == [1024, 2048, 2560]
    assert {"rollout_return", "rollout_length", "actor_loss", "approx_kl"} <= worker.of_type("progress")[-1]["metrics"].keys()
    assert Policy(worker.run / "seed-0" / "policy-000000002560.onnx").act(np.zeros(4, np.float32)) in (0, 1)

    # The checkpoint at a share of the last return plays: here the one that is worst, which is made so.
    metrics = worker.run / "seed-0" / "metrics" / "return_mean.csv"
    metrics.write_text("epoch,step,value\n1,1024,20\n1,2048,52\n1,2560,100\n")
    medium = start(
        "c1", {"kind": "collect", "env": "CartPole-v1", "dataset": "m", "steps": 100, "policy": "job:p1", "ratio": 0.5, "sample": True}
    )
    assert medium.end()["state"] == "succeeded", medium.log.read_text()
    (inherited,) = (medium.run / "taken").glob("*.safetensors")
    assert inherited.samefile(worker.run / "checkpoints" / "000000002048.safetensors")


def test_ppo_without_a_dataset_continues_from_its_checkpoint_after_a_pause_and_a_kill(start, tmp_path):
    spec = {**PPO, "steps": 40_000}
    worker = start("p1", spec, environment={"OFFRLD_CHECKPOINT_SECONDS": "0.3"})
    worker.until(lambda event: event["type"] == "progress" and event["step"] > 500)
    worker.send({"type": "pause"})
    assert worker.end()["state"] == "paused"
    paused = worker.of_type("progress")[-1]["step"]
    second = start("p1", spec, attempt=2, environment={"OFFRLD_CHECKPOINT_SECONDS": "0.3"})
    second.until(lambda event: event["type"] == "progress" and event["step"] > paused + 5000)
    second.signal(signal.SIGKILL)
    second.wait()
    third = start("p1", {**spec, "steps": paused + 12_000}, attempt=3)
    assert third.end()["state"] == "succeeded", third.log.read_text()
    assert f"resumed at step {paused}, 0 updates behind" in [event["message"] for event in second.of_type("message")]
    [again] = [event["message"] for event in third.of_type("message") if event["message"].startswith("resumed")]
    assert int(again.split()[3].rstrip(",")) > paused
    assert not (tmp_path / "datasets" / "p1").exists()


def test_a_bounded_dataset_evicts_nothing_that_a_job_uses(start, tmp_path):
    spec = {"kind": "collect", "env": "Pendulum-v1", "dataset": "d", "steps": 2000, "limit": 1000}
    assert start("c1", spec).end()["state"] == "succeeded"
    store = EpisodeStore.open(tmp_path / "datasets" / "d")
    assert steps(store) == 1000 and store.first == 5
    snapshot = store.snapshot()
    held = start("c2", {**spec, "limit": None}, pinned=[str(snapshot)])
    assert held.end()["state"] == "succeeded"
    assert EpisodeStore.open(store.path, snapshot).step_count == 1000
    assert EpisodeStore.open(store.path).step_count == 3000
    free = start("c3", {**spec, "limit": None})
    free.until(lambda event: event["type"] == "progress" and event["step"] > 0)
    assert free.end()["state"] == "succeeded"
    assert steps(EpisodeStore.open(store.path)) == 1000


def test_a_full_disk_is_reported_and_collected_data_is_kept(tmp_path):
    program = (
        "import resource, sys; from offrl.errors import DiskFull; from offrld.collect import collect\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "try:\n    collect('Pendulum-v1', steps=100_000, into=sys.argv[1])\n"
        "except DiskFull as error:\n    print('full:', error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "d")], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("full:"), done.stderr
    assert check(tmp_path / "d") == [] and set(EpisodeStore.open(tmp_path / "d").episode_table["steps"]) <= {200}
