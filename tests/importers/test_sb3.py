"""Replay buffers of Stable-Baselines3 models that acted in real environments, beside a recording of the same steps by a wrapper."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from offrl.errors import EmptyStore, InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema, check
from offrld.importers import from_sb3, import_into, to_sb3

stable_baselines3 = pytest.importorskip("stable_baselines3")


class Recorded(gymnasium.Wrapper):
    """Keeps every episode: observations, actions, rewards, whether it terminated."""

    def __init__(self, env):
        super().__init__(env)
        self.episodes = []

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        self.episodes.append(([observation], [], [], [False]))
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        observations, actions, rewards, end = self.episodes[-1]
        observations.append(observation)
        actions.append(np.array(action))
        rewards.append(reward)
        end[0] = terminated
        return observation, reward, terminated, truncated, info


def collected(algorithm, env_id, steps, buffer_size=10_000, *, n_envs=1, **options):
    """A model that acted for some steps without learning, and what its environments saw."""
    envs = [Recorded(gymnasium.make(env_id)) for _ in range(n_envs)]
    vector = stable_baselines3.common.vec_env.DummyVecEnv([lambda env=env: env for env in envs])
    kind = getattr(stable_baselines3, algorithm)
    policy = "MultiInputPolicy" if isinstance(envs[0].observation_space, gymnasium.spaces.Dict) else "MlpPolicy"
    model = kind(
        policy, vector, buffer_size=buffer_size, learning_starts=10**9, seed=0, device="cpu", policy_kwargs={"net_arch": [8]}, **options
    )
    model.learn(steps)
    return model, [[each for each in env.episodes if each[1]] for env in envs]


def assert_equal(episode, recorded, first=0):
    observations, actions, rewards, (terminated,) = recorded
    np.testing.assert_array_equal(episode.observation, np.array(observations, np.float32)[first:])
    np.testing.assert_allclose(episode.action, np.array(actions)[first:].reshape(episode.action.shape), atol=1e-6)
    np.testing.assert_allclose(episode.reward, np.array(rewards, np.float32)[first:])
    assert episode.terminated == terminated and not episode.final_missing


def test_time_limits_are_cuts_and_actions_are_in_the_environment_s_units(tmp_path):
    """T02: Pendulum ends by its limit alone; the buffer holds torques divided by two."""
    model, (recorded,) = collected("SAC", "Pendulum-v1", 500)
    assert np.abs(model.replay_buffer.actions).max() <= 1
    store = import_into(from_sb3(model.replay_buffer, env_id="Pendulum-v1"), tmp_path / "store")
    assert (len(store), store.transition_count, store.metadata["env_id"]) == (3, 500, "Pendulum-v1")
    assert store.schema.action.low.tolist() == [-2] and store.metadata["bounds"] == "declared" and check(store.path) == []
    for ours, theirs in zip(store.episodes, recorded, strict=True):
        assert_equal(ours, theirs)
    raw = import_into(from_sb3(model.replay_buffer, actions="environment"), tmp_path / "raw")
    np.testing.assert_allclose(raw.episodes[0].action * 2, store.episodes[0].action, atol=1e-6)


def test_a_ring_that_went_around_is_in_the_order_of_writing(tmp_path):
    """T02: 700 steps into 300 rows: the newest 300, oldest first, and the first of them in the middle of its episode."""
    model, (recorded,) = collected("DQN", "CartPole-v1", 700, 300)
    assert model.replay_buffer.full and model.replay_buffer.pos == 100
    store = import_into(from_sb3(model.replay_buffer), tmp_path / "store")
    assert store.transition_count == 300 and store.schema.action.n == 2
    lengths = [len(each[1]) for each in recorded]
    number, left = len(recorded), 300
    while left > 0:
        number -= 1
        left -= lengths[number]
    assert len(store) == len(recorded) - number
    for place, ours in enumerate(store.episodes):
        assert_equal(ours, recorded[number + place], first=-left if place == 0 else 0)
    assert [each.terminated for each in store.episodes][:-1] == [True] * (len(store) - 1)


def test_several_environments_are_apart(tmp_path):
    model, recorded = collected("DQN", "CartPole-v1", 400, n_envs=2)
    store = import_into(from_sb3(model.replay_buffer), tmp_path / "store")
    assert store.transition_count == 400
    for ours, theirs in zip(store.episodes, recorded[0] + recorded[1], strict=True):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("size", [10_000, 300])
def test_a_buffer_that_saves_memory_lacks_final_observations_only(tmp_path, size):
    options = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model, (recorded,) = collected("DQN", "CartPole-v1", 700, size, **options)
    lines = []
    store = import_into(from_sb3(model.replay_buffer), tmp_path / "store", message=lines.append)
    assert store.transition_count == (700 if size > 700 else 299)
    assert any("keeps no final observations" in line for line in lines)
    whole = list(store.episodes)[1:]
    for ours, theirs in zip(whole, recorded[-len(whole) :], strict=True):
        rows = len(ours.observation)
        np.testing.assert_array_equal(ours.observation, np.array(theirs[0], np.float32)[:rows])
        assert ours.terminated == theirs[3][0] and ours.final_missing == ours.terminated


class Goals(gymnasium.Env):
    """A walk to a goal, with the observation of a goal environment, for the buffer of named observations."""

    def __init__(self):
        place = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"place": place, "goal": place})
        self.action_space = gymnasium.spaces.Discrete(2)

    def _see(self):
        return {"place": np.array([self.at], np.float32), "goal": np.array([4], np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self._see(), {}

    def step(self, action):
        self.at += 1 if action else -1
        return self._see(), float(self.at == 4), self.at == 4, abs(self.at) > 6, {}


def test_named_observations(tmp_path):
    gymnasium.register("OffrlTestGoals-v0", Goals, max_episode_steps=9)
    try:
        model, (recorded,) = collected("DQN", "OffrlTestGoals-v0", 120)
    finally:
        del gymnasium.registry["OffrlTestGoals-v0"]
    store = import_into(from_sb3(model.replay_buffer), tmp_path / "store")
    assert set(store.schema.observation) == {"place", "goal"} and store.transition_count == 120
    for ours, theirs in zip(store.episodes, recorded, strict=True):
        assert ours.observation["place"][:, 0].tolist() == [each["place"][0] for each in theirs[0]]
        assert ours.terminated == theirs[3][0]


def test_a_dataset_fills_a_buffer(shared_data, tmp_path):
    """What the buffer then samples: rewards and next observations as in the store, a time-out is not an end of the task."""
    store = import_into(shared_data / "minari" / "cartpole" / "replay-v0", tmp_path / "store")
    spaces = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32), gymnasium.spaces.Discrete(2)
    buffer = stable_baselines3.common.buffers.ReplayBuffer(30_000, *spaces, device="cpu")
    assert to_sb3(store, buffer) == 20_000 == buffer.pos
    again = import_into(from_sb3(buffer), tmp_path / "again")
    assert again.transition_count == 20_000
    ends = [int(each.steps) for each in store.episodes]
    assert np.flatnonzero(buffer.dones[:20_000, 0]).tolist() == (np.cumsum(ends) - 1).tolist()
    assert buffer.timeouts.sum() == sum(not each.terminated for each in store.episodes)
    for ours, theirs in zip(again.episodes, store.episodes, strict=True):
        np.testing.assert_array_equal(ours.observation, theirs.observation)
        np.testing.assert_array_equal(ours.action, theirs.action)
    torque = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    pendulum = import_into(shared_data / "pendulum-replay.hdf5", tmp_path / "pendulum")
    scaled = stable_baselines3.common.buffers.ReplayBuffer(300, gymnasium.spaces.Box(-9, 9, (3,), np.float32), torque, device="cpu")
    to_sb3(pendulum, scaled)
    assert scaled.full and 0.9 < np.abs(scaled.actions).max() <= 1


def test_a_buffer_that_would_change_an_observation_is_refused(tmp_path):
    """Its arrays have the dtypes of its spaces, and would round or wrap what is wider."""
    store = EpisodeStore.create(tmp_path / "store", Schema(Field("float64", (2,)), Field("int64", low=0, high=1)))
    with store.writer() as writer:
        writer.append(Episode([[0.0, 0.5], [1.0, 1.7e9 + 1]], [0], [1.0], True))
    spaces = [gymnasium.spaces.Box(-np.inf, np.inf, (2,), dtype) for dtype in (np.float32, np.float64)]
    narrow, wide = (stable_baselines3.common.buffers.ReplayBuffer(9, each, gymnasium.spaces.Discrete(2), "cpu") for each in spaces)
    with pytest.raises(InvalidInput, match=r"episode 0: observation\[1, 1\] is 1700000001\.0, which a buffer of float32 would keep as 1"):
        to_sb3(store, narrow)
    assert narrow.pos == 0 and to_sb3(store, wide) == 1 and wide.next_observations[0, 0].tolist() == [1.0, 1.7e9 + 1]


def test_what_is_no_such_buffer_says_so(tmp_path):
    box, choice = gymnasium.spaces.Box(-1, 1, (2,), np.float32), gymnasium.spaces.MultiDiscrete([2, 3])
    with pytest.raises(InvalidInput, match="a dict has no 'observations'"):
        from_sb3({})
    with pytest.raises(EmptyStore, match="holds no steps"):
        from_sb3(stable_baselines3.common.buffers.ReplayBuffer(10, box, box, device="cpu"))
    several = stable_baselines3.common.buffers.ReplayBuffer(10, box, choice, device="cpu")
    several.add(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    with pytest.raises(InvalidInput, match="MultiDiscrete space, which is not read"):
        from_sb3(several)
    with pytest.raises(InvalidInput, match="a RolloutBuffer has no 'dones'"):
        from_sb3(stable_baselines3.common.buffers.RolloutBuffer(10, box, box, device="cpu"))
    with pytest.raises(InvalidInput, match="for 2 environments cannot be filled"):
        to_sb3(None, stable_baselines3.common.buffers.ReplayBuffer(10, box, box, device="cpu", n_envs=2))
