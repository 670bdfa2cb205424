"""Policy files, learners and models act as they do alone; explorers mix in what they announce."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from collect_envs import Counting

import offrld
from offrl import Policy
from offrl.errors import InvalidInput
from offrld.algos import get
from offrld.collect import (
    Collector,
    ConstantEpsilonGreedy,
    LearnerBehaviour,
    LinearDecayEpsilonGreedy,
    MultiSyncCollector,
    NormalNoise,
    as_behaviour,
    collect,
)
from offrld.collect.explorers import explorer_of
from offrld.sb3 import SB3Wrapper


@pytest.fixture(scope="module")
def learner():
    return offrld.build("sac", offrld.Shapes.of_env("Pendulum-v1"), config={"actor_encoder.units": [16], "critic_encoder.units": [16]})


@pytest.fixture(scope="module")
def file(learner, tmp_path_factory):
    return learner.export(tmp_path_factory.mktemp("policy") / "policy.onnx")


def test_a_policy_file_acts_alike_in_one_environment_and_in_several(learner, file):
    for envs in (1, 2):
        batch = Collector("Pendulum-v1", file, envs=envs, frames_per_batch=20).rollout().flat()
        np.testing.assert_allclose(batch.action, learner.predict(batch.observation), atol=1e-5)
    with pytest.raises(InvalidInput, match="a policy file is deterministic"):
        as_behaviour(file, deterministic=False)
    with pytest.raises(InvalidInput, match="environment 'CartPole-v1' does not fit the policy"):
        Collector("CartPole-v1", file)


def test_a_learner_acts_greedily_or_draws(learner):
    greedy = Collector("Pendulum-v1", learner, deterministic=True, frames_per_batch=30).rollout()
    np.testing.assert_allclose(greedy.action, learner.predict(greedy.observation), atol=1e-5)
    drawn, again = (Collector("Pendulum-v1", learner, envs=2, frames_per_batch=30).rollout() for _ in range(2))
    np.testing.assert_array_equal(drawn.action, again.action)
    assert np.abs(drawn.flat().action - learner.predict(drawn.flat().observation)).max() > 0.1
    with pytest.raises(InvalidInput, match="CartPole-v1: observation 'observation' is of shape"):
        Collector("CartPole-v1", learner)


def test_a_loaded_seed_acts_as_its_learner_does_without_becoming_one(tmp_path):
    config = {"actor_encoder.units": [16], "critic_encoder.units": [16], "observation_scaler.type": "min_max"}
    learner = offrld.build("sac", env="Pendulum-v1", config=config, seeds=[3, 5])
    learner.save(tmp_path / "run.safetensors")
    loaded = offrld.Loaded.read(tmp_path / "run.safetensors", get, seed=5)
    for deterministic in (False, True):
        behaviours = (
            LearnerBehaviour(learner, deterministic=deterministic, seed=5),
            LearnerBehaviour.load(str(tmp_path / "run.safetensors"), deterministic=deterministic, seed=5),
            as_behaviour(loaded, deterministic=deterministic),
        )
        steps = [Collector("Pendulum-v1", behaviour, frames_per_batch=20).rollout().action for behaviour in behaviours]
        np.testing.assert_array_equal(steps[1], steps[0])
        np.testing.assert_array_equal(steps[2], steps[0])
    seen = np.zeros((2, 3), np.float32)
    values = learner.predict_value(seen, steps[0][:2], seed=5)
    np.testing.assert_array_equal(loaded.actor.predict_value(seen, steps[0][:2]), values)


def test_a_learner_s_weights_go_to_its_workers(learner):
    with MultiSyncCollector("Pendulum-v1", learner, num_workers=2, deterministic=True, frames_per_batch=10) as collector:
        before = collector.rollout()
        np.testing.assert_allclose(before.action, learner.predict(before.observation), atol=1e-5)
        weights = LearnerBehaviour(learner).weights()
        collector.update_policy_weights({name: value + np.float32(0.1) for name, value in weights.items()})
        after = collector.rollout()
        assert np.abs(after.action - learner.predict(after.observation)).max() > 0.05
        collector.update_policy_weights()  # those of the learner itself
        again = collector.rollout()
        np.testing.assert_allclose(again.action, learner.predict(again.observation), atol=1e-5)


def test_frames_are_stacked_when_a_learner_acts():
    learner = offrld.build("dqn", offrld.Shapes.of((2,), actions=3), config={"frame_stack": 3, "encoder.units": [8]})
    seen = []
    predict = learner.predict
    learner.predict = lambda observations, seed=None: seen.append(np.array(observations)) or predict(observations)

    class Of(Counting):
        action_space = gymnasium.spaces.Discrete(3)

    batch = Collector(Of((4,)), LearnerBehaviour(learner, deterministic=True), frames_per_batch=6).rollout()
    stacks = np.concatenate(seen)  # [6, 3 * 2]
    np.testing.assert_array_equal(stacks[:, 4:], batch.observation)
    np.testing.assert_array_equal(stacks[3, :4], np.concatenate([batch.observation[1], batch.observation[2]]))
    assert (stacks[[0, 4], :4] == 0).all()  # nothing of the episode before


def test_models_of_stable_baselines3_act_and_ours_act_for_it(learner, file):
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.evaluation import evaluate_policy

    model = PPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", n_steps=16)
    for envs in (1, 2):
        batch = Collector("Pendulum-v1", model, envs=envs, deterministic=True, frames_per_batch=20).rollout().flat()
        np.testing.assert_allclose(batch.action, model.predict(batch.observation, deterministic=True)[0], atol=1e-5)
    discrete = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    batch = Collector("CartPole-v1", discrete, deterministic=True, frames_per_batch=20).rollout()
    np.testing.assert_array_equal(batch.action, discrete.predict(batch.observation, deterministic=True)[0])

    env = gymnasium.wrappers.TimeLimit(gymnasium.make("Pendulum-v1").unwrapped, 20)
    env.reset(seed=0)
    returns = [evaluate_policy(SB3Wrapper(each), _seeded(env), n_eval_episodes=2, warn=False)[0] for each in (learner, Policy(file))]
    assert returns[0] == pytest.approx(returns[1], rel=1e-3)
    assert evaluate_policy(SB3Wrapper(learner), _seeded(env), n_eval_episodes=2, deterministic=False, warn=False)[0] != returns[0]


def _seeded(env):
    env.reset(seed=5)
    return env


def test_the_wrapper_forwards_what_is_not_its_own(learner, file):
    wrapper = SB3Wrapper(learner)
    assert wrapper.algo is learner and wrapper.seeds == (0,)
    wrapper.mark = 3
    assert learner.mark == 3
    observation = np.zeros(3, np.float32)
    action, state = wrapper.predict(observation, None, None, True)
    assert action.shape == (1,) and state is None
    with pytest.raises(InvalidInput, match="a policy file is deterministic"):
        SB3Wrapper(Policy(file)).predict(observation, deterministic=False)


def test_epsilon_falls_in_a_line():
    explorer = LinearDecayEpsilonGreedy(1.0, 0.2, 100)
    assert [explorer.epsilon_at(step) for step in (0, 50, 100, 1000)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    batch = Collector(Counting((9,)), lambda o: np.ones(1, np.float32), explorer=explorer, frames_per_batch=1000).rollout()
    ours = batch.action[:, 0] == 1
    assert ours[:50].mean() < 0.5 and ours[100:].mean() == pytest.approx(0.8, abs=0.06)


def test_noise_is_of_every_element_within_the_bounds(tmp_path):
    class Wide(Counting):
        action_space = gymnasium.spaces.Box(np.float32([-10, 0]), np.float32([10, 1]))

    def middle(observation):
        return np.array([0.0, 0.5], np.float32)

    for envs in (1, 2):
        store = collect(Wide, middle, steps=1000, envs=envs, into=tmp_path / str(envs), explorer=NormalNoise(std=0.2))
        actions = np.concatenate([episode.action for episode in store.episodes])
        np.testing.assert_allclose(actions.std(0), [2.0, 0.1], rtol=0.15)
        assert abs(np.corrcoef(actions.T)[0, 1]) < 0.15
        assert store.episode_metadata(0) == {"policy": "middle", "explorer": "normal_noise", "mean": 0.0, "std": 0.2, "random_share": 0.0}
    with pytest.raises(InvalidInput, match=r"actions of Discrete.* take no normal noise"):
        Collector("CartPole-v1", lambda o: 0, explorer=NormalNoise()).rollout()


def test_settings_of_explorers_are_checked():
    assert explorer_of() is None and explorer_of(epsilon=0.1) == ConstantEpsilonGreedy(0.1)
    assert explorer_of(epsilon_end=0.1, epsilon_steps=10) == LinearDecayEpsilonGreedy(1.0, 0.1, 10)
    assert explorer_of(noise=0.1) == NormalNoise(0.0, 0.1)
    wrong = [{"epsilon": 1.5}, {"epsilon_end": 0.1}, {"noise": -1.0}, {"noise": 0.1, "epsilon": 0.1}]
    wrong += [{"epsilon_end": 0.1, "epsilon_steps": 0}]
    for bad in wrong:
        with pytest.raises(InvalidInput):
            explorer_of(**bad)


def test_what_does_not_act_is_refused():
    with pytest.raises(InvalidInput, match="int does not act"):
        as_behaviour(3)
    with pytest.raises(InvalidInput, match=r"no policy file 'nothing\.onnx'"):
        as_behaviour("nothing.onnx")


@pytest.mark.parametrize("envs", [1, 2])
def test_a_policy_of_other_spaces_is_refused_before_the_first_step(learner, file, tmp_path, envs):
    for policy in (learner, file):
        for env in ("CartPole-v1", "MountainCarContinuous-v0"):
            with pytest.raises(InvalidInput, match="observation") as caught:
                Collector(env, policy, envs=envs, frames_per_batch=2, into=tmp_path / "store")
            assert env in str(caught.value)
    assert not (tmp_path / "store").exists()
