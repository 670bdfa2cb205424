"""Evaluation in gymnasium: the episodes and seeds asked for, the same returns every time, and one line for what does not fit."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from policy_files import linear_policy, two_field_policy

from offrl.errors import InvalidInput, Unknown
from offrl.policy import Policy
from offrl.rollout import Evaluation, evaluate, make_env

BALANCE = [[0, 0.1], [0, 0.5], [0, 3.0], [0, 1.0]]  # CartPole: push towards where the pole falls
SWING = [[0.3], [-1.0], [-0.7]]


def refused(what, kind=InvalidInput) -> InvalidInput:
    with pytest.raises(kind) as caught:
        what()
    assert "\n" not in str(caught.value) and caught.value.hint and caught.value.exit_status == 2
    return caught.value


class Strange(gymnasium.Env):
    """Two steps long; float64 actions of shape (2, 1) or numbers from 5; writes down what it is given."""

    def __init__(self, actions, observations=None, endless=False):
        self.action_space = actions
        self.observation_space = observations or gymnasium.spaces.Box(-10, 10, (3,), np.float64)
        self.endless = endless
        self.seeds, self.actions = [], []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.time = 0
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.actions.append(action)
        self.time += 1
        return self._observation(), np.float32(self.time), False, self.time == 2 and not self.endless, {}

    def _observation(self):
        if isinstance(self.observation_space, gymnasium.spaces.Dict):
            return {"left": np.full(3, 0.5), "right": np.ones(3, np.uint8), "clock": np.zeros(1)}
        return np.full(self.observation_space.shape, 0.5, self.observation_space.dtype)


def by_hand(policy: Policy, env_id: str, episodes: int, seed: int) -> list[float]:
    env, returns = gymnasium.make(env_id), []
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        returns.append(0.0)
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(policy.act(observation))
            returns[-1] += float(reward)
            ended = terminated or truncated
    return returns


@pytest.mark.parametrize(
    ("env_id", "data", "episodes"),
    [("CartPole-v1", linear_policy(BALANCE, discrete=True), 4), ("Pendulum-v1", linear_policy(SWING, low=-2, high=2), 5)],
)
def test_evaluation_is_the_plain_loop_and_gives_the_same_returns_every_time(tmp_path, env_id, data, episodes):
    (tmp_path / "policy.onnx").write_bytes(data)
    first = evaluate(Policy(data), env_id, episodes, seed=77)
    again = evaluate(tmp_path / "policy.onnx", env_id, episodes, seed=77)
    assert first.returns == again.returns == tuple(by_hand(Policy(data), env_id, episodes, 77))
    assert first.lengths == again.lengths and len(first.returns) == first.episodes == episodes
    assert first.return_mean == np.mean(first.returns) and first.return_std == np.std(first.returns)
    assert evaluate(data, env_id, 2, seed=78).returns == first.returns[1:3]
    print(f"{env_id}: {first.latency_us}")


def test_defaults_are_20_episodes_from_seed_1000():
    env = Strange(gymnasium.spaces.Box(-1, 1, (1,), np.float32))
    result = evaluate(linear_policy(SWING), env)
    assert env.seeds == list(range(1000, 1020)) and result.episodes == 20 and result.returns == (3.0,) * 20 and result.lengths == (2,) * 20


def test_json_has_exactly_the_keys_of_the_command_line():
    result = evaluate(linear_policy(BALANCE, discrete=True), "CartPole-v1", 2)
    assert isinstance(result, Evaluation)
    assert result.as_json() == {
        "env": "CartPole-v1",
        "episodes": 2,
        "return_mean": result.return_mean,
        "return_std": result.return_std,
        "returns": list(result.returns),
        "latency_us": {"median": result.latency_us["median"], "p99": result.latency_us["p99"]},
    }
    assert 0 < result.latency_us["median"] <= result.latency_us["p99"]


def test_actions_arrive_in_the_dtype_and_shape_of_the_environment():
    env = Strange(gymnasium.spaces.Box(-1, 1, (2, 1), np.float64))
    evaluate(linear_policy(np.eye(3)[:, :2]), env, 1)
    assert env.actions[0].dtype == np.float64 and env.actions[0].shape == (2, 1)
    env = Strange(gymnasium.spaces.Discrete(2, start=5))
    evaluate(linear_policy([[1, 0], [0, 0], [0, 2]], discrete=True), env, 1)
    assert env.actions[0] == 6 and env.actions[0].dtype == np.int64


def test_dict_observations_go_to_a_policy_of_several_fields():
    fields = gymnasium.spaces.Dict(
        left=gymnasium.spaces.Box(-1, 1, (3,), np.float64),
        right=gymnasium.spaces.Box(0, 9, (3,), np.uint8),
        clock=gymnasium.spaces.Box(0, 1, (1,)),
    )
    env = Strange(gymnasium.spaces.Box(-9, 9, (3,), np.float32), fields)
    evaluate(two_field_policy(), env, 1)
    np.testing.assert_array_equal(env.actions[0], np.float32([1.5, 1.5, 1.5]))


def test_an_episode_without_end_is_cut():
    env = Strange(gymnasium.spaces.Box(-1, 1, (1,), np.float32), endless=True)
    assert evaluate(linear_policy(SWING), env, 2, max_steps=10).lengths == (10, 10)


def test_on_episode_counts_and_may_end_the_evaluation():
    done = []

    def stop(episodes):
        done.append(episodes)
        if episodes == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(linear_policy(SWING), Strange(gymnasium.spaces.Box(-1, 1, (1,), np.float32)), 5, on_episode=stop)
    assert done == [1, 2, 3]


# --------------------------------------------------------------------------------------------------------- what does not fit
def test_an_unknown_environment_comes_with_the_nearest_known_one():
    error = refused(lambda: make_env("CartPoel-v1"), Unknown)
    assert "'CartPoel-v1'" in str(error) and "CartPole-v1" in error.hint
    for env_id in ("Hopper-v99", "nobody/Knows-v0", "nobody_knows:Env-v0", "", "no id at all"):
        refused(lambda env_id=env_id: make_env(env_id), Unknown)


def test_spaces_that_differ_from_the_policy_are_named():
    torque, pair = linear_policy(SWING), linear_policy(np.eye(3)[:, :2])
    assert "(4,), the policy expects (3,)" in str(refused(lambda: evaluate(torque, "CartPole-v1")))
    assert "discrete" in str(refused(lambda: evaluate(linear_policy([[1, 0]] * 3, discrete=True), "Pendulum-v1")))
    assert "continuous" in str(refused(lambda: evaluate(linear_policy([[1]] * 4), "CartPole-v1")))
    assert "2 actions, the policy 3" in str(refused(lambda: evaluate(linear_policy([[1, 0, 0]] * 4, discrete=True), "CartPole-v1")))
    assert "(1,), the policy gives (2,)" in str(refused(lambda: evaluate(pair, "Pendulum-v1")))
    assert "left, right" in str(refused(lambda: evaluate(two_field_policy(), "Pendulum-v1")))
    assert "uint8" in str(refused(lambda: evaluate(linear_policy(SWING, dtype="uint8"), "Pendulum-v1")))
    error = refused(lambda: evaluate(linear_policy(SWING, metadata={"dataset": {"env_id": "Pendulum-v1"}}), "CartPole-v1"))
    assert "--env Pendulum-v1" in error.hint


@pytest.mark.parametrize(("name", "value"), [("episodes", 0), ("episodes", 2.5), ("episodes", True), ("seed", -1), ("max_steps", 0)])
def test_numbers_out_of_range_are_named(name, value):
    assert f"{name} is {value!r}" in str(refused(lambda: evaluate(linear_policy(SWING), "Pendulum-v1", **{name: value})))


def test_an_environment_that_fails_to_be_made_is_one_line():
    gymnasium.register("OffrlBroken-v0", entry_point=lambda: 1 / 0)
    try:
        assert "ZeroDivisionError" in str(refused(lambda: make_env("OffrlBroken-v0")))
    finally:
        del gymnasium.registry["OffrlBroken-v0"]


@pytest.mark.parametrize(
    ("missing", "env_id", "command"),
    [("gymnasium", "CartPole-v1", 'pip install "offrl[gym]"'), ("mujoco", "Hopper-v5", 'pip install "gymnasium[mujoco]"')],
)
def test_a_missing_package_comes_with_the_pip_command(missing, env_id, command):
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from offrl.errors import InvalidInput\nfrom offrl.rollout import make_env\n"
        f"try: make_env({env_id!r})\nexcept InvalidInput as error: print(error, '|', error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"| {command}") and done.stdout.count("\n") == 1
