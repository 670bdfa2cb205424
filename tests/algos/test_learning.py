"""Each algorithm solves a small problem whose answer is known, within seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import offrld
from offrl_store import Episode, EpisodeStore, Field, Schema


def fill(path, action, episodes):
    store = EpisodeStore.create(path, Schema(observation=Field("float32", (2,)), action=action, reward=Field("float32")))
    with store.writer() as writer:
        for episode in episodes:
            writer.append(episode)
    return EpisodeStore.open(path)


@pytest.fixture(scope="module")
def reaching(tmp_path_factory):
    """One-step episodes: random actions in [-1, 1]^2, reward -(a - x)^2 where x is the observation: the best action is x itself."""
    random = np.random.default_rng(0)

    def episodes():
        for _ in range(3000):
            x = random.uniform(-0.9, 0.9, (1, 2)).astype(np.float32)
            a = random.uniform(-1, 1, (1, 2)).astype(np.float32)
            yield Episode(observation=np.concatenate([x, x]), action=a, reward=-((a - x) ** 2).sum(-1), terminated=True)

    return fill(tmp_path_factory.mktemp("reaching") / "store", Field("float32", (2,), low=-1, high=1), episodes())


@pytest.fixture(scope="module")
def corridor(tmp_path_factory):
    """A corridor of five cells, random steps left (0) and right (1), reward 1 at the right end: the best action is always right.

    The observation is (position, 1), the first steps of the goal's value must travel back through four bootstraps."""
    random = np.random.default_rng(1)

    def episodes():
        for _ in range(600):
            cell, cells, actions, rewards = 0, [0], [], []
            while cell < 4 and len(actions) < 12:
                action = int(random.integers(0, 2))
                cell = max(0, cell + (1 if action else -1))
                cells.append(cell)
                actions.append(action)
                rewards.append(float(cell == 4))
            observation = np.stack([np.array(cells) / 4, np.ones(len(cells))], -1).astype(np.float32)
            yield Episode(observation=observation, action=np.array(actions), reward=np.array(rewards, np.float32), terminated=cell == 4)

    return fill(tmp_path_factory.mktemp("corridor") / "store", Field("int64", low=0, high=1), episodes())


CELLS = torch.stack([torch.arange(4) / 4, torch.ones(4)], -1)
STATES = torch.tensor([[0.5, -0.5], [-0.3, 0.8], [0.0, 0.0], [-0.7, -0.6]])


@pytest.mark.parametrize(
    ("name", "steps", "config"),
    [
        ("td3_bc", 700, {"alpha": 10.0, "actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "target_smoothing_sigma": 0.05}),
        ("rebrac", 400, {"batch_size": 128, "actor_encoder.units": [64, 64], "critic_encoder.units": [64, 64]}),
        ("iql", 900, {"weight_temp": 10.0, "expectile": 0.5, "actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3}),
    ],
)
def test_it_finds_the_best_continuous_action_in_random_data(name, steps, config, reaching):
    learner = offrld.train(name, reaching, steps=steps, config=config)
    action = learner.policy(0)(STATES)
    error = (action - STATES).abs().max()
    assert error < 0.35, f"{name}: {action.tolist()}"  # imitation of the random data gives 0: an error of 0.8


@pytest.mark.parametrize("name", ["dqn", "double_dqn", "discrete_cql"])
def test_it_walks_to_the_reward_at_the_end_of_a_corridor(name, corridor):
    config = {"learning_rate": 1e-3, "target_update_interval": 25, "gamma": 0.9}
    learner = offrld.train(name, corridor, steps=800, config=config)
    assert learner.policy(0)(CELLS).tolist() == [1, 1, 1, 1]
    if name != "discrete_cql":  # which holds values down on purpose
        values = learner.policy(0).scores(CELLS)[:, 1]
        torch.testing.assert_close(values, torch.tensor([0.9**3, 0.9**2, 0.9, 1.0]), rtol=0, atol=0.12)


@pytest.mark.parametrize("kind", ["qr", "iqn", "fqf"])
def test_distributional_values_reach_the_start_of_a_corridor(kind, corridor):
    config = {"learning_rate": 1e-3, "target_update_interval": 25, "gamma": 0.9, "q_function.type": kind, "q_function.n_quantiles": 16}
    learner = offrld.train("dqn", corridor, steps=800, config=config)
    assert learner.policy(0)(CELLS).tolist() == [1, 1, 1, 1]
    values = learner.policy(0).scores(CELLS)[:, 1]
    torch.testing.assert_close(values, torch.tensor([0.9**3, 0.9**2, 0.9, 1.0]), rtol=0, atol=0.12)


@pytest.mark.parametrize("policy_type", ["deterministic", "stochastic"])
def test_bc_imitates_continuous_actions(policy_type, tmp_path):
    random = np.random.default_rng(2)

    def episodes():
        for _ in range(1000):
            x = random.uniform(-0.9, 0.9, (1, 2)).astype(np.float32)
            yield Episode(observation=np.concatenate([x, x]), action=-x[:, ::-1].copy(), reward=np.zeros(1, np.float32), terminated=True)

    store = fill(tmp_path / "store", Field("float32", (2,), low=-1, high=1), episodes())
    learner = offrld.train("bc", store, steps=500, config={"policy_type": policy_type})
    torch.testing.assert_close(learner.policy(0)(STATES), -STATES.flip(-1), rtol=0, atol=0.15)


def test_discrete_bc_imitates_discrete_actions(tmp_path):
    random = np.random.default_rng(3)

    def episodes():
        for _ in range(1000):
            x = random.uniform(-1, 1, (1, 2)).astype(np.float32)
            action = np.array([int(x[0, 0] > 0) + int(x[0, 1] > 0)])
            yield Episode(observation=np.concatenate([x, x]), action=action, reward=np.zeros(1, np.float32), terminated=True)

    store = fill(tmp_path / "store", Field("int64", low=0, high=2), episodes())
    learner = offrld.train("discrete_bc", store, steps=400)
    assert learner.policy(0)(torch.tensor([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])).tolist() == [2, 1, 0]
