"""Memory addresses never affect the bits of a run: batches and the operands of products start on a boundary."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cheap_settings import cheap_learner

from offrld.algos import ALGORITHMS
from offrld.engine.updates.graph import tensors_of
from offrld.nets import onednn
from offrld.nets.aligned import BOUNDARY

NAMES = ("td3_bc", "iql", "cql", "bcq", "dqn", "decision_transformer")
ODD = {"batch_size": 3, "frame_stack": 3}  # no part of a batch fills whole lines; nine inputs are summed otherwise off a boundary
LINEARS = ["torch", pytest.param("onednn", marks=pytest.mark.skipif(not onednn.present(), reason="this torch has no product of oneDNN"))]


def ends(learner):
    return {name: value.clone() for name, value in learner.state.tensors().items()}


def off(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    """A copy that begins ``offset`` elements beyond a boundary."""
    room = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)
    copy = room[offset:].view(tensor.shape).copy_(tensor)
    assert copy.data_ptr() % BOUNDARY == offset * tensor.element_size() % BOUNDARY
    return copy


def shifted(batch, offset: int):
    """An engine's batch, every tensor of numbers ``offset`` elements beyond a boundary."""

    def one(value):
        if isinstance(value, dict):
            return {name: one(part) for name, part in value.items()}
        return off(value, offset) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return dataclasses.replace(batch, **{field.name: one(getattr(batch, field.name)) for field in dataclasses.fields(batch)})


@pytest.mark.parametrize("feed", ["host", "prefetch", "resident"])
@pytest.mark.parametrize("values", [{}, {"frame_stack": 1}, {"observation_scaler": "standard"}], ids=str)
@pytest.mark.parametrize("stacked", [False, True])
def test_every_batch_starts_on_a_boundary_with_every_feed(feed, values, stacked, continuous_store):
    learner = cheap_learner(ALGORITHMS["td3_bc"], continuous_store, {**ODD, **values}, seeds=[0, 3], feed=feed, stacked=stacked)
    for k in range(3):
        for batch in learner.trainer.batches(k):
            begins = {tensor.data_ptr() % BOUNDARY for tensor in tensors_of(batch) if tensor.is_floating_point()}
            assert begins == {0}


@pytest.mark.parametrize("linear", LINEARS)
@pytest.mark.parametrize("name", NAMES)
def test_updates_have_the_same_bits_at_any_address_of_their_batches(name, linear, store_for):
    algorithm = ALGORITHMS[name]
    right, *others = (cheap_learner(algorithm, store_for(algorithm), ODD, linear=linear) for _ in range(3))
    for k in range(3):
        (batch,) = right.trainer.batches(k)
        right.update(shifted(batch, 0))
        for learner, offset in zip(others, (1, 5), strict=True):
            learner.update(shifted(batch, offset))
    for learner in others:
        for key, value in ends(right).items():
            assert torch.equal(ends(learner)[key], value), key


@pytest.mark.parametrize("linear", LINEARS)
def test_a_batch_of_numpy_arrays_gives_the_same_bits_at_any_address(linear, continuous_store):
    one, other = (cheap_learner(ALGORITHMS["td3_bc"], continuous_store, ODD, linear=linear) for _ in range(2))
    sampler = continuous_store.transitions(batch_size=3, seed=0, frame_stack=3)
    for _ in range(3):
        batch = sampler.sample()
        one.update(batch)
        fields = {name: getattr(batch, name) for name in ("observation", "action", "next_observation")}
        room = {name: np.zeros(value.size + 1, value.dtype)[1:].reshape(value.shape) for name, value in fields.items()}
        for name, value in fields.items():
            room[name][:] = value
        other.update(dataclasses.replace(batch, **room))
    for key, value in ends(one).items():
        assert torch.equal(ends(other)[key], value), key


@pytest.mark.parametrize("linear", LINEARS)
def test_a_seed_among_others_gives_the_same_bits_as_alone(linear, continuous_store):
    """Its parameters lie behind those of the others, off every boundary where their sizes are odd."""
    values = {"batch_size": 1, "actor_encoder.units": [5, 7], "critic_encoder.units": [5, 7]}
    together = cheap_learner(ALGORITHMS["td3_bc"], continuous_store, values, seeds=[4, 9], linear=linear)
    alone = cheap_learner(ALGORITHMS["td3_bc"], continuous_store, values, seeds=[9], linear=linear)
    together.run(6)
    alone.run(6)
    assert any(value[1].data_ptr() % BOUNDARY for value in together.state.params.values())
    for name, value in alone.state.params.items():
        assert torch.equal(together.state.params[name][1], value[0]), name
