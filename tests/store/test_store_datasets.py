"""What users of d3rlpy do with a data set (rows J01 to J26 of the feature list), on real data where it lies beside the checkout."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from store_cases import same, same_episode, write
from store_faults import Disk
from store_numbered import SIMPLE, numbered_episode

from offrl_store import (
    Episode,
    EpisodeStore,
    Field,
    MDPDataset,
    PrioritizedSampler,
    Schema,
    append_rows,
    check,
    concat,
    copy,
    create_temporary,
    extend,
    from_episodes,
    infer_schema,
    mix,
    to_arrays,
    train_test_split,
    unstack,
)
from offrl_store import stats as stats_of
from offrl_store.errors import DiskFull, EmptyStore, InvalidEpisode, InvalidInput, InvalidSchema


@pytest.fixture(scope="module")
def pendulum(shared_data):
    """The arrays of a real file: 20,000 steps, 100 episodes that were all cut."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(shared_data / "pendulum-replay.hdf5") as file:
        return {name: file[name][:] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}


@pytest.fixture(scope="module")
def cartpole(shared_data):
    h5py = pytest.importorskip("h5py")
    with h5py.File(shared_data / "cartpole-replay.hdf5") as file:
        return {name: file[name][:] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}


def numbered(path, numbers):
    return write(path, SIMPLE, [numbered_episode(i) for i in numbers])


# --- From arrays and back -------------------------------------------------------------------------------------------------------------


def test_real_arrays_become_a_dataset_and_the_same_arrays_again(pendulum):
    """J01, J02, J16: every value and dtype; timeouts stay apart from terminals."""
    store = MDPDataset(**pendulum)
    assert (len(store), store.step_count, store.transition_count) == (100, 20_000, 19_900)
    arrays = to_arrays(store)
    assert set(arrays) == set(pendulum)
    for name, given in pendulum.items():
        assert np.array_equal(arrays[name], given), name
        assert arrays[name].dtype == given.dtype, name


def test_discrete_actions_are_found_counted_and_declared(cartpole):
    """J03: found in the data; the flag and the declared number win."""
    store = MDPDataset(**cartpole)
    assert store.schema.action == Field("int64", (), 0, 1)
    assert MDPDataset(**cartpole, action_size=5).schema.action.n == 5
    continuous = MDPDataset(**cartpole, discrete_action=False)
    assert (continuous.schema.action.dtype, continuous.schema.action.shape) == (np.float32, (1,))
    with pytest.raises(InvalidInput, match="action_size 1"):
        MDPDataset(**cartpole, action_size=1)
    with pytest.raises(InvalidInput, match="action_size is the number"):
        MDPDataset(**cartpole, action_size=2, discrete_action=False)


def test_arrays_with_final_observations_define_the_observation_after_each_step(tmp_path):
    store = numbered(tmp_path / "s", range(7))
    arrays = to_arrays(store, episodes=[5, 0, 3], next_observations=True)
    at = 0
    for number in (5, 0, 3):
        episode = numbered_episode(number)
        part = slice(at, at + episode.steps)
        assert np.array_equal(arrays["observations"][part], episode.observation[: episode.steps])
        following = episode.observation[1:] if not episode.final_missing else [*episode.observation[1:], np.zeros(3)]
        assert np.array_equal(arrays["next_observations"][part], following)
        assert np.array_equal(arrays["extra"]["row"][part], episode.extra["row"])
        at += episode.steps
        assert (arrays["terminals"][at - 1], arrays["timeouts"][at - 1]) == (episode.terminated, not episode.terminated)
    assert arrays["terminals"].sum() + arrays["timeouts"].sum() == 3
    with pytest.raises(EmptyStore):
        to_arrays(store, episodes=[])


def test_rows_are_appended_whole_or_not_at_all(cartpole, tmp_path):
    """J06."""
    half = int(np.flatnonzero(cartpole["terminals"] | cartpole["timeouts"])[50]) + 1
    first, second = ({name: rows[part] for name, rows in cartpole.items()} for part in (slice(half), slice(half, None)))
    store = MDPDataset(**first, path=tmp_path / "s")
    before = len(store)
    numbers = append_rows(store, **second)
    assert numbers == list(range(before, len(store)))
    assert all(np.array_equal(to_arrays(store)[name], rows) for name, rows in cartpole.items())
    count, actions = len(store), second["actions"].copy()
    actions[-1] = 2
    with pytest.raises(InvalidEpisode, match=r"outside the bounds 0 to 1"):
        append_rows(store, **{**second, "actions": actions})
    with pytest.raises(InvalidEpisode, match="narrowed to float32"):
        append_rows(store, **{**second, "observations": second["observations"].astype(np.float64)})
    assert len(EpisodeStore.open(store.path)) == count
    assert check(store.path) == []


def test_an_append_that_fails_halfway_leaves_nothing(tmp_path):
    """J06: also where the rows before the bad one are whole episodes."""
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(30, 2)),
        "actions": rng.integers(0, 3, 30),
        "rewards": rng.normal(size=30),
        "terminals": np.arange(30) % 10 == 9,
    }
    store = MDPDataset(**arrays, path=tmp_path / "s")
    beyond = np.where(np.arange(30) == 25, 3, arrays["actions"])
    with pytest.raises(InvalidEpisode, match="outside the bounds 0 to 2"):
        append_rows(store, **{**arrays, "actions": beyond})
    assert (len(store), len(EpisodeStore.open(store.path)), check(store.path)) == (3, 3, [])
    assert append_rows(store, **arrays) == [3, 4, 5]
    assert all(np.array_equal(to_arrays(store, [3, 4, 5])[name], rows) for name, rows in arrays.items())


def test_a_store_is_extended_by_others_or_not_at_all(tmp_path):
    """J07."""
    store, more, other = numbered(tmp_path / "a", range(3)), numbered(tmp_path / "b", range(3, 8)), numbered(tmp_path / "c", range(8, 9))
    assert extend(store, [more, other.episodes[:1]]) == 6
    assert [same_episode(store.episodes[i], numbered_episode(i)) for i in range(9)] == [True] * 9
    narrow = EpisodeStore.create(tmp_path / "n", Schema(Field("float32", (3,)), Field("int32", (), 0, 3), extra={"row": Field("int64")}))
    with pytest.raises(InvalidSchema, match="other fields"):
        extend(store, [more, narrow])
    with pytest.raises(InvalidInput, match="not a list"):
        extend(store, more)
    with pytest.raises(DiskFull), Disk(7, "once"):
        extend(store, [more])
    assert (len(store), len(EpisodeStore.open(store.path)), check(store.path)) == (9, 9, [])
    assert same_episode(concat(tmp_path / "j", [store]).episodes[8], numbered_episode(8))


def test_a_step_after_the_end_and_invalid_flags_are_refused():
    observations, actions, rewards = np.zeros((4, 2), "f4"), np.zeros((4, 1), "f4") + 0.5, np.zeros(4, "f4")
    for terminals in ([0, 0, 0, 2], [0, 0, 0, np.nan], [0, 0.5, 0, 1]):
        with pytest.raises(InvalidInput, match="is not a flag"):
            MDPDataset(observations, actions, rewards, terminals)
    with pytest.raises(InvalidInput, match="rows differ"):
        MDPDataset([[1.0], [1.0, 2.0]], actions, rewards, np.zeros(4))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 1, 8, 8), np.float32), "uint8"),
        (np.zeros((4, 1, 8, 8), np.int64), "uint8"),
        (np.zeros((4, 84, 84, 3), np.uint8), "channel-last"),
        (np.zeros((4, 84, 84, 1), np.uint8), r"transpose\(0, 3, 1, 2\)"),
    ],
)
def test_images_are_bytes_and_channel_first(images, message):
    """J23."""
    with pytest.raises(InvalidInput) as caught:
        MDPDataset(images, np.zeros(4, int), np.zeros(4), [0, 0, 0, 1])
    assert re.search(message, f"{caught.value} {caught.value.hint}")
    assert MDPDataset(np.zeros((4, 3, 84, 84), np.uint8), np.zeros(4, int), np.zeros(4), [0, 0, 0, 1]).schema.observation.dtype == np.uint8


# --- Episodes and transitions ---------------------------------------------------------------------------------------------------------


def test_transitions_are_linked_within_their_episode(tmp_path):
    """J04, J11, J26: what the data hold, links that end with the episode, next actions."""
    store = numbered(tmp_path / "s", range(9))
    transitions = store.episodes.transitions
    assert len(transitions) == store.transition_count
    at = 0
    for number in range(9):
        episode = numbered_episode(number)
        count = episode.steps - (episode.final_missing and not episode.terminated)
        for t in range(count):
            one = transitions[at + t]
            last = t == episode.steps - 1
            assert (one.number, one.t, one.reward, one.terminal) == (number, t, episode.reward[t], episode.terminated and last)
            assert np.array_equal(one.observation, episode.observation[t])
            assert np.array_equal(one.action, episode.action[t])
            after = episode.observation[t + 1] if t + 1 < len(episode.observation) else np.zeros(3)
            assert np.array_equal(one.next_observation, after)
            assert one.next_action == (episode.action[t + 1] if t + 1 < episode.steps else 0)
            assert np.array_equal(one.rewards_to_go, episode.reward[t:])
            assert (one.previous is None) == (t == 0) and (one.next is None) == (t == count - 1)
            if one.next is not None:
                assert (one.next.t, one.next.previous.t, one.next.number) == (t + 1, t, number)
        at += count
    assert np.array_equal(transitions.numbers, [one.number for one in transitions])
    assert np.array_equal(transitions.steps, [one.t for one in transitions])
    assert [store.episodes[i].ret for i in range(9)] == pytest.approx([numbered_episode(i).reward.sum(dtype=float) for i in range(9)])
    assert transitions[-1].number == 8 and len(transitions[3:9:2]) == 3 and "episode=0" in repr(transitions[0])


def test_a_split_by_transition_goes_into_samplers(tmp_path):
    """J05: every transition on one side, and no sampler gives one of the other side."""
    store = numbered(tmp_path / "s", range(30))
    train, test = train_test_split(store.episodes.transitions, 0.3, seed=1)
    assert sorted([*train.rows, *test.rows]) == store.episodes.transitions.rows.tolist()
    for part in (train, test):
        sampler = store.transitions(16, 0, rows=part, replacement=False, drop_last=False)
        seen = np.concatenate([batch.index.copy() for batch in sampler])
        assert sorted(seen) == part.rows.tolist()
        assert np.isin(store.transitions(500, 0, rows=part, n_steps=3).sample().index, part.rows).all()
        assert np.isin(store.windows(200, 4, 0, rows=part).sample().index, part.rows).all()
    assert np.array_equal(train_test_split(store.episodes.transitions, 0.3, seed=1)[0].rows, train.rows)


def test_scikit_learn_splits_numbers_of_episodes(tmp_path):
    """J05: what scikit-learn gives goes where samplers take episodes."""
    selection = pytest.importorskip("sklearn.model_selection")
    store = numbered(tmp_path / "s", range(20))
    train, test = selection.train_test_split(range(len(store)), test_size=0.25, random_state=0)
    rows = store.transitions(300, 0, episodes=test, extra=["row"]).sample().extra["row"]
    assert set(rows // 1000) <= set(test) and not set(rows // 1000) & set(train)
    for fit, held in selection.KFold(4).split(np.arange(len(store))):
        assert (
            store.transitions(8, 0, episodes=held).transition_count + store.transitions(8, 0, episodes=fit).transition_count
            == store.transition_count
        )


def test_rows_that_are_not_transitions_are_named(tmp_path):
    store = numbered(tmp_path / "s", range(6))
    table = store.episode_table
    for rows, message in (
        ([int(table["first_row"][2] - 1)], "is not a transition"),
        ([-1], "row -1"),
        ([10**9], "row 1000000000"),
        ([0.5], "list of row numbers"),
        ([[1]], "list of row numbers"),
        ([], "no transition"),
    ):
        with pytest.raises(InvalidInput, match=message):
            store.transitions(4, 0, rows=rows)
    with pytest.raises(InvalidInput, match="row 0 is not a transition of the episodes"):
        store.transitions(4, 0, rows=[0], episodes=[1, 2])
    with pytest.raises(InvalidInput, match="'rows'"):
        PrioritizedSampler(store, batch_size=4, rows=[0])


def test_last_steps_without_a_next_action_are_skipped(tmp_path):
    """J26: rows of all transitions may be given where next actions are asked for; a one-step episode that has none is passed over too."""
    episodes = [
        Episode(np.zeros((t + 1, 3), np.float32), np.arange(t) % 5, np.zeros(t, np.float32), False, {"row": np.arange(t)})
        for t in (1, 4, 1)
    ]
    store = write(tmp_path / "s", SIMPLE, episodes)
    sampler = store.transitions(3, 0, rows=store.episodes.transitions, next_action=True, replacement=False)
    assert sampler.transition_count == 3
    batch = sampler.sample()
    assert sorted(batch.index) == [2, 3, 4] and sorted(batch.next_action) == [1, 2, 3]
    with pytest.raises(EmptyStore):
        store.transitions(1, 0, rows=[0, 7], next_action=True)


# --- Statistics -----------------------------------------------------------------------------------------------------------------------


def test_stats_equal_compute_stats(pendulum, cartpole):
    """J10: mean, std, min, max and 20-bin histograms of returns, rewards and action dimensions; frequencies of discrete actions."""
    stats = MDPDataset(**pendulum).stats()
    for name, values in (("reward", pendulum["rewards"]), ("action", pendulum["actions"][:, 0])):
        field = stats["fields"][name]
        counts, edges = np.histogram(values.astype(float), 20)
        got_counts, got_edges = (field[key] if name == "reward" else field[key][0] for key in ("histogram", "edges"))
        assert got_counts == counts.tolist() and np.allclose(got_edges, edges)
        assert np.allclose(
            [np.ravel(field[key])[0] for key in ("mean", "std", "min", "max")],
            [values.mean(dtype=float), values.std(dtype=float), values.min(), values.max()],
        )
    returns = pendulum["rewards"].reshape(100, 200).sum(1, dtype=float)
    assert stats["return"]["histogram"] == np.histogram(returns, 20)[0].tolist()
    assert np.allclose(stats["fields"]["observation"]["mean"], pendulum["observations"].mean(0, dtype=float))
    assert MDPDataset(**cartpole).stats()["fields"]["action"]["counts"] == np.bincount(cartpole["actions"].reshape(-1).astype(int)).tolist()


def test_histograms_have_twenty_bins_for_each_place_of_an_action():
    """J10."""
    rng = np.random.default_rng(0)
    actions, rewards = rng.normal(size=(50_000, 2, 3)), rng.normal(size=50_000)
    store = create_temporary(Schema(Field("uint8", (1,)), Field("float64", (2, 3)), Field("float64")))
    with store.writer() as writer:
        for part in range(0, 50_000, 10_000):
            writer.append(Episode(np.zeros((10_001, 1), np.uint8), actions[part : part + 10_000], rewards[part : part + 10_000]))
    fields = store.stats()["fields"]
    for i in range(2):
        for j in range(3):
            counts, edges = np.histogram(actions[:, i, j], 20)
            assert fields["action"]["histogram"][i][j] == counts.tolist() and np.allclose(fields["action"]["edges"][i][j], edges)
    assert fields["reward"]["histogram"] == np.histogram(rewards, 20)[0].tolist()
    assert "histogram" not in fields["observation"]


def test_statistics_cached_by_an_older_version_are_recomputed(tmp_path):
    store = numbered(tmp_path / "s", range(4))
    expected = store.stats()
    file = store.path / stats_of.STATS_FILE
    body = json.loads(file.read_text())
    body.pop("crc")
    body.pop("version")
    del body["stats"]["fields"]["reward"]["histogram"]
    body["crc"] = stats_of._checksum(body)
    file.write_text(json.dumps(body))
    assert check(store.path) == []
    assert EpisodeStore.open(store.path).stats() == expected


# --- Buffers ----------------------------------------------------------------------------------------------------------------------------


def test_a_buffer_is_created_from_episodes_or_signatures(tmp_path):
    """J15: fields from the first episode, or declared; the rest must fit."""
    episodes = [numbered_episode(i) for i in range(5)]
    store = from_episodes(tmp_path / "s", iter(episodes), action_size=5)
    assert [same(store.episodes[i].observation, episodes[i].observation) for i in range(5)] == [True] * 5
    assert store.schema.action == Field("int64", (), 0, 4) and store.schema.extra == {"row": Field("int64")}
    path = from_episodes(None, episodes, limit_transitions=10**6).path
    assert not path.exists()
    with pytest.raises(InvalidInput, match="no episode"):
        from_episodes(tmp_path / "e", [])
    other = Episode(np.zeros((2, 4), np.float32), [0], [0.0], extra={"row": [0]})
    with pytest.raises(InvalidEpisode, match="episode 5"):
        from_episodes(tmp_path / "e", [*episodes, other])
    assert not (tmp_path / "e").exists()
    two = infer_schema(Episode({"a": np.zeros((2, 3), np.float16), "b": [[1], [2]]}, {"x": [[0.5]]}, [1]))
    assert two.observation == {"a": Field("float16", (3,)), "b": Field("int64", (1,))}
    assert (two.action, two.reward) == ({"x": Field("float32", (1,))}, Field("float32"))
    with pytest.raises(InvalidSchema, match="not discrete"):
        infer_schema(Episode(np.zeros((2, 3)), [[0.5]], [1.0]), action_size=2)


def test_a_replay_buffer_becomes_a_dataset(tmp_path):
    """J14, J16: the FIFO buffer's episodes, by copying and as arrays; a buffer without a limit keeps all (J24)."""
    buffer = EpisodeStore.create(tmp_path / "b", SIMPLE, limit_transitions=200)
    infinite = EpisodeStore.create(tmp_path / "i", SIMPLE)
    for store in (buffer, infinite):
        with store.writer() as writer:
            for number in range(40):
                writer.append(numbered_episode(number))
                writer.commit()
    assert len(infinite) == 40 and buffer.first > 0
    assert 200 >= buffer.step_count > 200 - 40
    dataset = copy(buffer, tmp_path / "d")
    assert [same_episode(dataset.episodes[i], numbered_episode(buffer.first + i)) for i in range(len(buffer))] == [True] * len(buffer)
    assert same(to_arrays(buffer), to_arrays(dataset))


def test_a_mixed_buffer_keeps_its_ratio_and_supports_epochs(tmp_path):
    """J24: 30 % of each batch from one buffer; without replacement each gives all of its own before any comes again."""
    small, large = numbered(tmp_path / "a", range(3)), numbered(tmp_path / "b", range(3, 30))
    sampler = mix([(small, 0.3), (large, 0.7)]).transitions(10, 5, replacement=False)
    seen = {0: [], 1: []}
    for _ in range(60):
        batch = sampler.sample()
        assert sampler.counts == (3, 7) and (batch.dataset == [0] * 3 + [1] * 7).all()
        for place in (0, 1):
            seen[place] += batch.index[batch.dataset == place].tolist()
    for place, store in ((0, small), (1, large)):
        count, rows = store.transition_count, store.episodes.transitions.rows.tolist()
        assert len(seen[place]) > 0
        for epoch in range(len(seen[place]) // count):
            assert sorted(seen[place][epoch * count : (epoch + 1) * count]) == rows
        left = seen[place][len(seen[place]) // count * count :]
        assert len(left) == len(set(left))
    assert len(seen[0]) // small.transition_count >= 2
    orders = [seen[0][: small.transition_count], seen[0][small.transition_count : 2 * small.transition_count]]
    assert orders[0] != orders[1]
    again = mix([(small, 0.3), (large, 0.7)]).transitions(10, 5, replacement=False)
    again.seek(47)
    assert again.sample().index[:3].tolist() == seen[0][3 * 47 : 3 * 48]
    tiny = mix([(small, 1)]).transitions(3 * small.transition_count, 0, replacement=False)
    assert np.array_equal(np.unique(tiny.sample().index, return_counts=True)[1], [3] * small.transition_count)
    tiny.seek(2**64 - 1)
    tiny.sample()


@pytest.mark.parametrize("pad", ["zero", "first"])
def test_stacks_of_an_environment_are_stored_as_single_frames(tmp_path, pad):
    """J25, J13: keep the last frame; the sampler gives the same stacks back. A stack that does not follow is named."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (9, 3, 6, 6), np.uint8)
    before = np.zeros((3, 3, 6, 6), np.uint8) if pad == "zero" else np.repeat(frames[:1], 3, axis=0)
    padded = np.concatenate([before, frames])
    stacks = np.stack([padded[i : i + 4].reshape(12, 6, 6) for i in range(9)])
    given = Episode(stacks, np.arange(8), np.ones(8, np.float32), True)
    plain = unstack(given, 4, stack_pad=pad)
    assert np.array_equal(plain.observation, frames)
    store = write(tmp_path / "s", Schema(Field("uint8", (3, 6, 6)), Field("int64", (), 0, 7)), [plain])
    batch = store.transitions(64, 0, frame_stack=4, stack_pad=pad).sample()
    assert np.array_equal(batch.observation, stacks[batch.index]) and np.array_equal(batch.next_observation, stacks[batch.index + 1])
    named = unstack(Episode({"camera": stacks, "arm": np.zeros((9, 2))}, np.arange(8), np.ones(8)), 4, field="camera", stack_pad=pad)
    assert np.array_equal(named.observation["camera"], frames) and named.observation["arm"].shape == (9, 2)
    broken = stacks.copy()
    broken[5, 2, 3, 3] ^= 1
    with pytest.raises(InvalidEpisode, match="row 5"):
        unstack(Episode(broken, np.arange(8), np.ones(8)), 4, stack_pad=pad)
    with pytest.raises(InvalidEpisode, match="first stack"):
        unstack(given, 4, stack_pad="first" if pad == "zero" else "zero")
    with pytest.raises(InvalidEpisode, match="not stacks of 5"):
        unstack(given, 5)


def test_a_store_in_memory_is_freed_with_its_object():
    """M02."""
    store = create_temporary(SIMPLE, memory=True)
    assert str(store.path).startswith("/dev/shm/")
    with store.writer() as writer:
        for number in range(20):
            writer.append(numbered_episode(number))
    opened = EpisodeStore.open(store.path)
    assert same_episode(opened.episodes[19], numbered_episode(19))
    path, sampler = store.path, store.transitions(8, 0)
    del store, writer
    assert path.exists()  # a sampler still needs it
    sampler.sample()
    del sampler
    assert not path.exists()
    assert opened.transitions(8, 0).sample().index.shape == (8,)  # mapped files live on without a name
