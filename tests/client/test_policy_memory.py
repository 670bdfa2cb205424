"""Policies of stacked frames: the last ones of this episode, zeros before its begin, as in training."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from policy_files import frames_policy, linear_policy

from offrl.errors import InvalidInput
from offrl.policy import Policy
from offrl.rollout import evaluate


def test_act_keeps_the_last_frames_the_newest_last_and_reset_forgets_them():
    policy = Policy(frames_policy(3, 2))
    assert policy.frame_stack == 3
    assert policy.observation_shape == (2,)
    frames = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
    seen = [policy.act(frame) for frame in frames]
    np.testing.assert_array_equal(seen[0], [0, 0, 0, 0, 1, 2])
    np.testing.assert_array_equal(seen[1], [0, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(seen[3], [3, 4, 5, 6, 7, 8])
    policy.reset()
    np.testing.assert_array_equal(policy.act(frames[3]), [0, 0, 0, 0, 7, 8])


def test_a_number_is_a_frame_too():
    policy = Policy(frames_policy(2, 1, field=()))
    assert policy.observation_shape == ()
    policy.act(5.0)
    np.testing.assert_array_equal(policy.act(6.0), [5, 6])


def test_predict_takes_stacks_and_touches_no_memory():
    policy = Policy(frames_policy(2, 2))
    policy.act([1.0, 2.0])
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(policy.predict(rows), rows)
    np.testing.assert_array_equal(policy.act([3.0, 4.0]), [1, 2, 3, 4])
    with pytest.raises(InvalidInput, match=r"expects \(batch, 4\)"):
        policy.predict(rows[:, :2])
    with pytest.raises(InvalidInput, match=r"expects \(2,\)"):
        policy.act(rows[0])


def test_metadata_that_does_not_fit_the_inputs_is_refused():
    for data in (frames_policy(2, 3, field=(2,)), linear_policy([[1.0], [1.0]], metadata={"space": {"frame_stack": 2}})):
        with pytest.raises(InvalidInput, match="2 stacked frames"):
            Policy(data)


def test_a_policy_without_memory_takes_rewards_and_refuses_a_target_return():
    policy = Policy(linear_policy([[0.1], [0.2]]))
    assert policy.target_return is None
    np.testing.assert_array_equal(policy.act([1.0, 1.0], reward=5.0), policy.act([1.0, 1.0]))
    policy.reset()
    with pytest.raises(InvalidInput, match="takes no target return") as caught:
        policy.reset(target_return=3.0)
    assert caught.value.hint
    with pytest.raises(InvalidInput, match="takes no target return"):
        evaluate(Policy(linear_policy([[0.1], [0.2], [0.3]])), "Pendulum-v1", episodes=1, target_return=1.0)


class Steps(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)

    def __init__(self):
        self.actions = []

    def reset(self, *, seed=None, options=None):
        self.time = 1
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.actions.append(action.tolist())
        self.time += 1
        return np.full(1, self.time, np.float32), 0.0, self.time == 4, False, {}


def test_a_rollout_starts_each_episode_with_empty_frames():
    env = Steps()
    evaluate(frames_policy(2, 1), env, episodes=2)
    assert env.actions == [[0, 1], [1, 2], [2, 3]] * 2
