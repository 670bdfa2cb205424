"""Datasets that declare no or only some bounds of their actions: the range of the data replaces missing ones."""

from __future__ import annotations

import numpy as np
import pytest

import offrld
from offrl_store import Episode, Field, MDPDataset, Schema, create_temporary, from_episodes

CONFIG = {"batch_size": 8}


def arrays():
    rng = np.random.default_rng(0)
    ends = np.arange(60) % 10 == 9
    return rng.normal(size=(60, 3)).astype("f4"), rng.uniform(-0.3, 2, (60, 2)).astype("f4"), np.ones(60, "f4"), ends


def make(kind):
    flat = MDPDataset(*arrays())
    if kind == "MDPDataset":
        return flat
    if kind == "from_episodes":
        return from_episodes(None, flat.episodes)
    store = create_temporary(Schema(Field("float32", (3,)), Field("float32", (2,))))  # as a recorder has it
    with store.writer() as writer:
        for episode in flat.episodes:
            writer.append(episode)
    return store


@pytest.mark.parametrize("kind", ["MDPDataset", "from_episodes", "recorded"])
def test_continuous_algorithms_accept_data_without_bounds(kind):
    lines = []
    learner = offrld.train("td3_bc", make(kind), steps=2, config=CONFIG, threads=1, log=lines.append)
    actions = arrays()[1]
    np.testing.assert_array_equal(learner.space["low"], actions.min(0).astype(float))
    np.testing.assert_array_equal(learner.space["high"], actions.max(0).astype(float))
    assert learner.space["source"] == "inferred"
    assert sum("using the range of the data" in line for line in lines) == 1


def test_finite_bounds_beside_infinite_ones_are_kept_and_survive_the_schema_s_json():
    field = Field("float32", (2,), low=[-np.inf, -1], high=[np.inf, 3])
    assert Field.from_json(field.to_json()) == field and field.to_json()["low"] == [None, -1.0]
    store = create_temporary(Schema(Field("float32", (3,)), field))
    with store.writer() as writer:
        writer.append(Episode(np.zeros((5, 3), "f4"), np.array([[-7, 0], [1, 1], [2, 2], [9, 0]], "f4"), np.ones(4, "f4")))
    learner = offrld.train("bc", store, steps=1, config={"batch_size": 2}, threads=1)
    assert (learner.space["low"], learner.space["high"]) == ([-7, -1], [9, 3])
