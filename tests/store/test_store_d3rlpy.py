"""d3rlpy itself on the same episodes: its pickers and slicers give what our samplers give. Skipped where it is not installed."""

from __future__ import annotations

import numpy as np
import pytest
from store_cases import write

from offrl_store import Episode, Field, MDPDataset, Schema

dataset = pytest.importorskip("d3rlpy.dataset")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our store and d3rlpy's episodes; observations of pixels, three-dimensional actions, sparse rewards in every second episode."""
    rng = np.random.default_rng(0)
    lengths, episodes, theirs = (3, 9, 2, 14, 6), [], []
    for number, steps in enumerate(lengths):
        observation = rng.integers(0, 255, (steps, 1, 4, 4), np.uint8)
        action = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
        reward = rng.normal(size=steps).astype(np.float32) if number % 2 else np.zeros(steps, np.float32)
        episodes.append(Episode(observation, action, reward, bool(number % 3)))
        theirs.append(dataset.Episode(observation, action, reward[:, None], bool(number % 3)))
    store = write(tmp_path_factory.mktemp("d") / "s", Schema(Field("uint8", (1, 4, 4)), Field("float32", (3,))), episodes)
    return store, theirs


def transitions(store, theirs):
    """(episode of d3rlpy, time step, our row) of every transition, in order."""
    assert store.transition_count == sum(each.transition_count for each in theirs)
    rows = store.episodes.transitions
    return [(theirs[one.number], one.t, row) for one, row in zip(rows, rows.rows, strict=True)]


def compare(store, theirs, picker, **options):
    """J24, J12, J13."""
    found = transitions(store, theirs)
    batch = store.transitions(len(found), 0, **options).gather(np.arange(len(found)))
    for place, (episode, t, row) in enumerate(found):
        one = picker(episode, t)
        assert batch.index[place] == row
        np.testing.assert_array_equal(batch.observation[place], one.observation)
        np.testing.assert_array_equal(batch.action[place], one.action)
        np.testing.assert_allclose(batch.reward[place], one.reward[0], rtol=1e-5, atol=1e-6)
        assert batch.terminal[place] == one.terminal
        np.testing.assert_allclose(batch.discount[place], options.get("gamma", 0.99) ** one.interval, rtol=1e-6)
        if not one.terminal:
            np.testing.assert_array_equal(batch.next_observation[place], one.next_observation)
        yield place, one, batch


def test_the_basic_picker(pair):
    for place, one, batch in compare(*pair, dataset.BasicTransitionPicker(), next_action=False, returns=True, gamma=1.0):
        np.testing.assert_allclose(batch.returns[place], one.rewards_to_go.sum(), rtol=1e-4, atol=1e-5)
        assert batch.remaining[place] == len(one.rewards_to_go)


@pytest.mark.parametrize("n", [1, 2, 4, 30])
def test_the_multi_step_picker(pair, n):
    for _ in compare(*pair, dataset.MultiStepTransitionPicker(n_steps=n, gamma=0.9), n_steps=n, gamma=0.9):
        pass


@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_frame_stack_picker(pair, k):
    for _ in compare(*pair, dataset.FrameStackTransitionPicker(n_frames=k), frame_stack=k):
        pass


def test_the_sparse_reward_picker(pair):
    picker = dataset.SparseRewardTransitionPicker(failure_return=-7.0, step_reward=0.0)
    failed = 0
    for place, one, batch in compare(*pair, picker, returns=True, gamma=1.0, failure_return=-7.0, step_reward=0.0):
        np.testing.assert_allclose(batch.returns[place], one.rewards_to_go.sum(), rtol=1e-4, atol=1e-5)
        failed += one.rewards_to_go.tolist() == [[-7.0]]
    assert failed > 5


@pytest.mark.parametrize("length", [1, 4, 20])
@pytest.mark.parametrize("k", [1, 3])
def test_the_trajectory_slicers(pair, length, k):
    """J25: zeros on the left, time steps from 1, returns-to-go beyond the slice."""
    store, theirs = pair
    slicer = dataset.BasicTrajectorySlicer() if k == 1 else dataset.FrameStackTrajectorySlicer(n_frames=k)
    found = transitions(store, theirs)
    batch = store.windows(len(found), length, 0, frame_stack=k).gather(np.arange(len(found)))
    for place, (episode, t, _) in enumerate(found):
        one = slicer(episode, t, length)
        np.testing.assert_array_equal(batch.observation[place], one.observations)
        np.testing.assert_array_equal(batch.action[place], one.actions)
        np.testing.assert_array_equal(batch.mask[place], one.masks)
        np.testing.assert_array_equal(batch.timesteps[place], one.timesteps)
        np.testing.assert_allclose(batch.reward[place], one.rewards[:, 0])
        np.testing.assert_allclose(batch.returns_to_go[place], one.returns_to_go[:, 0], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(batch.terminal[place], one.terminals[:, 0])


@pytest.mark.parametrize("discrete", [False, True])
def test_the_data_set_from_flat_arrays(discrete):
    """J01, J02, J03: the same episodes, number of transitions and action size; theirs drops what follows the last end, ours says so."""
    rng = np.random.default_rng(1)
    count = 60
    observations = rng.normal(size=(count, 3)).astype(np.float32)
    actions = rng.integers(0, 4, (count, 1)) if discrete else rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    rewards, ends = rng.normal(size=(count, 1)).astype(np.float32), rng.random(count)
    terminals, timeouts = (ends < 0.1).astype(np.float32), ((ends > 0.9) & (np.arange(count) > 5)).astype(np.float32)
    terminals[-1], timeouts[-1] = 1, 0
    theirs = dataset.MDPDataset(observations, actions, rewards, terminals, timeouts)
    ours = MDPDataset(observations, actions, rewards, terminals, timeouts)
    kept = [episode for episode in ours.episodes if episode.terminated or episode.steps > 1]
    shown = [episode for episode in theirs.episodes if episode.transition_count]
    assert theirs.transition_count == ours.transition_count and len(kept) == len(shown)
    for one, other in zip(kept, shown, strict=True):
        np.testing.assert_array_equal(one.observation, other.observations)
        np.testing.assert_array_equal(one.action.reshape(other.actions.shape), other.actions)
        assert (one.ret, one.terminated) == (pytest.approx(other.compute_return(), abs=1e-5), bool(other.terminated))
    if discrete:
        assert ours.schema.action.n == theirs.dataset_info.action_size
