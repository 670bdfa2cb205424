"""What users of TorchRL do with a replay buffer (rows M01 to M14 of the feature list, without those about processes)."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
from store_cases import KERNELS, same_episode, using, write
from store_numbered import SIMPLE, numbered_episode

from offrl_store import Episode, EpisodeStore, Field, Schema, copy, from_episodes, mix


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(12)])


def steps_of(count, seed=0):
    """What an environment gives, step by step: action, reward, observation, terminated, truncated."""
    rng = np.random.default_rng(seed)
    for t in range(count):
        yield int(rng.integers(0, 5)), float(rng.normal()), rng.standard_normal(3, np.float32), rng.random() < 0.05, t % 40 == 39


def test_storage_needs_no_more_than_the_first_episode_and_a_size(tmp_path):
    """M01: dtypes and shapes are taken from the data; the files are memory maps of what is there, not of the limit."""
    buffer = from_episodes(tmp_path / "b", [numbered_episode(0)], limit_transitions=10**9)
    assert sum(file.stat().st_size for file in buffer.path.rglob("*") if file.is_file()) < 20_000
    column = buffer.column("observation")
    assert not column.flags.owndata and not column.flags.writeable
    assert np.array_equal(np.memmap(buffer.path / "columns" / "observation.bin", "<f4", "r").reshape(-1, 3), column)


def test_adding_returns_numbers_and_lengths_count_frames(store):
    """M03, M04: each episode added has its number; as many frames are in as were given."""
    frames, before = store.step_count, len(store)
    with store.writer() as writer:
        assert [writer.append(numbered_episode(i)) for i in range(12, 16)] == list(range(before, before + 4))
        observation = np.zeros(3, np.float32)
        writer.begin(observation)
        ended = 0
        for action, reward, observation, terminated, truncated in steps_of(210):
            writer.step(action, reward, observation, terminated, truncated, extra={"row": 0})
            if terminated or truncated:
                ended += 1
                writer.begin(observation)
        assert writer.end(truncated=True) == before + 4 + ended
    assert store.step_count == frames + sum(numbered_episode(i).steps for i in range(12, 16)) + 210
    assert store.transition_count <= store.step_count


@pytest.mark.parametrize("kernel", KERNELS)
def test_random_batches_repeat_and_passes_do_not(store, kernel):
    """M05, M06: 10 items by 4 give 4, 4, 2, or 4, 4 with drop_last, as TorchRL's samplers do."""
    with using(kernel):
        rows = store.episodes.transitions.rows[:10]
        repeated = store.transitions(100, 0, rows=rows).sample().index
        assert set(repeated) == set(rows)
        for drop_last, sizes in ((False, [4, 4, 2]), (True, [4, 4])):
            sampler = store.transitions(4, 0, rows=rows, replacement=False, drop_last=drop_last)
            passes = [[batch.index.copy() for batch in sampler] for _ in range(3)]
            for one in passes:
                assert [len(index) for index in one] == sizes
                assert len(set(np.concatenate(one))) == sum(sizes)
            assert not np.array_equal(np.concatenate(passes[0]), np.concatenate(passes[1]))


@pytest.mark.parametrize(
    "make",
    [
        lambda store, **o: store.transitions(8, 1, **o),
        lambda store, **o: store.windows(8, 4, 1, **o),
        lambda store, **o: mix([(store, 1), (store, 2)]).transitions(8, 1, **o),
    ],
)
def test_a_loop_over_random_batches_never_ends(store, make):
    """M09: for a random sampler; the batches are those of sample()."""
    due = make(store)
    for batch in itertools.islice(make(store), 50):
        assert np.array_equal(batch.index, due.sample().index)


@pytest.mark.parametrize("kind", ["transitions", "windows"])
def test_a_loop_is_one_epoch_without_replacement(store, kind):
    """M09, M06: one pass, the next loop the next epoch; from the middle to the end of it."""

    def make():
        return store.transitions(16, 2, replacement=False) if kind == "transitions" else store.windows(16, 3, 2, replacement=False)

    sampler, due = make(), make()
    for epoch in range(3):
        assert sampler.epoch == epoch
        indices = [batch.index.copy() for batch in sampler]
        assert len(indices) == sampler.batches_per_epoch
        assert all(np.array_equal(index, due.sample().index) for index in indices)
    sampler.seek(sampler.batches_per_epoch + 2)
    assert sum(1 for _ in sampler) == sampler.batches_per_epoch - 2


def test_priorities_are_updated_and_weights_come_along(store):
    """M07: what has no priority left is hardly drawn; the largest weight of a batch is 1; new items get the largest priority."""
    sampler = store.prioritized(64, alpha=1.0, beta=1.0, eps=1e-6, seed=0)
    rows = store.episodes.transitions.rows
    sampler.update(rows, np.where(rows % 2, 0.0, 3.0))
    batch = sampler.sample()
    assert (batch.index % 2 == 0).all() and batch.weight.max() == 1
    with store.writer() as writer:
        writer.append(numbered_episode(50))
    count = sampler.refresh()
    assert count > 0 and np.allclose(sampler.priorities[-count:], 3.0)


def test_transforms_are_functions_over_batches_and_over_episodes(tmp_path):
    """M10: on sampling a function mapped over the batches, into arrays of its own; its inverse before writing."""
    schema = Schema(Field("uint8", (2,)), Field("float32", (1,), low=-1, high=1))
    store = EpisodeStore.create(tmp_path / "s", schema)
    raw = Episode(np.array([[0, 51], [255, 102], [0, 0]]) / 255, np.array([[-20.0], [10.0]]), [1.0, 2.0], True)

    def on_write(episode):
        return replace(
            episode, observation=np.rint(episode.observation * 255).astype(np.uint8), action=(episode.action / 20).astype(np.float32)
        )

    scaled = np.empty((4, 2), np.float32)

    def on_sample(batch):
        np.multiply(batch.observation, np.float32(1 / 255), out=scaled)
        return replace(batch, observation=scaled, reward=batch.reward * 0.1)

    with store.writer() as writer:
        writer.append(on_write(raw))
    sampler = store.transitions(4, 0)
    for batch in itertools.islice(map(on_sample, sampler), 5):
        assert np.allclose(batch.observation, raw.observation[batch.index])
        assert np.allclose(batch.reward, np.float32([0.1, 0.2])[batch.index])


def test_storage_sampler_and_writer_combine_freely(tmp_path):
    """M11, M12: a bounded store, written step by step, read by two samplers of one snapshot; the oldest goes first."""
    buffer = EpisodeStore.create(tmp_path / "b", SIMPLE, limit_transitions=300)
    with buffer.writer() as writer:
        writer.begin(np.zeros(3, np.float32))
        for number, (action, reward, observation, terminated, truncated) in enumerate(steps_of(2000)):
            writer.step(action, reward, observation, terminated, truncated, extra={"row": number})
            if terminated or truncated:
                writer.begin(observation)
                writer.commit()
                assert buffer.step_count <= 300 or len(buffer) == 1
                kept = np.concatenate([episode.extra["row"] for episode in buffer.episodes])
                assert kept.tolist() == list(range(number - len(kept) + 1, number + 1))
                sampler, prioritized = buffer.transitions(32, 0, n_steps=3), buffer.prioritized(32)
                assert np.isin(sampler.sample().index, buffer.episodes.transitions.rows).all()
                assert np.isin(prioritized.sample().index, buffer.episodes.transitions.rows).all()
        writer.discard()
    assert buffer.first > 10


def test_slices_are_windows_and_strict_ones_have_no_padding(store):
    """M13: contiguous steps of one episode; with the rows of far enough steps only whole ones."""
    transitions = store.episodes.transitions
    ends = transitions.take(np.flatnonzero(transitions.steps >= 4))
    batch = store.windows(200, 5, 0, rows=ends, extra=["row"]).sample()
    assert (batch.mask == 1).all()
    assert (np.diff(batch.extra["row"], axis=1) == 1).all()
    assert (np.diff(batch.timesteps, axis=1) == 1).all()
    assert (store.windows(200, 5, 0).sample().mask == 0).any()


def test_the_best_episodes_are_kept_by_selection(store, tmp_path):
    """M13: what TorchRL's max-value writer is for."""
    best = copy(store, tmp_path / "best", episodes=store.select(top_fraction=0.25))
    assert sorted(best.returns) == sorted(store.returns)[-3:]


def test_a_store_is_its_own_dump(store, tmp_path):
    """M13: the folder can be copied and opened anywhere; nothing is written for it."""
    files = {file: file.stat().st_mtime_ns for file in store.path.rglob("*")}
    shutil.copytree(store.path, tmp_path / "elsewhere")
    loaded = EpisodeStore.open(tmp_path / "elsewhere")
    assert loaded.snapshot() == store.snapshot()
    assert np.array_equal(loaded.transitions(32, 7).sample().observation, store.transitions(32, 7).sample().observation)
    assert files == {file: file.stat().st_mtime_ns for file in store.path.rglob("*")}


def test_a_storage_of_several_environments_keeps_their_episodes_separate(tmp_path):
    """M13: what ndim=2 is for, [time, environment]: each environment's steps are episodes of its own."""
    store = EpisodeStore.create(tmp_path / "s", Schema(Field("float32", (1,)), Field("int64", (), 0, 2)))
    with store.writer() as writer:
        for env in range(3):
            writer.begin(np.float32([env * 100]), env=env)
        for t in range(1, 31):
            after = np.float32([[env * 100 + t] for env in range(3)])
            writer.step_batch(np.arange(3), np.full(3, float(t)), after, np.zeros(3, bool), np.full(3, t == 30))
    assert sorted(episode.observation[:, 0].tolist() for episode in store.episodes) == [
        list(range(env * 100, env * 100 + 31)) for env in range(3)
    ]


def test_an_ensemble_draws_from_several_buffers_and_a_generator_is_private(store, tmp_path):
    """M14: a mix; numbers of one sampler depend on its seed and step alone, whatever else draws."""
    other = write(tmp_path / "o", SIMPLE, [numbered_episode(i) for i in range(12, 16)])
    ensemble = mix([(store, 0.5), (other, 0.5)]).transitions(32, 0, exact=False)
    assert {int(name) for batch in itertools.islice(ensemble, 10) for name in batch.dataset} == {0, 1}
    alone = [batch.index.copy() for batch in itertools.islice(store.transitions(8, 3), 4)]
    np.random.seed(0)
    first, second = store.transitions(8, 3), store.transitions(8, 4)
    for index in alone:
        np.random.random(7)
        second.sample()
        assert np.array_equal(first.sample().index, index)


def test_samplers_of_several_threads_do_not_disturb_each_other(store):
    """M08, J12: one sampler per thread over one store; each gives what it gives alone, the kernels run without the interpreter's lock."""
    from concurrent.futures import ThreadPoolExecutor

    def draw(seed):
        return [batch.observation.copy() for batch in itertools.islice(store.transitions(256, seed, n_steps=3), 30)]

    alone = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, range(4)))
    assert all(np.array_equal(a, b) for one, two in zip(alone, together, strict=True) for a, b in zip(one, two, strict=True))


def test_a_thread_can_prefetch_from_a_sampler(store):
    """M08: two sets of arrays, filled in turn while the other is used, give the batches of one sampler in order."""
    from concurrent.futures import ThreadPoolExecutor

    pair = [store.transitions(64, 9), store.transitions(64, 9)]
    due = store.transitions(64, 9)

    def fill(k):
        sampler = pair[k % 2]
        sampler.seek(k)
        return sampler.sample()

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(fill, 0)
        for k in range(40):
            batch = ahead.result()
            ahead = pool.submit(fill, k + 1)
            expected = due.sample()
            assert np.array_equal(batch.observation, expected.observation) and np.array_equal(batch.index, expected.index)


def test_episodes_of_a_buffer_stay_whole(store):
    """The list of a buffer's episodes is what was written, in its order, sliced and taken like a list."""
    assert [same_episode(episode, numbered_episode(i)) for i, episode in enumerate(store.episodes)] == [True] * 12
    assert [int(n) for n in store.episodes[::-1][:2].numbers] == [11, 10]
