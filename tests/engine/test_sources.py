"""The forms of a dataset that in-process training accepts, and bounds of actions that are not declared."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

import offrld
from offrl import Policy
from offrl.errors import CheckFailed, InvalidInput
from offrl_store import Episode, EpisodeStore, Field, MDPDataset, Schema, from_episodes
from offrld.algos import get
from offrld.sklearn import Estimator

CONFIG = {"batch_size": 8}
RANDOM = np.random.default_rng(0)
OBSERVED, ACTED = RANDOM.normal(size=(40, 3)).astype("float32"), RANDOM.uniform(-3, 5, (40, 2)).astype("float32")
ENDS = np.arange(40) % 10 == 9


def test_steps_are_a_whole_number():
    for steps in ("1k", -1, 1.5, float("nan"), True, None):
        with pytest.raises(InvalidInput, match="expected a whole number from 0"):
            offrld.train("bc", arrays(), steps=steps, config=CONFIG)
    assert offrld.train("bc", arrays(), steps=2.0, config=CONFIG).step == 2
    assert {"train", "build", "load", "datasets", "collect"} <= set(dir(offrld))


def episodes(kind=np.asarray):
    """Four episodes of ten steps without their last observations."""
    return [Episode(kind(OBSERVED[i : i + 10]), kind(ACTED[i : i + 10]), kind(np.ones(10, np.float32)), True) for i in range(0, 40, 10)]


def arrays(kind=np.asarray):
    return {"observations": kind(OBSERVED), "actions": kind(ACTED), "rewards": kind(np.ones(40, np.float32)), "terminals": kind(ENDS)}


SOURCES = {
    "a list of episodes": lambda path: episodes(),
    "a generator": lambda path: (episode for episode in episodes()),
    "a tuple of episodes of tensors": lambda path: tuple(episodes(torch.tensor)),
    "a dict of arrays": lambda path: arrays(),
    "a dict of tensors": lambda path: arrays(torch.tensor),
    "an MDPDataset": lambda path: MDPDataset(OBSERVED, ACTED, np.ones(40, np.float32), ENDS),
    "a store of from_episodes": lambda path: from_episodes(None, episodes()),
    "a part of a store": lambda path: from_episodes(None, episodes()).episodes[:],
    "a path": lambda path: from_episodes(path / "store", episodes()).path,
    "a file of arrays": lambda path: np.savez(path / "data.npz", **arrays()) or path / "data.npz",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_form_of_a_dataset_trains_the_same_policy_within_the_actions_range(kind, tmp_path):
    expected = offrld.train("td3_bc", from_episodes(None, episodes()), steps=3, config=CONFIG, threads=1)
    learner = offrld.train("td3_bc", SOURCES[kind](tmp_path), steps=3, config=CONFIG, threads=1)
    np.testing.assert_array_equal(learner.space_.low, ACTED.min(axis=0))
    np.testing.assert_array_equal(learner.space_.high, ACTED.max(axis=0))
    assert learner.space_.source == "inferred"
    assert np.array_equal(learner.predict(OBSERVED), expected.predict(OBSERVED))


@pytest.mark.parametrize("source", [5, [1, 2], [], np.zeros(3), b"x", torch.zeros(3), [Episode(OBSERVED, ACTED, np.ones(40)), None]])
def test_an_invalid_dataset_is_refused_in_one_line(source):
    with pytest.raises(InvalidInput) as refused:
        offrld.train("bc", source, steps=1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["a list of episodes", "a dict of tensors", "a store of from_episodes"])
def test_an_estimator_accepts_them_too(kind, tmp_path):
    assert Estimator("bc", steps=2, batch_size=8).fit(SOURCES[kind](tmp_path)).predict(OBSERVED).shape == (40, 2)


def test_fit_trains_on_episodes_that_are_not_in_the_store():
    store = from_episodes(None, episodes())
    learner, other = (offrld.build("td3_bc", store, config=CONFIG, action_low=-3, action_high=5) for _ in range(2))
    learner.fit(3, episodes=episodes()[:2])
    other.fit(3, episodes=[0, 1])
    assert np.array_equal(learner.predict(OBSERVED), other.predict(OBSERVED))
    with pytest.raises(InvalidInput, match="preprocesses its dataset"):
        offrld.build("prdc", store, config=CONFIG).fit(3, episodes=episodes())


# --- Bounds ---
def test_declared_bounds_take_precedence_and_are_kept(tmp_path):
    store = from_episodes(None, episodes())
    learner = offrld.train("td3_bc", store, steps=2, config=CONFIG, action_low=-9, action_high=[7, 8], threads=1)
    assert (learner.space_.low.tolist(), learner.space_.high.tolist(), learner.space_.source) == ([-9, -9], [7, 8], "declared")
    policy = Policy(learner.export(tmp_path / "policy.onnx"))
    assert (policy.action_low.tolist(), policy.action_high.tolist()) == ([-9, -9], [7, 8])
    learner.save(tmp_path / "run.safetensors")
    again = offrld.load(tmp_path / "run.safetensors", store)
    assert (again.space_.source, again.space_.high.tolist()) == ("declared", [7, 8])
    half = offrld.build("td3_bc", store, config=CONFIG, action_high=9)
    assert (half.space_.low.tolist(), half.space_.high.tolist(), half.space_.source) == (ACTED.min(axis=0).tolist(), [9, 9], "inferred")


def test_a_box_that_is_open_at_one_end_keeps_the_other(tmp_path):
    store = EpisodeStore.create(tmp_path / "store", Schema(Field("float32", (3,)), Field("float32", (2,), low=[-4, -np.inf], high=np.inf)))
    with store.writer() as writer:
        for episode in episodes():
            writer.append(episode)
    space = offrld.build("td3_bc", EpisodeStore.open(tmp_path / "store"), config=CONFIG).space_
    assert space.low.tolist() == [-4, ACTED[:, 1].min()]
    assert space.high.tolist() == ACTED.max(axis=0).tolist()


@pytest.mark.parametrize(("low", "high"), [("x", 1), ([1, 2, 3], 9), (float("nan"), 1), (5, -5)])
def test_invalid_bounds_are_refused(low, high):
    with pytest.raises(InvalidInput, match="low"):
        offrld.build("td3_bc", from_episodes(None, episodes()), config=CONFIG, action_low=low, action_high=high)


@pytest.mark.parametrize("name", ["td3_bc", "sac", "iql", "bc", "decision_transformer", "random_policy"])
def test_the_action_scaler_is_a_setting_of_algorithms_with_continuous_actions(name):
    algorithm = get(name)
    store = from_episodes(None, episodes())
    config = {"batch_size": 8, "action_scaler.type": "min_max", "action_scaler.minimum": [-10.0], "action_scaler.maximum": [30.0]}
    learner = offrld.build(algorithm, store, config=config, action_low=-10, action_high=30)
    assert learner.scalers.action.shift.tolist() == [10.0, 10.0]
    assert offrld.build(algorithm, store, config={"batch_size": 8, "action_scaler": "none"}).scalers.action is None


# --- Known before the first update ---
def test_a_policy_that_cannot_be_exported_is_refused_before_the_first_update():
    algorithm = get("bc")

    def act(params, config, nets, seen):
        action = algorithm.act(params, config, nets, seen)
        return action + torch.rand_like(action)  # another number each time: no graph equals that

    broken = dataclasses.replace(algorithm, act=act)
    seen = []
    with pytest.raises(CheckFailed, match="differs from the network"):
        offrld.train(
            broken,
            from_episodes(None, episodes()),
            steps=3,
            config=CONFIG,
            check_export=True,
            metrics_every=1,
            on_metrics=lambda step, means: seen.append(step),
        )
    assert seen == []


def test_a_table_in_memory_trains():
    table = pa.table({"obs_0": OBSERVED[:, 0], "action": ACTED[:, 0], "reward": np.ones(40), "terminal": ENDS})
    assert offrld.train("bc", table, steps=1, config={"batch_size": 4}, threads=1).step == 1
