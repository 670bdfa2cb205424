"""What can be known at submission is refused at submission: one line, exit status 2, and nothing in the queue."""

from __future__ import annotations

import numpy as np
import pytest

import offrl
from offrl.errors import InvalidInput, OffrlError

SMALL = {"batch_size": 32}


@pytest.fixture(scope="module")
def client(daemon):
    with offrl.Client(daemon.url) as client:
        generator = np.random.default_rng(0)
        observations = generator.normal(size=(200, 3)).astype("float32")
        ends = np.arange(200) % 50 == 49
        for name, bound in (("torque", 2.0), ("wide", 9.0), ("choice", 0.0)):
            actions = generator.uniform(-bound, bound, (200, 1)).astype("float32") if bound else generator.integers(2, size=200)
            more = {"action_low": np.array([-bound]), "action_high": np.array([bound])} if bound else {}
            arrays = {"observations": observations, "actions": actions, "rewards": np.ones(200, "float32"), "terminals": ends, **more}
            client.datasets.add(f"before-{name}", arrays)
        yield client


def refused(submit, *words: str) -> OffrlError:
    with pytest.raises(InvalidInput) as caught:
        submit()
    error = caught.value
    assert error.exit_status == 2 and error.hint and "\n" not in str(error)
    for word in words:
        assert word in str(error), (word, str(error))
    return error


def test_an_evaluation_environment_that_is_not_the_datasets(client):
    before = len(client.jobs())
    for dataset, algorithm, env, words in (
        ("before-torque", "td3_bc", "CartPole-v1", ("CartPole-v1 gives observation of shape (4,), the dataset has (3,)",)),
        ("before-choice", "dqn", "Pendulum-v1", ("Pendulum-v1 takes Box", "the dataset has 2 discrete actions")),
        ("before-wide", "td3_bc", "Pendulum-v1", ("takes action 0 from -2 to 2, the dataset has it down to -9",)),
        ("before-torque", "td3_bc", "Blackjack-v1", ("Blackjack-v1 has no observation field",)),
        ("before-torque", "td3_bc", "Nope-v1", ("no environment 'Nope-v1'", "pprint_registry")),
    ):
        refused(lambda: client.submit(algorithm, dataset=dataset, steps=10, eval_env=env), *words)  # noqa: B023  used at once
    assert len(client.jobs()) == before
    client.submit("td3_bc", dataset="before-torque", steps=10**9, eval_env="Pendulum-v1", eval_episodes=1, config=SMALL).cancel()


def test_a_device_that_is_not_there(client):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    error = refused(lambda: client.submit("td3_bc", dataset="before-torque", steps=10, device="cuda"), "--device cpu")
    assert "finds no GPU" in error.message or "has none" in error.message


def test_training_online_with_the_wrong_actions_or_into_another_dataset(client):
    refused(lambda: client.train_online("sac", env="CartPole-v1", into="new", steps=10), "continuous", "discrete")
    refused(lambda: client.train_online("dqn", env="Pendulum-v1", into="new", steps=10), "discrete", "continuous")
    refused(lambda: client.train_online("sac", env="Pendulum-v1", into="new", steps=10, eval_env="CartPole-v1"), "CartPole-v1")
    refused(lambda: client.collect("CartPole-v1", into="before-torque", steps=10), "CartPole-v1", "dataset")
    refused(lambda: client.collect("Blackjack-v1", into="new", steps=10), "Blackjack-v1: observations of Tuple cannot be stored")
    refused(lambda: client.collect("ALE/Nope-v9", into="new", steps=10), "no environment 'ALE/Nope-v9'")


def test_sizes_beyond_the_disk(client):
    error = refused(lambda: client.collect("CartPole-v1", into="new", steps=10**11), "100,000,000,000 steps of CartPole-v1", "TB")
    assert "--limit" in error.hint
    client.collect("CartPole-v1", into="bounded", steps=10**11, limit=1000).cancel()


def test_an_evaluation_without_a_policy(client):
    refused(lambda: client.submit("fqe", dataset="before-torque", steps=10), "fqe evaluates the policy of another job", "--set policy=JOB")
    refused(lambda: client.submit("fqe", dataset="before-torque", steps=10, start="somejob"), "--from names networks to start from")


def test_networks_of_another_algorithm(client):
    same = {"critic_encoder.units": [16], "actor_encoder.units": [16], **SMALL}
    job = client.submit("rebrac", dataset="before-torque", steps=1, config=same)
    assert job.wait().state == "succeeded"
    for submit in (
        lambda: client.train_online("sac", env="Pendulum-v1", into="new", steps=10, start=job.id),
        lambda: client.train_online("sac", env="Pendulum-v1", into="new", steps=10, start=job.id, transfer="policy"),
        lambda: client.train_online("sac", env="Pendulum-v1", into="new", steps=10, start=job.id, transfer="critics"),
    ):
        error = refused(submit, "--from: network", f"job {job.id}")
        assert f"`offrl train-online rebrac --from {job.id}`" in error.hint and "--transfer" not in error.hint
    refused(lambda: client.train_online("rebrac", env="MountainCarContinuous-v0", into="new", steps=10, start=job.id), "observation [3]")
    refused(lambda: client.collect("CartPole-v1", f"job:{job.id}", into="new", steps=10), f"--policy: job {job.id}", "observation [4]")
    refused(lambda: client.submit("rebrac", dataset="before-torque", steps=10, start=job.id), "network", "fit")
    client.train_online("rebrac", env="Pendulum-v1", into="tuned", steps=10**9, start=job.id, config=same).cancel()
