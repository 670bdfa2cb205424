"""Batches of exactly the requested size, whose episodes span them, in one environment and several; and the steps in the store."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from collect_envs import STRIDE, Counting, Fresh, Pictures
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from offrl.errors import EnvironmentFailed, InvalidInput, Unknown
from offrl_store import EpisodeStore, check
from offrld.collect import Collector, ConstantEpsilonGreedy, RandomBehaviour, collect, schema_of, split_trajectories


def lengths(store: EpisodeStore) -> list[tuple[int, bool]]:
    return [(episode.steps, episode.terminated) for episode in store.episodes]


def check_rows(batch, flags: bool = True) -> None:
    """Every frame follows from the one before it by the environment's own rule."""
    one = batch.flat()
    np.testing.assert_array_equal(one.next_observation[:, 0], one.observation[:, 0] + 1)
    np.testing.assert_array_equal(one.reward, one.next_observation[:, 0] % STRIDE)
    np.testing.assert_array_equal(one.next_observation[:, 1], one.action[:, 0])
    np.testing.assert_array_equal(one.done, one.terminated | one.truncated)
    assert not (one.terminated & one.truncated).any()


def test_batches_have_the_asked_size_and_episodes_span_them():
    collector = Collector(Counting(), frames_per_batch=5, total_frames=20)
    batches = list(collector)
    assert [batch.shape for batch in batches] == [(5,)] * 4 and collector.frames == 20
    ids = np.concatenate([batch.traj_ids for batch in batches])
    np.testing.assert_array_equal(ids, np.repeat([0, 1, 2, 3, 4, 5], [3, 4, 5, 3, 4, 1]))  # lengths 3, 4, 5 again and again
    for batch in batches:
        check_rows(batch)
        assert batch.mask.all()
    ends = np.concatenate([batch.done for batch in batches])
    np.testing.assert_array_equal(np.flatnonzero(ends), [2, 6, 11, 14, 18])
    np.testing.assert_array_equal(np.flatnonzero(np.concatenate([batch.terminated for batch in batches])), [6, 18])


def test_the_total_is_rounded_up_to_whole_batches_and_said():
    with pytest.warns(UserWarning, match="total_frames 7 is rounded up"):
        collector = Collector(Counting(), frames_per_batch=5, total_frames=7)
    assert [batch.frames for batch in collector] == [5, 5]


def test_without_an_end_it_goes_on_for_ever():
    batches = iter(Collector(Counting(), frames_per_batch=2))
    assert sum(next(batches).frames for _ in range(50)) == 100


def test_split_trajectories_are_padded_and_masked():
    batch = Collector(Counting(), frames_per_batch=10).rollout()
    pieces = split_trajectories(batch)
    assert pieces.shape == (3, 4)
    np.testing.assert_array_equal(pieces.mask.sum(1), [3, 4, 3])
    np.testing.assert_array_equal(pieces.traj_ids, [[0, 0, 0, -1], [1, 1, 1, 1], [2, 2, 2, -1]])
    np.testing.assert_array_equal(pieces.reward, [[1, 2, 3, 0], [1, 2, 3, 4], [1, 2, 3, 0]])
    assert Collector(Counting(), frames_per_batch=10, split_trajs=True).__iter__().__next__().shape == (3, 4)


def test_complete_trajectories_of_several_batches_come_whole():
    batches = list(Collector(Counting(), frames_per_batch=5, total_frames=20, trajs_per_batch=2))
    assert [batch.shape for batch in batches] == [(2, 4), (2, 5)]
    np.testing.assert_array_equal(batches[1].mask.sum(1), [5, 3])
    assert all(batch.done[row, count - 1] for batch in batches for row, count in enumerate(batch.mask.sum(1)))


def test_a_longest_trajectory_is_cut_and_reset():
    batch = Collector(Counting(lengths=(9,)), frames_per_batch=8, max_frames_per_traj=4).rollout()
    np.testing.assert_array_equal(batch.truncated, [0, 0, 0, 1] * 2)
    np.testing.assert_array_equal(batch.observation[:, 0], [0, 1, 2, 3, 1000, 1001, 1002, 1003])


def test_a_termination_at_the_longest_step_stays_one():
    batch = Collector(Counting(lengths=(4,)), frames_per_batch=4, max_frames_per_traj=4).rollout()
    assert batch.terminated[3] and not batch.truncated[3]


def test_a_reset_before_each_batch():
    collector = Collector(Counting(lengths=(9,)), frames_per_batch=4, reset_at_each_iter=True)
    assert [collector.rollout().observation[0, 0] for _ in range(2)] == [0, 1000]


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_vector_environments_of_each_autoreset_mode_give_the_same_episodes(mode, tmp_path):
    envs = SyncVectorEnv([lambda: Fresh((3, 4)), lambda: Fresh((2, 5))], autoreset_mode=mode)
    store = EpisodeStore.create(tmp_path / "store", schema_of(Counting()))
    with Collector(envs, frames_per_batch=40, into=store) as collector:
        batch = collector.rollout()
    check_rows(batch)
    assert batch.shape == (2, 20) and batch.frames == collector.frames
    assert batch.frames == (40 if mode is not AutoresetMode.NEXT_STEP else 32)  # 4 ends of each are followed by a reset
    whole = [e for e in store.episodes if e.steps > 1]
    assert {(e.steps, e.terminated) for e in whole} >= {(3, False), (4, True), (2, True), (5, False)}
    assert store.step_count == batch.frames
    for episode in whole:
        np.testing.assert_array_equal(np.diff(episode.observation[:, 0]), 1)  # no phantom step, and the final observation is there
    assert len(np.unique(batch.flat().traj_ids)) == len(store) and check(store.path) == []


def test_cuts_work_in_vector_environments_of_each_mode():
    for mode in AutoresetMode:
        envs = SyncVectorEnv([lambda: Fresh((3, 9))] * 2, autoreset_mode=mode)
        batch = Collector(envs, frames_per_batch=40, max_frames_per_traj=5).rollout()
        check_rows(batch)
        longest = [np.count_nonzero(batch.traj_ids == number) for number in np.unique(batch.traj_ids[batch.mask])]
        assert max(longest) == 5 and 3 in longest, mode


def test_environments_side_by_side_are_seeded_each_and_a_size_that_does_not_fit_is_refused():
    collector = Collector(Counting, envs=3, frames_per_batch=6, seed=7)
    collector.rollout()
    assert [env.seeds[0] for env in collector.envs.vector.envs] == [7, 8, 9]
    assert collector.set_seed(20) == 23
    with pytest.raises(InvalidInput, match="100 is not a multiple of the 3 environments"):
        Collector(Counting, envs=3, frames_per_batch=100)


def test_the_same_seed_gives_the_same_steps_and_another_does_not():
    first, again, other = (Collector("CartPole-v1", frames_per_batch=100, seed=seed).rollout() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.observation, again.observation)
    assert not np.array_equal(first.observation, other.observation)


def test_steps_go_into_a_store_with_what_was_mixed(tmp_path):
    store = collect("CartPole-v1", lambda observation: 1, steps=500, into=tmp_path / "store", explorer=ConstantEpsilonGreedy(0.25), seed=3)
    assert store.step_count == 500 and store.schema.metadata["env_id"] == "CartPole-v1"
    told = [store.episode_metadata(number) for number in range(len(store))]
    assert all(t["policy"] == "<lambda>" and t["epsilon"] == 0.25 for t in told)
    share = np.average([t["random_share"] for t in told], weights=store.episode_table["steps"])
    assert share == pytest.approx(0.25, abs=0.08)
    pushed_left = np.mean([(e.action == 0).mean() for e in store.episodes])
    assert 0.03 < pushed_left < 0.3
    assert check(store.path) == []


def test_so_many_steps_of_several_environments_are_exact(tmp_path):
    store = collect(Counting, steps=23, envs=4, into=tmp_path / "store")
    assert store.step_count == 23 and check(store.path) == []
    for episode in store.episodes:
        np.testing.assert_array_equal(np.diff(episode.observation[:, 0]), 1)


def test_an_environment_that_raises_leaves_its_episode_as_truncated(tmp_path):
    with pytest.raises(EnvironmentFailed, match="Counting failed in a step at step 5, step 2 of its episode: RuntimeError: the motor"):
        collect(Counting(lengths=(3, 9), fail_at=6), steps=100, into=tmp_path / "store")
    assert lengths(EpisodeStore.open(tmp_path / "store")) == [(3, False), (2, False)]


def test_one_of_several_that_raises_leaves_all_episodes(tmp_path):
    with pytest.raises(EnvironmentFailed):
        collect(lambda: Counting(lengths=(9,), fail_at=6), envs=2, steps=100, into=tmp_path / "store")
    assert lengths(EpisodeStore.open(tmp_path / "store")) == [(5, False), (5, False)]


def test_an_environment_that_hangs_is_told_and_its_episode_kept(tmp_path):
    with pytest.raises(EnvironmentFailed, match=r"Counting, at step 4.*a step of the environment has not come back for 0\.2 s"):
        collect(Counting(lengths=(9,), fail_at=5, hang_s=60.0), steps=100, into=tmp_path / "store", step_timeout_s=0.2)
    assert lengths(EpisodeStore.open(tmp_path / "store")) == [(4, False)]


def test_a_dataset_of_another_environment_is_refused(tmp_path):
    collect("CartPole-v1", steps=20, into=tmp_path / "store")
    with pytest.raises(InvalidInput, match="the dataset is of CartPole-v1, the steps are of Pendulum-v1"):
        collect("Pendulum-v1", steps=20, into=tmp_path / "store")
    with pytest.raises(InvalidInput, match="Counting has observation of float32"):
        collect(Counting(), steps=20, into=tmp_path / "store")
    assert collect("CartPole-v1", steps=20, into=tmp_path / "store").step_count == 40
    with pytest.raises(Unknown) as caught:
        collect("CartPoel-v1", steps=20, into=tmp_path / "other")
    assert caught.value.hint == "did you mean 'CartPole-v1'?" and not (tmp_path / "other").exists()


def test_an_environment_whose_package_is_missing_names_the_command(tmp_path):
    try:
        gymnasium.make("LunarLander-v3").close()
        pytest.skip("Box2D is installed here")
    except gymnasium.error.DependencyNotInstalled:
        pass
    with pytest.raises(InvalidInput, match="LunarLander-v3") as caught:
        collect("LunarLander-v3", steps=10, into=tmp_path / "store")
    assert "pip install" in caught.value.hint


def test_a_bounded_store_keeps_the_newest(tmp_path):
    store = collect(Counting(), steps=100, into=tmp_path / "store", limit=12)
    assert store.step_count <= 12 and store.first > 0


def test_random_first_frames_are_counted_over_batches():
    seen = []

    def policy(observation):
        seen.append(1)
        return np.ones(1, np.float32)

    collector = Collector(Counting(), policy, frames_per_batch=5, init_random_frames=8)
    first, second = collector.rollout(), collector.rollout()
    assert (first.action != 1).all() and len(seen) == 2
    assert (second.action[3:] == 1).all() and (second.action[:3] != 1).all()


def test_dict_observations_are_fields_by_their_names(tmp_path):
    class Nested(Counting):
        observation_space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Dict({"b": Counting.observation_space})})

        def reset(self, **options):
            return {"a": {"b": super().reset(**options)[0]}}, {}

        def step(self, action):
            row, *rest = super().step(action)
            return {"a": {"b": row}}, *rest

    for envs in (1, 2):
        store = EpisodeStore.create(tmp_path / f"store{envs}", schema_of(Nested()))
        with Collector(Nested, envs=envs, frames_per_batch=20, into=store) as collector:
            batch = collector.rollout()
        assert list(batch.observation) == ["a.b"] and batch.observation["a.b"].shape == (*batch.shape, 2)
        np.testing.assert_array_equal(batch.flat().next_observation["a.b"][:, 0], batch.flat().observation["a.b"][:, 0] + 1)
        assert store.step_count == 20


def test_frames_are_stored_once_and_stacked_when_sampled(tmp_path):
    store = collect(Pictures, steps=60, envs=2, into=tmp_path / "store")
    batch = store.transitions(8, seed=0, frame_stack=3).sample()
    assert batch.observation.shape == (8, 3, 4, 4) and store.episodes[0].observation.shape == (7, 1, 4, 4)
    newest = batch.observation[:, -1, 0, 0].astype(int)
    np.testing.assert_array_equal(batch.observation[:, 0, 0, 0], np.maximum(newest - 2, 0))


def test_the_state_of_a_collector_goes_on_with_counts_and_generator():
    collector = Collector("Pendulum-v1", frames_per_batch=30, explorer=ConstantEpsilonGreedy(0.5))
    collector.rollout()
    state = collector.state_dict()
    runs = []
    for _ in range(2):
        again = Collector("Pendulum-v1", frames_per_batch=30, explorer=ConstantEpsilonGreedy(0.5), seed=99)
        again.load_state_dict(state)
        assert (again.frames, again.behaviour.step) == (30, 30)
        runs.append(again.rollout())
    np.testing.assert_array_equal(runs[0].observation, runs[1].observation)
    assert runs[0].traj_ids[0] == 1


def test_a_batch_becomes_tensors():
    batch = Collector(Counting(), frames_per_batch=4).rollout()
    tensors = batch.to_torch()
    assert tensors["observation"].shape == (4, 2) and tensors["mask"].all() and "float32[4, 2]" in repr(batch)


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Discrete(3),
        gymnasium.spaces.MultiDiscrete([2, 5]),
        gymnasium.spaces.MultiBinary(4),
        gymnasium.spaces.Box(-2, 3, (2,), np.float32),
    ],
)
def test_random_actions_of_every_space_are_stored_and_spread(space, tmp_path):
    class Of(Counting):
        action_space = space

    store = collect(Of, steps=300, envs=2, into=tmp_path / "store")
    actions = np.concatenate([episode.action for episode in store.episodes]).reshape(300, -1)
    assert all(space.contains(action if space.shape else action[0]) for action in actions.astype(space.dtype))
    assert len(np.unique(actions, axis=0)) > 2 and check(store.path) == []


def test_normal_actions_are_clipped_to_the_bounds_and_need_none():
    class Bounded(Counting):
        action_space = gymnasium.spaces.Box(np.float32([0, -1]), np.float32([4, np.inf]))

    with pytest.raises(InvalidInput, match="there are no uniform actions"):
        Collector(Bounded(), frames_per_batch=1).rollout()
    actions = Collector(Bounded(), RandomBehaviour("normal"), frames_per_batch=2000).rollout().action
    assert actions[:, 0].min() == 0 and actions[:, 0].max() == 4 and actions[:, 0].mean() == pytest.approx(2, abs=0.2)
    assert actions[:, 1].min() == -1 and actions[:, 1].max() > 2
