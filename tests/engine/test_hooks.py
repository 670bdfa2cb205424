"""The hooks of an algorithm: a small algorithm uses each of them, through the same learner as the registry's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from offrld.algos import bc
from offrld.engine import Learner, Stage, Step
from offrld.nets import DeterministicPolicy, Encoder, PositiveScalar, remember


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


@dataclass(frozen=True)
class TwoNetworks:
    policy: DeterministicPolicy
    factor: PositiveScalar
    absent: PositiveScalar | None = None


def test_networks_are_a_dataclass_or_a_dict(continuous_store):
    def policy(space):
        return DeterministicPolicy("policy", space.view, space.action_size, Encoder(units=(4,)))

    typed = replace(bc.ALGORITHM, networks=lambda config, space: TwoNetworks(policy(space), PositiveScalar("factor", 2.0)))
    named = replace(bc.ALGORITHM, networks=lambda config, space: {"policy": policy(space), "factor": PositiveScalar("factor", 2.0)})
    learners = [_learner(algorithm, continuous_store) for algorithm in (typed, named)]
    for learner in learners:
        learner.run(2)
        assert learner.nets.policy.name == "policy"
    one, other = (learner.state.tensors() for learner in learners)
    assert list(one) == list(other)
    assert "params/factor.log" in one
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("keyword", ["carry", "memory"])
def test_values_that_a_loss_remembers_are_available_in_the_next_update(continuous_store, keyword):
    seen = []

    def loss(params, config, nets, state, batch):
        seen.append(getattr(state, keyword)["updates"].item())
        remember(params, updates=state.carry["updates"] + 1)
        return bc.loss(params, config, nets, state, batch)

    algorithm = replace(
        bc.ALGORITHM,
        schedule=lambda config: (Step("policy", loss, optimizes=("policy",), learning_rate=1e-3),),
        **{keyword: lambda config, space: {"updates": ()}},
    )
    _learner(algorithm, continuous_store).run(3)
    assert seen == [0.0, 1.0, 2.0]
