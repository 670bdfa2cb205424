"""How well a policy matches held-out actions, against sums written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offrl.errors import InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.algos import get
from offrld.engine import Learner
from offrld.evaluate import offline


def episodes(discrete: bool) -> list[Episode]:
    rng = np.random.default_rng(0)
    result = []
    for steps, final, terminated in ((30, True, False), (7, False, True), (12, False, False), (offline.BATCH + 5, True, True)):
        action = rng.integers(0, 3, steps) if discrete else rng.uniform(-2, 2, (steps, 2)).astype(np.float32)
        observation = rng.normal(size=(steps + final, 4)).astype(np.float32)
        result.append(Episode(observation=observation, action=action, reward=np.zeros(steps, np.float32), terminated=terminated))
    return result


@pytest.fixture(params=[False, True], ids=["continuous", "discrete"])
def store(request, tmp_path) -> EpisodeStore:
    action = Field("int64", (), low=0, high=2) if request.param else Field("float32", (2,), low=-2, high=2)
    path = tmp_path / "store"
    with EpisodeStore.create(path, Schema(observation=Field("float32", (4,)), action=action)).writer() as writer:
        for episode in episodes(request.param):
            writer.append(episode)
    return EpisodeStore.open(path)


def guess(discrete: bool):
    return (lambda o: (o[:, 0] > 0).astype(np.int64)) if discrete else (lambda o: o[:, :2] * 3)


def test_metrics_are_means_over_the_transitions_of_the_chosen_episodes(store):
    discrete = store.schema.action.discrete
    values = []
    for episode, transitions in [(episodes(discrete)[n], t) for n, t in ((0, 30), (1, 7), (2, 11), (3, offline.BATCH + 5))]:
        predicted = guess(discrete)(episode.observation[:transitions])
        recorded = np.asarray(episode.action)[:transitions]
        values.append(predicted == recorded if discrete else ((predicted.astype(np.float64) - recorded) ** 2).sum(axis=1))
    metric = offline.action_match if discrete else offline.action_error
    for chosen in ([0, 1, 2, 3], [2], [1, 3]):
        assert metric(guess(discrete), store, np.array(chosen)) == pytest.approx(
            np.concatenate([values[n] for n in chosen]).mean(), rel=1e-12
        )


@pytest.mark.parametrize("frames", [1, 2])
def test_each_seed_of_a_learner_is_measured(store, frames):
    discrete = store.schema.action.discrete
    algorithm = get("discrete_bc" if discrete else "td3_bc")
    learner = Learner.create(algorithm, algorithm.configure({"frame_stack": frames}), store, seeds=[0, 5], holdout=0.5)
    ((name, by_seed),) = offline.evaluate_offline(learner).items()
    assert name == ("action_match" if discrete else "action_error") and set(by_seed) == {0, 5}
    for seed, value in by_seed.items():
        module, near = learner.policy(seed), []
        for number in learner.holdout:
            episode = store.episodes[int(number)]
            steps = episode.steps - (episode.final_missing and not episode.terminated)
            seen = np.concatenate([np.zeros_like(episode.observation[: frames - 1]), episode.observation])
            seen = np.concatenate([seen[k : k + steps] for k in range(frames)], axis=1)
            predicted = module(torch.from_numpy(seen)).numpy()
            near.append(predicted == episode.action[:steps] if discrete else np.square(predicted - episode.action[:steps]).sum(1))
        assert value == pytest.approx(np.concatenate(near).mean(), rel=1e-4)
    assert by_seed[0] != by_seed[5]
    learner.holdout = np.array([], int)
    assert offline.evaluate_offline(learner) == {}


def test_actions_of_another_shape_are_refused(store):
    metric = offline.action_match if store.schema.action.discrete else offline.action_error
    with pytest.raises(InvalidInput, match="shape"):
        metric(lambda observation: np.zeros((len(observation), 5)), store, np.array([0]))
    with pytest.raises(InvalidInput, match="no transition"):
        metric(lambda observation: observation, store, np.array([], int))
