"""The purpose of collecting: an offline algorithm learns more from an online policy's data than that policy had learned."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import offrld
from offrld.collect import Collector, LearnerBehaviour, collect_episodes
from offrld.collect.on_policy import OnPolicy


@pytest.mark.slow
def test_discrete_cql_on_episodes_of_a_half_trained_ppo_beats_their_mean(tmp_path):
    values = {"rollout_steps": 32, "batch_size": 256, "epochs": 20, "gamma": 0.98, "gae_lambda": 0.8, "learning_rate": 1e-3}
    behaviour = offrld.build("ppo", gymnasium.make("CartPole-v1"), config=values, device="cpu")
    with OnPolicy(behaviour, "CartPole-v1", envs=8) as training:
        while training.step < 4_000:
            training.round()
    with Collector("CartPole-v1", LearnerBehaviour(behaviour), envs=4, frames_per_batch=4, into=tmp_path / "play", seed=1) as collector:
        collector.run(12_000)
        store = collector.store
    mean = float(store.returns.mean())
    assert 30 < mean < 300, "the behaviour is neither random nor finished"
    learner = offrld.train("discrete_cql", tmp_path / "play", steps=6_000, config={"learning_rate": 3e-4, "target_update_interval": 200})
    episodes = collect_episodes("CartPole-v1", LearnerBehaviour(learner, deterministic=True), episodes=20, seed=1000)
    learned = np.mean([episode.reward.sum() for episode in episodes])
    print(f"behaviour {mean:.1f}, DiscreteCQL {learned:.1f}")
    assert learned > 1.2 * mean
