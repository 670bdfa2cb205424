"""The hooks of an algorithm: each is used by a small algorithm made for it, through the same learner as the registry's."""

from __future__ import annotations

from dataclasses import replace

import torch

from offrld.algos import bc
from offrld.engine import Learner, Stage, Step


def _learner(algorithm, store):
    return Learner.create(algorithm, algorithm.configure({"batch_size": 8}), store)


def test_prepare_gives_losses_what_it_computed_from_the_dataset(continuous_store):
    seen = []

    def loss(params, config, nets, state, batch):
        seen.append(state.data["scale"])
        return bc.loss(params, config, nets, state, batch)[0] * state.data["scale"], {}

    algorithm = replace(
        bc.ALGORITHM,
        prepare=lambda dataset, config: {"scale": torch.tensor(float(len(dataset.store)))},
        schedule=lambda config: (Step("policy", loss, optimizes=("policy",), learning_rate=1e-3),),
    )
    _learner(algorithm, continuous_store).run(1)
    assert seen == [torch.tensor(float(len(continuous_store)))]


def test_stages_follow_each_other_and_each_has_its_own_steps(continuous_store):
    done = []

    def part(name):
        def loss(params, config, nets, state, batch):
            done.append(name)
            return bc.loss(params, config, nets, state, batch)

        return Step("policy", loss, optimizes=("policy",), learning_rate=1e-3)

    algorithm = replace(bc.ALGORITHM, stages=lambda config: (Stage("one", (part("one"),), updates=2), Stage("two", (part("two"),))))
    _learner(algorithm, continuous_store).run(5)
    assert done == ["one", "one", "two", "two", "two"]


def test_between_is_called_before_every_update_with_its_number(continuous_store):
    called = []
    algorithm = replace(bc.ALGORITHM, between=lambda learner, k: called.append((learner.step, k)))
    _learner(algorithm, continuous_store).run(3)
    assert called == [(0, 0), (1, 1), (2, 2)]
