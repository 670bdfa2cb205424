"""Collected episodes are whole: ends are distinguished, final observations are stored, and the same seed gives the same data."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from offrl.errors import InvalidInput, StoreExists, Unknown
from offrl_store import EpisodeStore, check
from offrld.collect import NoisyPoleBehaviour, RandomBehaviour, collect_episodes, schema_of
from offrld.demo.cartpole import collect


class Counter(gymnasium.Env):
    """Counts its steps in one array that it overwrites; terminates after ``end`` steps."""

    action_space = gymnasium.spaces.Discrete(3)
    observation_space = gymnasium.spaces.Dict(
        {"count": gymnasium.spaces.Box(0, 100, (1,)), "inner": gymnasium.spaces.Dict({"half": gymnasium.spaces.Discrete(50)})}
    )

    def __init__(self, end: int) -> None:
        self.end, self.row = end, np.zeros(1, np.float32)

    def _observation(self):
        return {"count": self.row, "inner": {"half": int(self.row[0]) // 2}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row[0] = 0
        return self._observation(), {}

    def step(self, action):
        self.row += 1
        return self._observation(), 1.0, bool(self.row[0] == self.end), False, {}


def test_a_time_limit_is_a_truncation_with_its_final_observation():
    (episode,) = collect_episodes("Pendulum-v1", RandomBehaviour(), episodes=1, seed=3)
    assert (episode.steps, episode.terminated, episode.final_missing) == (200, False, False)
    assert episode.observation.shape == (201, 3) and episode.observation.dtype == np.float32
    assert episode.action.shape == (200, 1) and np.abs(episode.action).max() <= 2
    replayed = gymnasium.make("Pendulum-v1")
    observation, _ = replayed.reset(seed=3)
    for row in range(200):
        np.testing.assert_array_equal(observation, episode.observation[row])
        observation, reward, *_ = replayed.step(episode.action[row])
        assert episode.reward[row] == np.float32(reward)
    np.testing.assert_array_equal(observation, episode.observation[200])


def test_termination_and_truncation_at_once_is_a_termination():
    env = gymnasium.wrappers.TimeLimit(Counter(end=4), 4)
    (episode,) = collect_episodes(env, RandomBehaviour(), episodes=1)
    assert (episode.steps, episode.terminated) == (4, True)


def test_so_many_steps_cut_the_last_episode_and_keep_its_final_observation():
    episodes = list(collect_episodes(Counter(end=4), RandomBehaviour(), steps=10))
    assert [(episode.steps, episode.terminated) for episode in episodes] == [(4, True), (4, True), (2, False)]
    assert episodes[2].observation["count"][:, 0].tolist() == [0, 1, 2]
    assert episodes[0].observation["inner.half"].tolist() == [0, 0, 1, 1, 2]


def test_episodes_fit_the_schema_of_their_environment(tmp_path):
    env = Counter(end=3)
    store = EpisodeStore.create(tmp_path / "store", schema_of(env, behaviour="random"))
    with store.writer() as writer:
        for episode in collect_episodes(env, RandomBehaviour(), episodes=4):
            writer.append(episode)
    assert store.transition_count == store.step_count == 12
    assert store.metadata == {
        "env_id": None,
        "bounds": "declared",
        "source": {"format": "collected", "behaviour": "random"},
        "source_attributes": {},
    }


def test_the_same_seed_gives_the_same_episodes_and_another_others():
    first, again, other = (list(collect_episodes("CartPole-v1", NoisyPoleBehaviour(), steps=300, seed=seed)) for seed in (5, 5, 6))
    assert len(first) == len(again)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.observation, two.observation)
        np.testing.assert_array_equal(one.action, two.action)
    assert not np.array_equal(first[0].observation[0], other[0].observation[0])
    assert not np.array_equal(first[0].observation[0], first[1].observation[0])


@pytest.mark.parametrize("numbers", [{}, {"steps": 1, "episodes": 1}, {"steps": 0}, {"episodes": -1}, {"steps": 1.5}, {"steps": True}])
def test_numbers_that_cannot_be_are_refused(numbers):
    with pytest.raises(InvalidInput, match="steps="):
        collect_episodes("CartPole-v1", RandomBehaviour(), **numbers)


def test_environments_that_cannot_be_are_refused_before_the_first_step():
    with pytest.raises(Unknown) as caught:
        collect_episodes("CartPoel-v1", RandomBehaviour(), steps=1)
    assert caught.value.hint == "did you mean 'CartPole-v1'?"
    env = Counter(end=3)
    env.action_space = gymnasium.spaces.Text(3)
    with pytest.raises(InvalidInput, match="actions of Text"):
        collect_episodes(env, RandomBehaviour(), steps=1)
    env.action_space = gymnasium.spaces.Box(-1, 1, (2, 2))
    with pytest.raises(InvalidInput, match="actions of Box"):
        collect_episodes(env, RandomBehaviour(), steps=1)
    env = Counter(end=3)
    env.observation_space = gymnasium.spaces.Text(3)
    with pytest.raises(InvalidInput, match="observations of Text"):
        collect_episodes(env, RandomBehaviour(), steps=1)


def test_the_random_behaviour_draws_every_choice():
    (episode,) = collect_episodes(Counter(end=60), RandomBehaviour(), episodes=1)
    assert np.bincount(episode.action, minlength=3).min() > 5


def test_the_demo_s_data_is_mediocre_for_every_seed(tmp_path):
    for seed in range(4):
        store = collect(tmp_path / str(seed), seed=seed)
        assert store.step_count == store.transition_count == 20_000
        assert 60 < store.returns.mean() < 200
        assert store.schema.action.n == 2 and store.metadata["env_id"] == "CartPole-v1"
        assert store.metadata["source"]["seed"] == seed
    assert check(tmp_path / "0") == []


def test_collecting_leaves_nothing_when_it_fails(tmp_path, monkeypatch):
    collect(tmp_path / "store", episodes=2)
    with pytest.raises(StoreExists):
        collect(tmp_path / "store", steps=10)
    assert len(EpisodeStore.open(tmp_path / "store")) == 2
    with pytest.raises(InvalidInput):
        collect(tmp_path / "none", steps=-1)

    def break_off(self, observation):
        raise KeyboardInterrupt

    monkeypatch.setattr(NoisyPoleBehaviour, "act", break_off)
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "none", steps=10)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
