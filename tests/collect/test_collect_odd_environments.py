"""An exception of an environment, or an answer against gymnasium's API, is reported with its place. Nothing is cast."""

from __future__ import annotations

import signal
import warnings
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from odd_envs import Closing, Killed, Odd, Resets, Unseeded, Unspaced, raises

import offrld
from offrl.errors import EnvironmentFailed, InvalidInput, OffrlError
from offrl.rollout import evaluate, make_env
from offrl_store import EpisodeStore
from offrld.collect import Collector, RandomBehaviour, collect, collect_episodes
from offrld.collect.online import evaluate as evaluate_learner

PAIR = spaces.Dict(arm=spaces.Box(-1, 1, (2,), np.float32), hand=spaces.Box(0, 255, (1,), np.uint8))
PIXELS = spaces.Box(0, 255, (2,), np.uint8)
DOUBLE = np.array([0.1, 0.2, 0.3])


class Aborted(BaseException):
    """No Exception."""


# fault, observation space, what the one line says
FAULTS = {
    "reward None": ({1: None}, None, "reward is None"),
    "reward nan": ({1: float("nan")}, None, "reward is nan"),
    "reward inf": ({1: np.float32("inf")}, None, "reward is inf"),
    "reward text": ({1: "1.0"}, None, "reward is '1.0'"),
    "reward complex": ({1: 1 + 2j}, None, r"reward is \(1\+2j\)"),
    "reward of two": ({1: np.ones(2)}, None, r"reward is an array of shape \(2,\)"),
    "reward too large": ({1: 1e300}, None, r"reward is 1e\+300"),
    "terminated None": ({2: None}, None, "terminated is None"),
    "terminated half": ({2: 0.5}, None, "terminated is 0.5"),
    "truncated text": ({3: "no"}, None, "truncated is 'no'"),
    "truncated of two": ({3: np.zeros(2, bool)}, None, r"truncated is an array of shape \(2,\)"),
    "info text": ({4: "fine"}, None, "info is 'fine'"),
    "4 values": (lambda answer: tuple(answer[:4]), None, r"step returned 4 values .*old gym"),
    "3 values": (lambda answer: tuple(answer[:3]), None, "step returned a tuple of 3 values"),
    "observation alone": (lambda answer: answer[0], None, r"step returned an array of shape \(3,\)"),
    "nothing": (lambda answer: None, None, "step returned None"),
    "raises": (RuntimeError("the motor\nis off"), None, "RuntimeError: the motor is off"),
    "no message": (ValueError(), None, "ValueError"),
    "exits": (SystemExit(3), None, "SystemExit: 3"),
    "aborts": (Aborted("stop"), None, "Aborted: stop"),
    "wrapper of old gym": (ValueError("not enough values to unpack (expected 5, got 4)"), None, "old gym"),
}
OBSERVED = {
    "None": ({0: None}, None, "observation is None"),
    "nan": ({0: np.array([0, np.nan, 0], np.float32)}, None, r"observation\[1\] is nan"),
    "inf": ({0: np.array([0, 0, np.inf], np.float32)}, None, r"observation\[2\] is inf"),
    "shape": ({0: np.zeros(4, np.float32)}, None, r"observation has shape \(4,\), its space declares \(3,\)"),
    "row": ({0: np.zeros((1, 3), np.float32)}, None, r"shape \(1, 3\)"),
    "text": ({0: np.array(["a", "b", "c"])}, None, "observation is an array"),
    "ragged": ({0: [0, [1, 2], 3]}, None, "observation is not an array"),
    "float64": ({0: DOUBLE}, None, r"observation\[0\] is .*0\.1.*float64.*float32"),
    "beyond float32": ({0: np.array([0, 1e300, 0])}, None, r"observation\[1\] is .*1e\+300"),
    "wraps": ({0: np.array([3, 300])}, PIXELS, r"observation\[1\] is .*300.*uint8"),
    "negative": ({0: np.array([-1, 3])}, PIXELS, r"observation\[0\] is .*-1.*uint8"),
    "cut": ({0: np.array([0.5, 3])}, PIXELS, r"observation\[0\] is .*0\.5.*uint8"),
    "list of wrong size": ({0: [0.0, 1.0]}, None, r"shape \(2,\)"),
    "missing key": ({0: {"arm": np.zeros(2, np.float32)}}, PAIR, "observation has no 'hand'"),
    "another key": ({0: {"arm": np.zeros(2, np.float32), "hand": np.zeros(1, np.uint8), "foot": 1}}, PAIR, "has 'foot'"),
    "no dict": ({0: np.zeros(3, np.float32)}, PAIR, r"observation is an array of shape \(3,\), its space is a Dict"),
    "field": ({0: {"arm": np.zeros(2, np.float32), "hand": np.array([256])}}, PAIR, r"observation 'hand'\[0\] is .*256"),
}  # fmt: skip


def one_line(caught: pytest.ExceptionInfo[OffrlError], what: str) -> None:
    assert "\n" not in str(caught.value)
    assert "Odd" in caught.value.message
    caught.match(what)


@pytest.mark.parametrize("name", [*FAULTS, *OBSERVED])
def test_collecting_ends_with_one_line_and_keeps_what_was_whole(tmp_path, name):
    fault, space, what = {**FAULTS, **OBSERVED}[name]
    with pytest.raises(EnvironmentFailed) as caught:
        collect(partial(Odd, fault, space), steps=20, into=tmp_path / "one")
    one_line(caught, what)
    assert "at step 2, step 2 of its episode" in caught.value.message
    assert EpisodeStore.open(tmp_path / "one").episode_table["steps"].tolist() == [2]
    with pytest.raises(EnvironmentFailed) as caught:
        Collector(Odd(fault, space), frames_per_batch=10).rollout()
    one_line(caught, what)
    with pytest.raises(EnvironmentFailed) as caught, Collector(partial(Odd, fault, space), envs=2, into=tmp_path / "two") as collector:
        collector.run(20)
    one_line(caught, what)
    assert EpisodeStore.open(tmp_path / "two").episode_table["steps"].tolist() == [2, 2]
    with pytest.raises(EnvironmentFailed) as caught:
        list(collect_episodes(Odd(fault, space), RandomBehaviour(), steps=20))
    one_line(caught, what)


@pytest.mark.parametrize("name", FAULTS)
def test_an_evaluation_ends_with_one_line_that_says_how_to_see_it_again(name, cloned):
    fault, _, what = FAULTS[name]
    path, learner = cloned
    for run in (lambda: evaluate(path, Odd(fault), 4), lambda: evaluate_learner(learner, Odd(fault), 4)):
        with pytest.raises(EnvironmentFailed) as caught:
            run()
        one_line(caught, what)
        assert "at step 2 of episode 1" in caught.value.message
        assert "seed=1000" in caught.value.hint or "old gym" in caught.value.hint


@pytest.mark.parametrize("name", ["None", "nan", "shape", "text", "ragged", "beyond float32"])
def test_an_observation_that_a_policy_cannot_take_is_the_environments(name, cloned):
    fault, space, _ = OBSERVED[name]
    with pytest.raises(EnvironmentFailed, match="Odd") as caught:
        evaluate(cloned[0], Odd(fault, space), 1)
    assert "episode 1" in caught.value.message and "\n" not in str(caught.value)


def test_training_goes_on_where_its_evaluations_fail(cloned):
    learner = offrld.build("dqn", Odd(), config={"batch_size": 8, "encoder.units": [8]}, device="cpu", threads=1, runner="eager")
    with pytest.warns(UserWarning, match="the evaluation failed: Odd failed in a step at step 2 of episode 1: RuntimeError: off") as warned:
        epochs = learner.fit_online(Odd(), steps=50, steps_per_epoch=10, eval_env=Odd(RuntimeError("off")), eval_episodes=1)
    assert len(epochs) == 5 and not any("return_mean" in metrics for _, metrics in epochs)
    assert len([each for each in warned if "evaluation failed" in str(each.message)]) == 3
    with pytest.raises(InvalidInput, match="Odd: observation 'observation' is of shape"):
        learner.fit_online(Odd(), steps=10, steps_per_epoch=10, eval_env=Odd(space=PIXELS), eval_episodes=1)


def test_what_stays_the_same_number_is_taken(tmp_path):
    for number, answer in enumerate(
        (
            {1: np.array([2.0])},
            {1: np.float64(2)},
            {1: np.array(2)},
            {1: 2},
            {1: [2.0]},
            {1: 2.0, 2: np.False_, 3: np.array([0])},
            {1: 2.0, 4: None},
            {1: 2.0, 0: [0.1, 0.2, 0.3]},
            {1: 2.0, 0: np.array([1, 0, 1])},
            {1: 2.0, 0: np.array([0.5, 0.25, 1.0])},
        )
    ):
        store = collect(Odd(answer), steps=5, into=tmp_path / str(number))
        assert store.episodes[0].reward.tolist() == [1, 1, 2, 2, 2]
        if 0 in answer:
            np.testing.assert_array_equal(store.episodes[0].observation[3], np.float32(answer[0]))
        with Collector(partial(Odd, answer), envs=2, frames_per_batch=10) as collector:
            assert collector.rollout().reward[0].tolist() == [1, 1, 2, 2, 2]


def test_resets_of_other_apis_are_named(tmp_path, cloned):
    for answer, what in (
        (np.zeros(3, np.float32), "old gym"),
        (np.zeros(2, np.float32), "old gym"),
        ((np.zeros(3, np.float32), 1), "old gym"),
        (None, "reset returned None"),
        (RuntimeError("no camera"), "RuntimeError: no camera"),
        ((None, {}), "observation is None"),
    ):
        with pytest.raises(EnvironmentFailed, match=what):
            collect(Resets(answer), steps=5, into=tmp_path / "store")
        with pytest.raises(EnvironmentFailed):
            evaluate(cloned[0], Resets(answer), 1)
    with pytest.raises(EnvironmentFailed, match=r"argument 'seed'.*old gym"):
        collect(Unseeded(), steps=5, into=tmp_path / "store")


def test_an_environment_without_spaces_or_that_cannot_be_made_is_bad_input(tmp_path, cloned):
    class Old(Unspaced):
        observation_space = type("Box", (), {"__module__": "gym.spaces.box"})()

    for env, what in (
        (Unspaced(), "Unspaced has no observation_space"),
        (Old(), "gym.spaces.box.Box.*old gym"),
        (raises, "SystemExit: no licence"),
        (lambda: 3, "gives 3, not an environment"),
        (3, "3 is not an environment"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ):
        with pytest.raises(InvalidInput, match=what) as caught:
            Collector(env)
        assert caught.value.hint
    with pytest.raises(InvalidInput, match="no observation_space"):
        evaluate(cloned[0], Unspaced(), 1)
    with pytest.raises(InvalidInput, match="SystemExit: no licence"):
        Collector(raises, envs=2)
    gymnasium.register("test/Exits-v0", entry_point=raises)
    with pytest.raises(InvalidInput, match=r"'test/Exits-v0' cannot be made: SystemExit: no licence"):
        make_env("test/Exits-v0")


def test_a_process_of_a_vector_environment_that_dies_is_named(tmp_path):
    with pytest.raises(EnvironmentFailed, match=r"Killed.*EOFError|ConnectionReset") as caught:
        collect(Killed, steps=20, into=tmp_path / "store", envs=2, vectorization="async")
    assert "a process of the environment has ended" in caught.value.message
    assert EpisodeStore.open(tmp_path / "store").episode_table["steps"].tolist() == [3, 3]
    with pytest.raises(EnvironmentFailed, match="RuntimeError: off"):
        collect(partial(Odd, RuntimeError("off")), steps=20, into=tmp_path / "raised", envs=2, vectorization="async")


def test_ctrl_c_is_not_the_environments(tmp_path, request):
    # A shell that starts the tests in the background has SIGINT ignored, and then nobody can have pressed Ctrl-C.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler)))
    with pytest.raises(KeyboardInterrupt):
        collect(Odd(KeyboardInterrupt()), steps=20, into=tmp_path / "store")
    assert EpisodeStore.open(tmp_path / "store").episode_table["steps"].tolist() == [2]


def test_an_environment_that_fails_in_close_spoils_nothing(tmp_path):
    with pytest.warns(UserWarning, match="Closing failed in close: RuntimeError: the window is gone"):
        assert collect(Closing, steps=10, into=tmp_path / "store").step_count == 10


def test_actions_that_the_space_does_not_hold_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidInput, match=r"the action 0\.7 does not fit int64"):
            Collector(Odd(), lambda observation: 0.7, frames_per_batch=5).rollout()
        with pytest.raises(InvalidInput, match=r"the action at step 0 is 0\.7"):
            list(collect_episodes(Odd(), _Always(0.7), steps=5))


class _Always:
    name = "always"

    def __init__(self, action: Any) -> None:
        self.action = action

    def begin_episode(self, action_space: Any, rng: Any) -> None:
        pass

    def act(self, observation: Any) -> Any:
        return self.action


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """A policy file for `Odd`, and its learner."""
    folder = tmp_path_factory.mktemp("cloned")
    store = collect(Odd(), steps=40, into=folder / "store")
    learner = offrld.train("discrete_bc", store, steps=1, config={"batch_size": 8}, device="cpu", threads=1, runner="eager")
    learner.export(folder / "policy.onnx")
    return folder / "policy.onnx", learner
