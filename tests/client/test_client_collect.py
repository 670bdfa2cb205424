"""Collecting and online training through a real daemon, from the command line and from Python."""

from __future__ import annotations

import time
import uuid

import pytest

import offrl
from offrl.errors import Conflict, InvalidInput, Unknown

SMALL = ["--set", "encoder.units=[16]", "--set", "batch_size=32"]


def name() -> str:
    return f"d-{uuid.uuid4().hex[:8]}"


def test_a_dataset_is_collected_trained_on_and_collected_with_the_policy(client, offrl_cli, tmp_path):
    dataset = name()
    ran = offrl_cli("collect", "--env", "CartPole-v1", "--steps", 600, "--into", dataset, "--envs", 2, "--seed", 3, "--wait", "--json")
    assert ran.status == 0, ran.err
    assert (ran.json["kind"], ran.json["state"], ran.json["step"], ran.json["steps"]) == ("collect", "succeeded", 600, 600)
    info = client.datasets.show(dataset)
    assert info.transitions == 600 and info.metadata["env_id"] == "CartPole-v1"
    trained = client.submit("discrete_bc", dataset=dataset, steps=5, config={"batch_size": 16, "encoder.units": [8]})
    trained.wait()
    path = trained.fetch(tmp_path / "policy.onnx")
    for policy in (f"job:{trained.id}", path):
        client.collect("CartPole-v1", policy, into=dataset, steps=100, epsilon=0.1).wait()
    assert client.datasets.show(dataset).transitions == 800
    assert trained.info().dataset == dataset  # and its snapshot is the one of before


def test_a_job_that_trains_waits_for_the_dataset_that_is_collected(client):
    dataset = name()
    job = client.collect("CartPole-v1", into=dataset, steps=300)
    trained = client.submit("discrete_bc", dataset=dataset, steps=2, config={"batch_size": 16, "encoder.units": [8]})
    assert trained.info().after == [job.id]
    trained.wait()


def test_online_training_is_paused_resumed_extended_and_fetched(client, offrl_cli, tmp_path):
    dataset = name()
    ran = offrl_cli(
        "train-online",
        "dqn",
        "--env",
        "CartPole-v1",
        "--into",
        dataset,
        "--steps",
        40000,
        "--epsilon",
        0.1,
        "--random-steps",
        200,
        "--update-interval",
        10,
        *SMALL,
    )
    assert ran.status == 0, ran.err
    job = client.job(ran.out.strip())
    for event in job.follow():
        if event.step > 500:
            job.pause()
            break
    end = time.monotonic() + 180
    while job.state not in ("paused", "failed"):
        assert time.monotonic() < end, job.last
        time.sleep(0.05)
    done = job.last.step
    assert job.last.state == "paused" and 500 < done < 40000
    assert client.datasets.show(dataset).transitions == done
    job.resume(steps=done + 300)
    info = job.wait()
    assert info.step == done + 300 == client.datasets.show(dataset).transitions and "rollout_return" in info.metrics
    policy = offrl.Policy(job.fetch(tmp_path / "policy.onnx"))
    assert policy.discrete and policy.env_id == "CartPole-v1"
    tuned = client.train_online(
        "dqn",
        env="CartPole-v1",
        into=name(),
        steps=250,
        start=job,
        offline=dataset,
        update_interval=10,
        config={"encoder.units": [16], "batch_size": 32},
    )
    tuned.wait()


def test_ppo_trains_by_its_own_play_and_its_episodes_can_be_had(client, offrl_cli, tmp_path):
    dataset = name()
    ran = offrl_cli(
        "train-online",
        "ppo",
        "--env",
        "CartPole-v1",
        "--into",
        dataset,
        "--limit",
        300,
        "--steps",
        500,
        "--envs",
        2,
        "--set",
        "rollout_steps=128",
        "--set",
        "encoder.units=[16]",
        "--wait",
        "--json",
    )
    assert ran.status == 0, ran.err
    assert (ran.json["state"], ran.json["step"], ran.json["steps"]) == ("succeeded", 512, 512)
    assert client.datasets.show(dataset).transitions <= 512
    policy = offrl.Policy(client.job(ran.json["job"]).fetch(tmp_path / "policy.onnx"))
    assert policy.discrete and policy.env_id == "CartPole-v1"
    alone = client.train_online("ppo", env="Pendulum-v1", steps=64, config={"rollout_steps": 64, "encoder.units": [16]})
    assert alone.wait().dataset is None
    for options, says in (({"into": dataset, "epsilon": 0.1}, "ppo takes no epsilon"), ({"limit": 5}, "limit=5 applies to a dataset")):
        with pytest.raises(InvalidInput, match=says):
            client.train_online("ppo", env="CartPole-v1", **options)
    with pytest.raises(InvalidInput, match="no dataset is named"):
        client.train_online("dqn", env="CartPole-v1")
    with pytest.raises(InvalidInput, match="dqn takes no envs"):
        client.train_online("dqn", env="CartPole-v1", into=name(), envs=2)
    with pytest.raises(InvalidInput, match="ppo learns from its own rollouts, not from a dataset"):
        client.submit("ppo", dataset=dataset)


def test_what_cannot_be_is_said_in_one_line(client, offrl_cli, tmp_path):
    with pytest.raises(Unknown) as caught:
        client.collect("CartPoel-v1", into=name(), steps=10)
    assert caught.value.hint == "did you mean 'CartPole-v1'?"
    with pytest.raises(InvalidInput, match="bc cannot be trained online: it learns no values"):
        client.train_online("bc", env="Pendulum-v1", into=name())
    with pytest.raises(Unknown, match="no job 'nothing'"):
        client.collect("CartPole-v1", "job:nothing", into=name(), steps=10)
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    ran = offrl_cli("collect", "--env", "CartPole-v1", "--policy", tmp_path / "bad.onnx", "--into", name(), "--steps", 10)
    assert ran.status == 2 and "is not an ONNX file" in ran.err
    dataset = name()
    client.collect("CartPole-v1", into=dataset, steps=20).wait()
    with pytest.raises(InvalidInput, match="the dataset is of CartPole-v1, the steps are of Pendulum-v1"):
        client.collect("Pendulum-v1", into=dataset, steps=20)
    with pytest.raises(Conflict, match="a limit is only for a new one"):
        client.collect("CartPole-v1", into=dataset, steps=20, limit=10)
    assert client.datasets.show(dataset).transitions == 20
