"""The prioritized sampler draws in proportion to priorities, weights accordingly, and can be stopped and resumed."""

from __future__ import annotations

import copy
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import KERNELS, MEMORY, Oracle, drawn, stores, using, write
from store_numbered import SIMPLE, numbered_episode

from offrl_store import EpisodeStore
from offrl_store.errors import EmptyStore, InvalidInput
from offrl_store.kernels import kernels
from offrl_store.prioritized import STREAM


def numbered_store(folder: Path, count: int) -> EpisodeStore:
    return write(folder / "s", SIMPLE, [numbered_episode(i) for i in range(count)])


def shares(leaves: np.ndarray, seed: int, step: int, count: int) -> list[int]:
    """The numbers of a batch by plain sums: draw i lies in the i-th of ``count`` equal parts of the total."""
    ends, total = np.cumsum(leaves), float(leaves.sum())
    return [
        int(np.searchsorted(ends, (i + place / 2**53) * total / count, side="right"))
        for i, place in enumerate(drawn(seed, step, STREAM, 1 << 53, count))
    ]


@pytest.mark.parametrize("kernel", KERNELS)
@given(case=stores(), data=st.data())
@settings(max_examples=50, deadline=None)
def test_batches_follow_the_priorities_for_any_store_and_any_updates(kernel, case, data):
    schema, episodes = case
    alpha, beta = data.draw(st.sampled_from([0.0, 0.6, 1.0])), data.draw(st.sampled_from([0.0, 0.4, 1.0]))
    seed, size, n_steps = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.sampled_from([1, 5, 140])), data.draw(st.integers(1, 3))
    oracle = Oracle(episodes, n_steps, 0.9, 1, "zero", False, None)
    noise = np.random.default_rng(seed)
    with using(kernel), tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = write(Path(folder) / "s", schema, episodes)
        if not oracle.transitions:
            with pytest.raises(EmptyStore):
                store.prioritized(size)
            return
        sampler = store.prioritized(size, alpha, beta, seed, n_steps, 0.9)
        leaves = np.full(len(oracle.transitions), (1 + 1e-6) ** alpha)
        rows = np.array([row for *_, row in oracle.transitions])
        for step in range(4):
            batch = sampler.sample()
            numbers = np.searchsorted(rows, batch.index)
            assert np.array_equal(rows[numbers], batch.index)
            due = shares(leaves, seed, step, size)
            assert np.mean(numbers == due) >= 1 - 1 / size  # sums in another order may move a draw at a border
            np.testing.assert_allclose(batch.weight, (leaves[numbers].min() / leaves[numbers]) ** beta, rtol=1e-5)
            for i in (0, size - 1):
                one = oracle.one(*oracle.transitions[numbers[i]])
                np.testing.assert_allclose(batch.reward[i], one["reward"], rtol=1e-6, atol=1e-6)
                assert batch.terminal[i] == one["terminal"]
            if step == 2:  # others than the last batch
                some = noise.integers(0, len(rows), 7)
                sampler.update(rows[some], values := noise.random(7))
                numbers = some
            else:
                sampler.update(batch.index, values := noise.random(size).astype(np.float32) * 3)
            for number, value in zip(numbers, values, strict=True):
                leaves[number] = (float(value) + 1e-6) ** alpha
            np.testing.assert_allclose(sampler.priorities, leaves, rtol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 513, 5000])
def test_the_tree_sums_up_whatever_was_set(kernel, count):
    with using(kernel):
        module, noise = kernels(), np.random.default_rng(count)
        lengths = module.tree_levels(count)
        nodes = np.zeros(sum(lengths))
        nodes[:count] = 1
        tree = module.SumTree(nodes, count)
        tree.build()
        assert tree.total() == count
        for _ in range(5):
            numbers, values = noise.integers(0, count, 300), noise.random(300)
            assert tree.update(numbers, values, 1.0, 0.0) == values.max()
            at = 0
            for length, above in itertools.pairwise(lengths):
                sums = nodes[at : at + length].reshape(-1, 8).sum(axis=1)
                np.testing.assert_allclose(nodes[at + length : at + length + above][: len(sums)], sums, rtol=1e-12)
                at += length
            drawn_numbers, weights = np.zeros(400, np.int64), np.zeros(400, np.float32)
            tree.sample(1, 2, 3, 0.5, drawn_numbers, weights)
            assert (nodes[drawn_numbers] > 0).all()
            assert drawn_numbers.min() >= 0
            assert drawn_numbers.max() < count
            assert weights.max() == 1


def test_both_kernels_give_the_same_batches(tmp_path):
    store, found = numbered_store(tmp_path, 20), []
    for kernel in KERNELS:
        with using(kernel):
            sampler, noise = store.prioritized(64, alpha=1.0, seed=3), np.random.default_rng(0)
            for _ in range(20):
                batch = sampler.sample()
                sampler.update(batch.index, noise.random(64))
            found.append((batch.index.copy(), batch.weight.copy()))
    assert np.array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)


def test_transitions_are_drawn_in_proportion_to_their_priority(tmp_path):
    store = numbered_store(tmp_path, 4)
    sampler = store.prioritized(500, alpha=1.0)
    total = sampler.transition_count
    priorities = np.random.default_rng(0).random(total) + 0.01
    sampler.update(np.arange(total), priorities, numbers=True)
    counts = np.zeros(total)
    rows = store.transitions(total, 0).gather(np.arange(total)).index
    for _ in range(200):
        counts += np.bincount(np.searchsorted(rows, sampler.sample().index), minlength=total)
    due = 100_000 * priorities / priorities.sum()
    assert (np.abs(counts - due) < 6 * np.sqrt(due)).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_new_episodes_get_the_highest_priority_so_far(tmp_path, kernel):
    with using(kernel):
        store = numbered_store(tmp_path, 5)
        sampler = store.prioritized(32, alpha=1.0, extra=["row"])
        fixed = store.prioritized(32, episodes=[3, 1, 3])
        batch, before = sampler.sample(), sampler.transition_count
        sampler.update(batch.index, np.full(32, 4.0))
        sampler.update(batch.index, np.full(32, 0.5))
        old = sampler.priorities.copy()
        with store.writer() as writer:
            for i in range(5, 9):
                writer.append(numbered_episode(i))
        assert sampler.refresh() == store.transition_count - before
        assert sampler.refresh() == fixed.refresh() == 0
        assert np.array_equal(sampler.priorities[:before], old)
        np.testing.assert_allclose(sampler.priorities[before:], 4.0, rtol=1e-5)
        after = sampler.sample()
        assert after.observation is batch.observation
        assert sampler.step == 2
        assert np.array_equal(after.observation, store.column("observation")[after.index])
        assert fixed.transition_count == store.transitions(1, 0, episodes=[1, 3]).transition_count


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_saved_state_continues_as_if_never_stopped(tmp_path, kernel):
    with using(kernel):
        store, noise = numbered_store(tmp_path, 12), np.random.default_rng(1)
        one = store.prioritized(32, seed=5)
        for _ in range(6):
            one.update(one.sample().index, noise.random(32))
        one.beta = 0.7
        state = copy.deepcopy(one.state_dict())
        other = EpisodeStore.open(store.path).prioritized(32)
        other.load_state(state)
        for _ in range(4):
            left, right = one.sample(), other.sample()
            assert np.array_equal(left.index, right.index)
            assert np.array_equal(left.weight, right.weight)
            values = noise.random(32)
            one.update(left.index, values)
            other.update(right.index, values)
        assert other.max_priority == one.max_priority
        with store.writer() as writer:
            writer.append(numbered_episode(12))
        grown = store.prioritized(32)
        grown.load_state(state)
        assert np.array_equal(grown.priorities[: len(state["priorities"])], state["priorities"])
        assert grown.priorities[-1] == (1.0 + 1e-6) ** 0.6


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("more", [0, 3, 10, 300])
def test_a_saved_state_of_a_bounded_store_keeps_the_priorities_of_the_episodes_that_are_left(tmp_path, kernel, more):
    def fill(store, numbers):
        with store.writer() as writer:
            for number in numbers:
                writer.append(numbered_episode(number))

    with using(kernel):
        store = EpisodeStore.create(tmp_path / "s", SIMPLE, limit_transitions=400)
        fill(store, range(60))
        sampler = store.prioritized(64, alpha=1.0, extra=["row"])
        values = np.random.default_rng(0).random(sampler.transition_count)
        sampler.update(np.arange(len(values)), values, numbers=True)
        state, rows = sampler.state_dict(), store.transitions(len(values), 0).gather(np.arange(len(values))).index.copy()
        known = {int(row): leaf for row, leaf in zip(rows, state["priorities"], strict=True)}
        fixed = store.prioritized(64, alpha=1.0, episodes=np.arange(len(store)))
        fill(store, range(60, 60 + more))
        grown = EpisodeStore.open(store.path).prioritized(64, alpha=1.0)
        grown.load_state(state)
        rows = EpisodeStore.open(store.path).transitions(grown.transition_count, 0).gather(np.arange(grown.transition_count)).index
        highest = sampler.max_priority + 1e-6
        assert grown.priorities.tolist() == [known.get(int(row), highest) for row in rows]
        left = sum(int(row) in known for row in rows)
        assert (left == len(known)) == (more == 0) and (left == 0) == (more == 300)
        sampler.refresh()  # the sampler that went on comes to the same
        assert np.array_equal(sampler.priorities, grown.priorities)
        if more:
            assert store.first > 0
            with pytest.raises(InvalidInput, match="first_row"):
                EpisodeStore.open(store.path).prioritized(64, alpha=1.0, episodes=np.arange(5)).load_state(fixed.state_dict())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"alpha": 0.5}, "alpha 0.5"),
        ({"priorities": np.ones(10_000)}, "10000 transitions"),
        ({"priorities": np.ones(3)}, "3 transitions"),
        ({"priorities": -1}, "positive"),
        ({"step": -1}, "step -1"),
        ({"first_row": 7}, "first_row 7"),
        ({"end_row": 1}, "transitions"),
    ],
)
def test_a_state_of_another_sampler_is_refused(tmp_path, change, message):
    sampler = numbered_store(tmp_path, 3).prioritized(4)
    before = sampler.state_dict()
    with pytest.raises(InvalidInput, match=message):
        if isinstance(change.get("priorities"), int):
            change = {"priorities": before["priorities"] * change["priorities"]}
        sampler.load_state({**before, **change})
    with pytest.raises(InvalidInput, match="has no 'alpha'"):
        sampler.load_state({name: value for name, value in before.items() if name != "alpha"})
    assert np.array_equal(sampler.state_dict()["priorities"], before["priorities"])


@pytest.mark.parametrize(
    "index, priorities, message",
    [
        ([0, 1], [1.0], r"shapes \[2\] and \[1\]"),
        ([0], [float("nan")], "priority nan"),
        ([0], [-1.0], "priority -1.0"),
        ([0], [float("inf")], "priority inf"),
        ([-1], [1.0], "row -1"),
        ([10**9], [1.0], "row 1000000000"),
        ([0.5], [1.0], "whole numbers"),
    ],
)
def test_a_wrong_update_is_named_and_changes_nothing(tmp_path, index, priorities, message):
    store = numbered_store(tmp_path, 3)
    sampler = store.prioritized(4)
    sampler.sample()
    with pytest.raises(InvalidInput, match=message):
        sampler.update(index, priorities)
    last = int(store.episode_table["first_row"][0] + store.episode_table["steps"][0])  # the row of a final observation is not a transition
    with pytest.raises(InvalidInput, match=f"row {last}"):
        sampler.update([last], [1.0])
    with pytest.raises(InvalidInput, match="transition number"):
        sampler.update([sampler.transition_count], [1.0], numbers=True)
    sampler.update([], [])
    assert len(np.unique(sampler.priorities)) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"alpha": -0.1}, "alpha -0.1"),
        ({"beta": "high"}, "beta 'high'"),
        ({"eps": 0.0}, "eps 0.0"),
        ({"seed": -1}, "seed -1"),
        ({"n_steps": 0}, "n_steps 0"),
        ({"episodes": [99]}, "episode 99"),
        ({"out": {"weight": np.zeros(3, np.float32)}}, r"weight is float32\[3\]"),
        ({"out": {"weights": np.zeros(4)}}, "'weights'"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, arguments, message):
    with pytest.raises(InvalidInput, match=message):
        numbered_store(tmp_path, 3).prioritized(**{"batch_size": 4, **arguments})


def test_an_update_before_the_first_batch_applies_to_the_rows_that_it_names(tmp_path):
    store = numbered_store(tmp_path, 4)
    sampler = store.prioritized(3, alpha=1.0, episodes=[2])
    row = int(store.episode_table["first_row"][2])
    with pytest.raises(InvalidInput, match="row 0"):
        sampler.update([0, 0, 0], [5.0, 5.0, 5.0])
    sampler.update([row], [5.0])
    assert sampler.priorities[0] > sampler.priorities[1]


def test_weights_go_into_a_given_array(tmp_path):
    weight = np.zeros(4, np.float32)
    sampler = numbered_store(tmp_path, 3).prioritized(4, out={"weight": weight})
    assert sampler.sample().weight is weight
    assert (weight == 1).all()
    assert (sampler.gather(np.arange(4)).weight == 1).all()
