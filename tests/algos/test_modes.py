"""Training and evaluation mode: dropout acts only in the networks that a step optimizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from offrld.algos import ALGORITHMS
from offrld.engine import Learner
from offrld.nets import CONTEXT, Context

ENCODERS = ("actor_encoder", "critic_encoder", "value_encoder", "imitator_encoder")
SEVERAL = [
    name
    for name, algorithm in ALGORITHMS.items()
    if hasattr(algorithm.config, "actor_encoder") and algorithm.batch_kind == "transitions" and algorithm.stages is None
]


@pytest.mark.parametrize("name", SEVERAL)
def test_only_the_networks_that_a_step_optimizes_drop_features(name, store_for):
    algorithm, seen = ALGORITHMS[name], {}
    values = {f"{encoder}.dropout": 0.5 for encoder in ENCODERS if hasattr(algorithm.config, encoder)}
    config = algorithm.configure({"batch_size": 8, **values, **{f"{e.split('.')[0]}.units": [8] for e in values}})

    def watched(step):
        def loss(params, config, nets, state, batch):
            seen[step.name] = [step.loss(_with(params, key), config, nets, state, batch)[0].item() for key in (1, 2)]
            return step.loss(params, config, nets, state, batch)

        return step if step.loss is None else dataclasses.replace(step, loss=loss)

    learner = Learner.create(
        dataclasses.replace(algorithm, schedule=lambda c: tuple(watched(step) for step in algorithm.schedule(c))),
        config,
        store_for(algorithm),
        dtype=torch.float64,
        runner="eager",
    )
    learner.run(1)
    assert seen
    for step in algorithm.schedule(config):
        if step.name not in seen:
            continue
        one, other = seen[step.name]
        if any(network in ("temp", "alpha") for network in step.optimizes):
            assert one == other, f"{step.name}: a policy that is only asked drops features"
        else:
            assert one != other, f"{step.name}: nothing drops features"


@pytest.mark.parametrize("name", SEVERAL)
def test_a_policys_loss_evaluates_other_networks_without_dropout(name, store_for):
    algorithm, seen = ALGORITHMS[name], []
    values = {f"{encoder}.dropout": 0.5 for encoder in ENCODERS[1:] if hasattr(algorithm.config, encoder)}
    config = algorithm.configure({"batch_size": 8, **values})

    def watched(step):
        def loss(params, config, nets, state, batch):
            seen.append([step.loss(_with(params, key), config, nets, state, batch)[0].item() for key in (1, 2)])
            return step.loss(params, config, nets, state, batch)

        return dataclasses.replace(step, loss=loss) if "actor" in step.optimizes else step

    steps = tuple(step for step in algorithm.schedule(config) if "actor" in step.optimizes)
    alone = dataclasses.replace(algorithm, schedule=lambda c: tuple(dataclasses.replace(watched(s), start=0, every=1) for s in steps))
    Learner.create(alone, config, store_for(algorithm), dtype=torch.float64, runner="eager").run(1)
    assert seen
    assert all(one == other for one, other in seen)


def _with(params, key):
    return {**params, CONTEXT: Context(torch.tensor(key), training=True)}
