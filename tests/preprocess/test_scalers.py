"""Scalers: what they are fitted on, and that they commute with n-step sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offrl_store.format import FINAL_MISSING
from offrld.algos import ALGORITHMS
from offrld.engine import Learner
from offrld.preprocess.scalers import Affine


def learner_of(store, **values):
    algorithm = ALGORITHMS["td3_bc"]
    holdout = values.pop("holdout", 0.0)
    config = algorithm.configure({"batch_size": 16, "observation_scaler": "none", **values})
    return Learner.create(algorithm, config, store, dtype=torch.float64, holdout=holdout)


def starting_rows(store, episodes):
    """The observations that start a transition, and the rewards of all steps, of some episodes."""
    observations, rewards = [], []
    for number in episodes:
        episode, record = store.episodes[int(number)], store.episode_table[int(number)]
        lost = int(record["flags"]) == FINAL_MISSING
        observations.append(episode.observation[: episode.steps - lost])
        rewards.append(episode.reward)
    return np.concatenate(observations).astype(np.float64), np.concatenate(rewards).astype(np.float64)


@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_observations_are_standardised_by_the_transitions_of_the_training_episodes(continuous_store, holdout):
    learner = learner_of(continuous_store, observation_scaler="standard", holdout=holdout)
    training = sorted(set(range(len(continuous_store))) - set(learner.holdout.tolist()))
    rows, _ = starting_rows(continuous_store, training)
    scaler = learner._scalers.observation["observation"]
    np.testing.assert_allclose(scaler.shift, rows.mean(0), rtol=1e-10)
    np.testing.assert_allclose(1 / scaler.scale, rows.std(0) + 1e-3, rtol=1e-10)


def test_min_max_maps_observations_onto_minus_one_to_one(continuous_store):
    learner = learner_of(continuous_store, observation_scaler="min_max")
    rows, _ = starting_rows(continuous_store, range(len(continuous_store)))
    scaled = learner._scalers.observation["observation"](torch.from_numpy(rows))
    np.testing.assert_allclose(scaled.amin(0), -1, atol=1e-12)
    np.testing.assert_allclose(scaled.amax(0), 1, atol=1e-12)


def test_a_dimension_that_never_changes_maps_to_zero():
    scaler = Affine.between(np.array([2.0, 0.0]), np.array([2.0, 4.0]), torch.float64, torch.device("cpu"))
    assert scaler(torch.tensor([[2.0, 4.0]], dtype=torch.float64)).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("kind", ["standard", "min_max"])
def test_every_steps_reward_is_scaled_before_the_n_step_sum(continuous_store, kind):
    learner = learner_of(continuous_store, reward_scaler=kind, n_steps=3, gamma=0.9)
    _, rewards = starting_rows(continuous_store, range(len(continuous_store)))
    if kind == "standard":
        shift, scale = rewards.mean(), 1 / (rewards.std() + 1e-3)
    else:
        shift, scale = (rewards.max() + rewards.min()) / 2, 2 / (rewards.max() - rewards.min())
    feed = learner._feeds[0]
    batch = feed.batch(0)
    index = feed.source.raw(0).batch.index.numpy()
    column, table = continuous_store.column("reward"), continuous_store.episode_table
    for row, value, discount in zip(index, batch.reward, batch.discount, strict=True):
        record = table[np.searchsorted(table["first_row"], row, side="right") - 1]
        used = round(np.log(float(discount)) / np.log(0.9))
        assert 1 <= used <= min(3, record["first_row"] + record["steps"] - row)
        expected = sum(0.9**i * (float(column[row + i]) - shift) * scale for i in range(used))
        assert float(value) == pytest.approx(expected, abs=1e-5)


def test_actions_are_scaled_by_their_bounds_and_back(continuous_store):
    learner = learner_of(continuous_store)
    feed = learner._feeds[0]
    batch = feed.batch(0)
    raw = feed.source.raw(0).batch.action.double()
    torch.testing.assert_close(batch.action, raw / 2)
    torch.testing.assert_close(learner._scalers.action.reverse(batch.action), raw)


def test_the_same_scalers_are_found_again_in_a_checkpoint(continuous_store, tmp_path):
    learner = learner_of(continuous_store, observation_scaler="standard", reward_scaler="standard")
    learner.save(tmp_path / "c.safetensors")
    other = learner_of(continuous_store, observation_scaler="standard", reward_scaler="standard")
    other._scalers.observation["observation"].shift.zero_()
    other.restore(tmp_path / "c.safetensors")
    for name, value in learner._scalers.tensors().items():
        assert torch.equal(other._scalers.tensors()[name], value)
