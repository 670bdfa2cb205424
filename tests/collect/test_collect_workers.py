"""Collectors over processes: exact batches, ids unique over all workers, one store, weights that arrive, failures that are reported."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from collect_envs import STRIDE, counting

from offrl.errors import EnvironmentFailed, InvalidInput, WorkerFailed
from offrl_store import EpisodeStore, check
from offrld.collect import AsyncCollector, MultiAsyncCollector, MultiSyncCollector, collect
from offrld.collect.transport import pack, unpack


class Constant:
    """A policy whose action is its weight."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = np.float32(value)

    def __call__(self, observation):
        return np.full(1, self.value, np.float32)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = np.float32(state["value"])


def follows(batch) -> None:
    one = batch.flat()
    np.testing.assert_array_equal(one.next_observation[:, 0], one.observation[:, 0] + 1)
    np.testing.assert_array_equal(one.reward, one.next_observation[:, 0] % STRIDE)


def test_workers_in_step_share_a_batch_and_a_store(tmp_path):
    with MultiSyncCollector(
        [counting(lengths=(3,)), counting(lengths=(4,))], Constant(0.5), frames_per_batch=11, total_frames=33, into=tmp_path / "store"
    ) as collector:
        batches = []
        for batch in collector:
            batches.append(batch)
            collector.update_policy_weights({"value": np.float32(len(batches) / 10)})
    assert [batch.shape for batch in batches] == [(11,)] * 3 and collector.frames == 33
    for number, batch in enumerate(batches):
        follows(batch)
        np.testing.assert_allclose(batch.action, [0.5, 0.1, 0.2][number])  # the same weights for the whole batch
    ids = np.unique(np.concatenate([batch.traj_ids for batch in batches]))
    np.testing.assert_array_equal(ids, np.arange(len(ids)))
    store = EpisodeStore.open(tmp_path / "store")
    assert store.step_count == 33 and check(store.path) == []
    assert sorted((e.steps, e.terminated) for e in store.episodes)[-3:] == [(4, True)] * 3 and len(store) == len(ids)
    for episode in store.episodes:
        np.testing.assert_array_equal(np.diff(episode.observation[:, 0]), 1)
    assert store.episode_metadata(0) == {"policy": "Constant"}


def test_workers_at_their_own_pace_give_a_batch_each():
    with MultiAsyncCollector(counting(), num_workers=2, frames_per_batch=6, total_frames=30, envs=2) as collector:
        batches = list(collector)
        assert [batch.shape for batch in batches] == [(2, 3)] * 5
    for batch in batches:
        follows(batch)
    ids = [set(np.unique(batch.traj_ids)) for batch in batches]
    assert len(set().union(*ids)) == collector.trajectories


def test_the_slowest_is_stopped_early_and_its_missing_frames_are_absent():
    makers = [counting(), counting(slow_s=0.2)]
    with MultiSyncCollector(makers, frames_per_batch=100, preemptive_threshold=0.5, cat_results="stack") as collector:
        batch = collector.rollout()
        assert batch.shape == (2, 50) and batch.mask[0].all() and 1 <= batch.mask[1].sum() < 50
        assert (batch.traj_ids[1, ~batch.mask[1]] == -1).all()
        follows(batch)
        assert collector.rollout().mask[0].all()  # and the next batch goes on


def test_a_worker_that_is_killed_is_told_and_its_episode_kept(tmp_path):
    with AsyncCollector(counting(lengths=(9,)), frames_per_batch=5, into=tmp_path / "store") as collector:
        collector.rollout()
        os.kill(collector.pool.processes[0].pid, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match="worker 0 of 1 has ended: killed by SIGKILL"):
            for _ in range(1000):
                collector.rollout()
    store = EpisodeStore.open(tmp_path / "store")
    assert store.step_count == collector.frames >= 5 and check(store.path) == []


def test_what_goes_wrong_in_a_worker_is_told_with_its_number(tmp_path):
    with (
        pytest.raises(EnvironmentFailed, match=r"worker 1: Counting failed in a step at step 3, .*the motor is off"),
        MultiSyncCollector(
            [counting(lengths=(9,)), counting(lengths=(9,), fail_at=4)], frames_per_batch=4, into=tmp_path / "store"
        ) as collector,
    ):
        collector.rollout()
        collector.rollout()
    assert EpisodeStore.open(tmp_path / "store").step_count >= 4
    with pytest.raises(InvalidInput, match="cannot be sent to a new process"):
        MultiSyncCollector(lambda: None)
    with pytest.raises(InvalidInput, match="frames_per_batch 1 for 2 workers"):
        MultiSyncCollector(counting(), num_workers=2, frames_per_batch=1)


def test_environments_side_by_side_in_processes_of_their_own(tmp_path):
    store = collect(counting(), steps=50, envs=2, vectorization="async", into=tmp_path / "store")
    assert store.step_count == 50 and check(store.path) == []
    for episode in store.episodes:
        np.testing.assert_array_equal(np.diff(episode.observation[:, 0]), 1)


def test_workers_random_first_frames_long_trajectories_and_resets_are_as_of_one():
    """The random frames are shared out among the workers; cuts, resets and pieces are of each worker's own trajectories."""
    with MultiSyncCollector(
        counting(lengths=(9,)),
        Constant(0.25),
        num_workers=2,
        frames_per_batch=12,
        init_random_frames=8,
        max_frames_per_traj=5,
        reset_at_each_iter=True,
        split_trajs=True,
    ) as collector:
        first, second = (next(iter(collector)) for _ in range(2))
    for batch in (first, second):
        assert batch.shape == (4, 5) and batch.frames == 12
        np.testing.assert_array_equal(np.sort(batch.mask.sum(1)), [1, 1, 5, 5])
        assert (batch.traj_ids[~batch.mask] == -1).all() and batch.truncated[batch.mask].sum() == 2
    assert (first.action[first.mask] == 0.25).sum() == 4 and (second.action[second.mask] == 0.25).all()
    assert set(first.traj_ids[first.mask]).isdisjoint(second.traj_ids[second.mask])  # each batch began with a reset


def test_workers_give_complete_trajectories():
    """L14."""
    with MultiAsyncCollector(counting(lengths=(7,)), num_workers=2, frames_per_batch=5, total_frames=60, trajs_per_batch=3) as collector:
        batches = list(collector)
    assert batches and all(batch.shape == (3, 7) and batch.mask.all() and batch.done[:, -1].all() for batch in batches)


@pytest.mark.parametrize("kind", [MultiSyncCollector, MultiAsyncCollector])
def test_the_state_of_workers_goes_on_with_counts_generators_and_what_was_under_way(kind, tmp_path):
    """The state goes through JSON. No batch of a worker is lost, and each worker starts new trajectories."""
    with kind(counting(lengths=(4,)), num_workers=2, frames_per_batch=6, into=tmp_path / "first") as collector:
        given = [collector.rollout(), collector.rollout()]
        state = json.loads(json.dumps(collector.state_dict()))
        given += collector._ready if kind is MultiAsyncCollector else []
    assert state["frames"] == sum(batch.frames for batch in given) == EpisodeStore.open(tmp_path / "first").step_count
    assert len(state["workers"]) == 2 and state["trajectories"] == collector.trajectories
    runs = []
    for name in ("one", "other"):
        with kind(counting(lengths=(4,)), num_workers=2, frames_per_batch=6, seed=99, into=tmp_path / name) as again:
            again.load_state_dict(state)
            assert again.frames == state["frames"]
            batches = sorted((again.rollout() for _ in range(1)), key=lambda batch: batch.traj_ids.min())
            runs.append(batches[0].action)
            assert batches[0].traj_ids.min() >= state["trajectories"]
            follows(batches[0])
        assert check(tmp_path / name) == []
    if kind is MultiSyncCollector:
        np.testing.assert_array_equal(runs[0], runs[1])
    with kind(counting(), num_workers=1, frames_per_batch=6) as other, pytest.raises(InvalidInput, match="of 2 workers, here are 1"):
        other.load_state_dict(state)


def test_messages_come_out_as_they_went_in():
    arrays = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.zeros((0, 4)), "c": np.array(True)}
    message, found = unpack(pack({"do": "x", "n": 1}, arrays))
    assert message == {"do": "x", "n": 1}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
