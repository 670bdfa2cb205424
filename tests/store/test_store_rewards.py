"""Samplers with rewards or next actions that replace the stored ones: batches are as if the store held them."""

from __future__ import annotations

import numpy as np
import pytest

from offrl_store import Episode, EpisodeStore, Field, Schema
from offrl_store.errors import InvalidInput

SCHEMA = Schema(Field("float32", (2,)), Field("float32", (1,), low=-1, high=1))


def fill(path, change):
    store, noise = EpisodeStore.create(path, SCHEMA), np.random.default_rng(0)
    with store.writer() as writer:
        for steps in (1, 7, 30, 4):
            observation, action = noise.random((steps + 1, 2), np.float32), noise.random((steps, 1), np.float32)
            writer.append(Episode(observation, action, change(noise.standard_normal(steps).astype(np.float32)), terminated=steps > 4))
    return EpisodeStore.open(path)


@pytest.mark.parametrize("kernels", ["", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_replacement_rewards_are_used_instead_of_the_stored_ones(tmp_path, monkeypatch, kernels, dtype):
    monkeypatch.setenv("OFFRL_STORE_KERNELS", kernels)
    plain = fill(tmp_path / "plain", lambda r: r)
    clipped = fill(tmp_path / "clipped", lambda r: np.clip(r, -0.5, 0.5))
    given = np.clip(plain.column("reward"), -0.5, 0.5).astype(dtype)
    failing = {"returns": True, "failure_return": -7.0, "step_reward": 0.5}
    for options in ({"n_steps": 3, "gamma": 0.9, "returns": True}, failing):
        ours = plain.transitions(64, seed=1, reward=given, **options).sample()
        due = clipped.transitions(64, seed=1, **options).sample()
        np.testing.assert_array_equal(ours.reward, due.reward)
        np.testing.assert_array_equal(ours.returns, due.returns)
    ours, due = plain.windows(16, 5, seed=2, reward=given).sample(), clipped.windows(16, 5, seed=2).sample()
    np.testing.assert_array_equal(ours.reward, due.reward)
    np.testing.assert_array_equal(ours.returns_to_go, due.returns_to_go)


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), [0.0] * 46, np.zeros(46, np.int64)])
def test_rewards_that_do_not_fit_the_store_are_refused(tmp_path, wrong):
    store = fill(tmp_path / "store", lambda r: r)
    assert len(store.column("reward")) == 46
    with pytest.raises(InvalidInput, match="each of the 46 rows"):
        store.transitions(4, seed=0, reward=wrong)


@pytest.mark.parametrize("kernels", ["", "numpy"])
def test_next_actions_of_a_policy_are_read_at_the_row_of_the_next_observation(tmp_path, monkeypatch, kernels):
    monkeypatch.setenv("OFFRL_STORE_KERNELS", kernels)
    store = fill(tmp_path / "store", lambda r: r)
    given = -np.arange(46, dtype=np.float32)[:, None]
    sampler = store.transitions(256, seed=0, n_steps=2, gamma=0.5, next_action=given)
    assert sampler.transition_count == store.transition_count == 42  # the last of a truncated episode too
    batch = sampler.sample()
    steps = np.log2(1 / batch.discount).astype(int)
    np.testing.assert_array_equal(batch.next_action[:, 0], -(batch.index + steps))
    for wrong in (given[:-1], given.astype(np.float64)):
        with pytest.raises(InvalidInput, match="next_action is float"):
            store.transitions(4, seed=0, next_action=wrong)
