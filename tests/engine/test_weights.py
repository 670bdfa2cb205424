"""Importance weights of a batch: every loss of every algorithm weights each transition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cheap_settings import FROM_DATA, cheap_learner

from offrl.errors import InvalidInput
from offrld.algos import ALGORITHMS

BATCHES = [name for name, algorithm in FROM_DATA.items() if algorithm.batch_kind == "transitions"]
UPDATES = 3


@pytest.fixture
def learner_of(continuous_store, discrete_store):
    def made(name):
        algorithm = ALGORITHMS[name]
        store = discrete_store if algorithm.actions == "discrete" else continuous_store
        return cheap_learner(algorithm, store, linear="torch"), store

    return made


def batch_of(learner, store, weight=None):
    arguments = {name: True for name in ("next_action", "returns") if getattr(learner.algorithm, name) is True}
    if learner.algorithm.next_action == "policy":
        arguments["next_action"] = True
    n_steps, gamma = getattr(learner.config, "n_steps", 1), getattr(learner.config, "gamma", 1.0)
    sampler = store.transitions(batch_size=learner.config.batch_size, seed=3, n_steps=n_steps, gamma=gamma, **arguments)
    batch = sampler.sample()
    return dataclasses.replace(batch, weight=None if weight is None else np.asarray(weight, np.float32)[: len(batch.reward)])


def trained(learner_of, name, weight=None, change=lambda batch: batch):
    learner, store = learner_of(name)
    for _ in range(UPDATES):
        learner.update(change(batch_of(learner, store, weight)))
    return {name: value.clone() for name, value in learner.state.tensors().items() if not name.startswith("memory/")}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", BATCHES)
def test_weights_of_one_equal_no_weights(name, learner_of):
    assert same(trained(learner_of, name), trained(learner_of, name, np.ones(512)))


@pytest.mark.parametrize("name", [name for name in BATCHES if "random_policy" not in name])
def test_transitions_of_weight_zero_have_no_effect_and_others_have(name, learner_of):
    weight = np.linspace(0.5, 2.0, 512)
    weight[0] = 0.0

    def first_row_changed(batch):
        action = batch.action.copy()
        action[0] = (action[0] + 1) % 3 if action.dtype.kind in "iu" else -action[0]
        reward = batch.reward.copy()
        reward[0] += 5
        return dataclasses.replace(batch, action=action, reward=reward)

    weighted = trained(learner_of, name, weight)
    assert same(weighted, trained(learner_of, name, weight, first_row_changed))
    assert not same(weighted, trained(learner_of, name))
    assert not same(weighted, trained(learner_of, name, np.where(weight == 0, 1, weight), first_row_changed))


def test_the_weighted_loss_of_behaviour_cloning_by_hand(learner_of):
    learner, store = learner_of("bc")
    weight = np.random.default_rng(0).uniform(0.1, 2.0, 512)
    batch = batch_of(learner, store, weight)
    error = np.square((learner.predict(batch.observation) - batch.action) / 2.0)  # bounds -2 to 2
    expected = (error * weight[: len(error), None]).mean()
    assert learner.update(batch)["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_the_weighted_errors_of_the_q_functions_by_hand(learner_of):
    learner, store = learner_of("dqn")
    batch = batch_of(learner, store)
    weight = np.random.default_rng(0).uniform(0.1, 2.0, len(batch.reward)).astype(np.float32)
    plain = []
    for row in range(len(batch.reward)):
        other, _ = learner_of("dqn")
        only = np.zeros(len(weight), np.float32)
        only[row] = 1
        plain.append(other.update(dataclasses.replace(batch, weight=only))["loss"][0])
    weighted = learner.update(dataclasses.replace(batch, weight=weight))["loss"][0]
    assert weighted == pytest.approx(float(np.dot(weight, plain)), rel=1e-4)


def test_the_batch_of_a_prioritized_sampler_counts_by_its_weights(learner_of):
    learner, store = learner_of("dqn")
    other, _ = learner_of("dqn")
    sampler = store.prioritized(batch_size=learner.config.batch_size, seed=0)
    batch = sampler.sample()
    sampler.update(batch.index, np.linspace(0.1, 5, len(batch.index)))
    batch = dataclasses.replace(sampler.sample())
    assert batch.weight.min() < 1
    assert learner.update(batch)["loss"][0] < other.update(dataclasses.replace(batch, weight=None))["loss"][0]


@pytest.mark.parametrize("weight", [np.ones(3), np.full(512, np.nan), np.full(512, -1.0)])
def test_invalid_weights_are_refused(weight, learner_of):
    learner, store = learner_of("bc")
    batch = batch_of(learner, store)
    weight = weight if len(weight) == 3 else weight[: len(batch.reward)]
    with pytest.raises(InvalidInput, match="weight of the batch"):
        learner.update(dataclasses.replace(batch, weight=weight.astype(np.float32)))
