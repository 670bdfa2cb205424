"""Sequence models learn to follow a target return: the same policy reaches a low return or a high one."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from offrl.policy import Policy
from offrl.rollout import evaluate
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.algos import get
from offrld.engine import Learner
from offrld.export.onnx import export_policy

STEPS = 6
SMALL = {
    "batch_size": 64, "context_size": 4, "transformer.layers": 1, "transformer.heads": 2, "transformer.attention_dropout": 0.0,
    "transformer.residual_dropout": 0.0, "transformer.embedding_dropout": 0.0,
}  # fmt: skip


class Corridor(gymnasium.Env):
    """Six steps; each pays what its action says: discrete ones 0, 1 or 2, continuous ones a in [-1, 1]. The data's actions are random."""

    def __init__(self, discrete: bool) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3) if discrete else gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.discrete = discrete

    def _observation(self):
        return np.array([self.time / STEPS, 1.0], np.float32)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self._observation(), {}

    def step(self, action):
        self.time += 1
        reward = float(action) if self.discrete else float(action[0])
        return self._observation(), reward, self.time == STEPS, False, {}


def data(path, discrete: bool) -> EpisodeStore:
    """Episodes of constant action, and of mixed ones: all returns occur."""
    action = Field("int64", low=0, high=2) if discrete else Field("float32", (1,), low=-1.0, high=1.0)
    store = EpisodeStore.create(path, Schema(observation=Field("float32", (2,)), action=action, reward=Field("float32")))
    random = np.random.default_rng(0)
    env = Corridor(discrete)
    with store.writer() as writer:
        for _ in range(300):
            same = random.uniform() < 0.6
            draw = (lambda n: random.integers(0, 3, n)) if discrete else (lambda n: random.uniform(-1, 1, (n, 1)).astype(np.float32))
            actions = np.repeat(draw(1), STEPS, axis=0) if same else draw(STEPS)
            observations, rewards = [env.reset()[0]], []
            for taken in actions:
                observation, reward, _, _, _ = env.step(taken)
                observations.append(observation)
                rewards.append(reward)
            writer.append(Episode(observation=np.stack(observations), action=actions, reward=np.float32(rewards), terminated=True))
    return EpisodeStore.open(path)


def trained(name: str, store: EpisodeStore, values: dict, updates: int, path) -> Policy:
    algorithm = get(name)
    learner = Learner.create(algorithm, algorithm.configure({**SMALL, **values}), store)
    learner.run(updates)
    export_policy(
        learner.policy(0), path, observation=("float32", (2,)), discrete=learner.space["discrete"], metadata={"space": learner.space}
    )
    return Policy(path)


@pytest.mark.parametrize(
    ("name", "values", "asked", "tolerance"),
    [
        ("decision_transformer", {"encoder.units": [32], "learning_rate": 3e-3, "optimizer.schedule": "none"}, (-4.0, 0.0, 4.0), 1.0),
        ("discrete_decision_transformer", {"encoder.units": [32], "learning_rate": 3e-3, "warmup_tokens": 1000}, (0.0, 6.0, 12.0), 1.0),
    ],
)
def test_a_decision_transformer_reaches_its_target_return(name, values, asked, tolerance, tmp_path):
    discrete = name.startswith("discrete")
    policy = trained(name, data(tmp_path / "store", discrete), values, 400, tmp_path / "policy.onnx")
    for target in asked:
        (reached,) = evaluate(policy, Corridor(discrete), episodes=1, target_return=target).returns
        assert abs(reached - target) <= tolerance, f"asked for {target}, reached {reached}"
    assert policy.target_return > asked[1]
    assert evaluate(policy, Corridor(discrete), episodes=1).returns[0] > asked[1]


def test_tacr_does_better_than_the_data(tmp_path):
    store = data(tmp_path / "store", discrete=False)
    values = {
        "actor_encoder.units": [32],
        "critic_encoder.units": [32],
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": 3e-3,
        "gamma": 0.5,
        "alpha": 10.0,
    }
    policy = trained("tacr", store, values, 500, tmp_path / "policy.onnx")
    reached = evaluate(policy, Corridor(discrete=False), episodes=1).returns[0]
    assert reached > 4.5, reached  # the mean of the data is 0, the best possible 6
