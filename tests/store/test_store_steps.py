"""Writing step by step: the same store as with whole episodes, open episodes that survive a crash, batches of environments."""

from __future__ import annotations

import errno
import functools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from store_cases import check_numbered, same_episode, stores, write
from store_faults import Disk
from store_numbered import SIMPLE, numbered_episode

from offrl_store import Episode, EpisodeStore, Field, Schema, check, staging
from offrl_store.errors import DiskFull, InvalidEpisode, InvalidInput

PLAIN = Schema(Field("float32", (3,)), Field("float32", (2,), low=-1, high=1))


def whole(number: int) -> Episode:
    """A numbered episode with its final observation: steps cannot leave it out."""
    episode = numbered_episode(number)
    if not episode.final_missing:
        return episode
    return Episode(
        np.concatenate([episode.observation, np.ones((1, 3), np.float32)]),
        episode.action,
        episode.reward,
        episode.terminated,
        episode.extra,
    )


def row(value, t):
    return {name: rows[t] for name, rows in value.items()} if isinstance(value, dict) else value[t]


def play(writer, episode, env=0, steps=None):
    """Write an episode, or its first ``steps``, step by step."""
    writer.begin(row(episode.observation, 0), env=env)
    for t in range(episode.steps if steps is None else steps):
        last = t == episode.steps - 1
        writer.step(
            row(episode.action, t),
            episode.reward[t],
            row(episode.observation, t + 1),
            last and episode.terminated,
            last and not episode.terminated,
            env=env,
            extra=row(episode.extra, t),
        )


@settings(max_examples=40, deadline=None)
@given(stores())
def test_steps_write_the_same_files_as_whole_episodes(tmp_path_factory, case):
    schema, episodes = case
    episodes = [episode for episode in episodes if not episode.final_missing]
    folder = tmp_path_factory.mktemp("s")
    expected = write(folder / "a", schema, episodes)
    store = EpisodeStore.create(folder / "b", schema)
    with store.writer() as writer:
        for episode in episodes:
            play(writer, episode)
    assert store.snapshot() == expected.snapshot()
    for column in schema.columns:
        assert store.column(column.name).tobytes() == expected.column(column.name).tobytes()
    assert check(store.path) == []


def test_open_episodes_of_several_environments_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "FLUSH_STEPS", 5)
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    episodes = [whole(i) for i in range(6)]
    with store.writer() as writer:
        for env, episode in enumerate(episodes):
            writer.begin(episode.observation[0], env=env)
        for t in range(max(episode.steps for episode in episodes)):
            for env, episode in enumerate(episodes):
                if t < episode.steps:
                    writer.step(episode.action[t], episode.reward[t], episode.observation[t + 1], env=env, extra=row(episode.extra, t))
                    if t == 3:
                        writer.sync()
                    if t == episode.steps - 1:
                        number = writer.end(terminated=episode.terminated, env=env)
                        assert number == writer.commit().count - 1
    assert len(store) == 6
    order = sorted(range(6), key=lambda i: (episodes[i].steps, i))
    for number, env in enumerate(order):
        assert same_episode(store.episodes[number], episodes[env])
    assert list((store.path / "open").iterdir()) == []
    assert check(store.path) == []


def test_the_callers_arrays_may_change_afterwards(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", PLAIN)
    observation, action = np.zeros(3, np.float32), np.zeros(2, np.float32)
    with store.writer() as writer:
        writer.begin(observation)
        for t in range(1, 4):
            observation[:], action[:] = t, t / 10
            writer.step(action, np.float64(t), observation)
            action[:] = observation[:] = 77
        assert writer.end() == 0
    episode = store.episodes[0]
    assert episode.observation[:, 0].tolist() == [0, 1, 2, 3]
    assert np.allclose(episode.action[:, 0], [0.1, 0.2, 0.3])
    assert (episode.terminated, episode.ret) == (False, 6.0)


def test_an_open_episode_is_left_to_the_next_writer_by_closing_and_by_a_crash(tmp_path):
    store, episode = EpisodeStore.create(tmp_path / "s", SIMPLE), whole(20)
    assert episode.steps > 10
    with store.writer() as writer:
        play(writer, episode, env=2, steps=3)
    assert len(store) == 0
    writer = store.writer()
    assert writer.open_episodes == {2: 3}
    for t in range(3, 7):
        writer.step(episode.action[t], episode.reward[t], episode.observation[t + 1], env=2, extra=row(episode.extra, t))
    writer.sync()
    writer.step(episode.action[7], episode.reward[7], episode.observation[8], env=2, extra=row(episode.extra, 7))
    writer._release()  # as a crash: one step after the last sync
    with store.writer() as writer:
        assert writer.open_episodes == {2: 7}
        for t in range(7, episode.steps):
            writer.step(episode.action[t], episode.reward[t], episode.observation[t + 1], env=2, extra=row(episode.extra, t))
        writer.end(terminated=episode.terminated, env=2)
    assert same_episode(store.episodes[0], episode)
    assert store.writer().open_episodes == {}
    assert check(store.path) == []


def test_a_reset_ends_the_open_episode_as_truncated(tmp_path):
    store, episode = EpisodeStore.create(tmp_path / "s", SIMPLE), whole(20)
    with store.writer() as writer:
        play(writer, episode, steps=4)
        writer.begin(episode.observation[0])
        writer.begin(episode.observation[0])  # nothing happened in between
        writer.discard()
    assert store.episode_table["steps"].tolist() == [4]
    assert not store.episodes[0].terminated


@pytest.mark.parametrize("failure", ["kill", "power", "full"])
def test_a_death_at_every_system_call_loses_no_synced_step_and_doubles_no_episode(tmp_path, failure):
    at, reached, episodes = 0, True, [whole(20), whole(21), whole(22)]
    while reached:
        at += 1
        path = tmp_path / str(at)
        store = EpisodeStore.create(path, SIMPLE)
        synced, acknowledged = 0, 0
        try:
            with Disk(at, failure, seed=at) as disk, store.writer() as writer:
                play(writer, episodes[0], steps=5)
                writer.sync()
                synced = 5
                first = episodes[0]
                for t in range(5, first.steps):
                    writer.step(first.action[t], first.reward[t], first.observation[t + 1], extra=row(first.extra, t))
                    if t == 6:
                        writer.sync()
                        synced = 7
                writer.end(terminated=True)
                play(writer, episodes[1], env=1)
                play(writer, episodes[2], env=0, steps=2)
                acknowledged = writer.commit().count
        except DiskFull:
            assert failure == "full"
        reached = disk.reached
        opened = EpisodeStore.open(path)
        assert len(opened) >= acknowledged
        with opened.writer() as writer:
            left = writer.open_episodes
            recovered = len(opened)
            if synced and recovered == 0 and not writer._pending:
                assert left[0] >= synced
            for env in left:
                if left[env]:
                    writer.end(env=env)
                else:
                    writer.discard(env)
        found = [opened.episodes[i] for i in range(len(opened))]
        assert len(found) <= 3
        steps = [episode.steps for episode in found]
        for episode, due in zip(found, episodes, strict=False):
            assert np.array_equal(episode.reward, due.reward[: episode.steps]) and np.array_equal(
                episode.observation, due.observation[: episode.steps + 1]
            )
        assert not synced or steps[0] >= synced
        assert check(path) == []
        assert list(path.glob("open/*")) == []
    assert at > 15


def test_an_open_episode_ends_where_a_block_of_its_steps_is_missing(tmp_path):
    store, episode, ends = EpisodeStore.create(tmp_path / "s", SIMPLE), whole(20), []
    with store.writer() as writer:
        writer.begin(episode.observation[0])
        for t in range(9):
            writer.step(episode.action[t], episode.reward[t], episode.observation[t + 1], extra=row(episode.extra, t))
            if t % 3 == 2:
                writer.sync()
                ends.append((store.path / "open" / "0.1").stat().st_size)
    file = store.path / "open" / "0.1"
    content = file.read_bytes()
    file.write_bytes(content[: ends[0]] + content[ends[1] :])  # both blocks that are left fit their checksums
    left = len(content) - ends[1]
    assert check(store.path) == [f"open/0.1: {left} bytes do not fit their checksum; 3 steps before them can be recovered"]
    with store.writer() as writer:
        assert writer.open_episodes == {0: 3}
        writer.end()
    assert np.array_equal(store.episodes[0].reward, episode.reward[:3])
    assert np.array_equal(store.episodes[0].observation, episode.observation[:4])


# --- Refused steps ------------------------------------------------------------------------------------------------------------------


def test_steps_that_do_not_fit_are_refused_and_leave_the_episode_as_it_was(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", PLAIN)
    good = (np.zeros(2, np.float32), 1.0, np.zeros(3, np.float32))
    with store.writer() as writer:
        with pytest.raises(InvalidInput, match="env 0 has no open episode"):
            writer.step(*good)
        with pytest.raises(InvalidInput, match="env 0 has no open episode"):
            writer.end()
        with pytest.raises(InvalidInput, match="env -1"):
            writer.begin(good[2], env=-1)
        writer.begin(good[2])
        with pytest.raises(InvalidEpisode, match="no step"):
            writer.end()
        for bad in (
            (np.zeros(3, np.float32), 1.0, good[2]),
            (good[0], 1.0, np.zeros(3)),
            (good[0], "x", good[2]),
            (good[0], 1.0, {"a": 1}),
        ):
            with pytest.raises(InvalidEpisode):
                writer.step(*bad)
        with pytest.raises(InvalidEpisode, match="extra"):
            writer.step(*good, extra={"a": 1})
        writer.step(*good)
        writer.end(truncated=True)
    assert store.episode_table["steps"].tolist() == [1]
    with pytest.raises(InvalidInput, match="closed"):
        writer.step(*good)


def test_a_first_observation_that_is_refused_leaves_the_open_episode_as_it_was(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", PLAIN)
    with store.writer() as writer:
        writer.begin(np.zeros(3, np.float32))
        writer.step(np.zeros(2, np.float32), 1.0, np.zeros(3, np.float32))
        with pytest.raises(InvalidEpisode, match="env 0, the first observation, field observation, row 0: nan"):
            writer.begin(np.float32([0, np.nan, 0]))
        assert writer.open_episodes == {0: 1}


@pytest.mark.parametrize(
    "bad",
    [
        (np.full(2, 2, np.float32), 0.0, np.zeros(3, np.float32)),
        (np.zeros(2, np.float32), float("nan"), np.zeros(3, np.float32)),
        (np.zeros(2, np.float32), 0.0, np.full(3, np.inf, np.float32)),
    ],
)
def test_a_value_that_is_refused_drops_its_open_episode_only(tmp_path, bad):
    store = EpisodeStore.create(tmp_path / "s", PLAIN)
    with store.writer() as writer:
        for env in (0, 1):
            writer.begin(np.zeros(3, np.float32), env=env)
            writer.step(np.zeros(2, np.float32), 1.0, np.zeros(3, np.float32), env=env)
        writer.sync()
        with pytest.raises(InvalidEpisode, match="env 0, steps from 1") as caught:
            writer.step(*bad, terminated=True)
        assert "env 0 was dropped" in caught.value.hint
        assert writer.open_episodes == {1: 1}
        writer.end(env=1)
    assert len(store) == 1
    assert check(store.path) == []


@pytest.mark.parametrize("bad, why", [(300, "field action, row 1: 300 does not fit int8"), (100, "field action, row 1: 100 is outside")])
def test_a_whole_number_that_is_refused_at_the_end_leaves_nothing_to_the_next_episode(tmp_path, bad, why):
    store = EpisodeStore.create(tmp_path / "s", Schema(Field("float32", (3,)), Field("int8", (), low=0, high=4)))
    after = np.ones(3, np.float32)
    with store.writer() as writer:
        for action in (bad, 3):
            writer.begin(np.zeros(3, np.float32))
            writer.step(2, 1.0, after)
            if action == bad:
                with pytest.raises(InvalidEpisode, match=f"env 0, steps from 0, {why}") as caught:
                    writer.step(action, 1.0, after, terminated=True)
                assert "env 0 was dropped" in caught.value.hint
                assert writer.open_episodes == {}
        writer.step(3, 1.0, after, terminated=True)
    assert store.episodes[0].action.tolist() == [2, 3]
    assert check(store.path) == []


# --- Batches ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_step", [False, True])
def test_batches_of_environments_give_each_environment_its_episodes(tmp_path, same_step):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    lanes = [[whole(10 * env + i) for i in range(6)] for env in range(4)]
    place, resetting = [(0, 0)] * 4, [False] * 4
    with store.writer() as writer:
        for env in range(4):
            writer.begin(lanes[env][0].observation[0], env=env)
        for step in range(700):
            rows = {name: [] for name in ("action", "reward", "observation", "terminated", "truncated", "final", "row")}
            for env in range(4):
                number, t = place[env]
                episode = lanes[env][number % 6]
                last = t == episode.steps - 1
                following = lanes[env][(number + 1) % 6]
                reset = resetting[env]
                rows["action"].append(0 if reset else episode.action[t])
                rows["reward"].append(0.0 if reset else episode.reward[t])
                rows["observation"].append(
                    episode.observation[0] if reset else following.observation[0] if last and same_step else episode.observation[t + 1]
                )
                rows["final"].append(episode.observation[t + 1])
                rows["terminated"].append(last and episode.terminated and not reset)
                rows["truncated"].append(last and not episode.terminated and not reset)
                rows["row"].append(0 if reset else episode.extra["row"][t])
                if reset:
                    resetting[env] = False
                elif last:
                    place[env], resetting[env] = (number + 1, 0), not same_step
                else:
                    place[env] = (number, t + 1)
            arrays = {name: np.array(values) for name, values in rows.items()}
            writer.step_batch(
                arrays["action"],
                arrays["reward"].astype(np.float64),
                arrays["observation"],
                arrays["terminated"],
                arrays["truncated"],
                arrays["final"] if same_step else None,
                extra={"row": arrays["row"]},
            )
            if step % 97 == 0:
                writer.sync()
        left = writer.open_episodes
    seen = [0] * 4
    for episode in store.episodes:
        env = int(episode.extra["row"][0]) // 10_000
        assert same_episode(episode, lanes[env][seen[env] % 6])
        seen[env] += 1
    assert seen == [number for number, _ in place]
    assert left == {env: t for env, (_, t) in enumerate(place) if not resetting[env]}
    assert check(store.path) == []


def test_batches_need_one_number_of_environments_and_whole_arrays(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", PLAIN)
    rows = (np.zeros((2, 2), np.float32), np.zeros(2), np.zeros((2, 3), np.float32), np.zeros(2, bool), np.zeros(2, bool))
    with store.writer() as writer:
        writer.step_batch(*rows)  # the resets
        assert writer.open_episodes == {0: 0, 1: 0}
        writer.step_batch(*rows)
        with pytest.raises(InvalidInput, match="a batch of 1 steps"):
            writer.step_batch(*(array[:1] for array in rows))
        with pytest.raises(InvalidEpisode, match="field action has 1 rows"):
            writer.step_batch(rows[0][:1], *rows[1:])
        with pytest.raises(InvalidInput, match="terminated"):
            writer.step_batch(*rows[:3], rows[3][:1], rows[4][:1])
        assert writer.open_episodes == {0: 1, 1: 1}


def test_a_long_episode_waits_in_its_file_not_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "SPILL_BYTES", 2000)
    monkeypatch.setattr(staging, "FLUSH_STEPS", 16)
    store = EpisodeStore.create(tmp_path / "s", PLAIN)
    noise = np.random.default_rng(0)
    episode = Episode(
        noise.standard_normal((501, 3), np.float32),
        noise.uniform(-1, 1, (500, 2)).astype(np.float32),
        noise.standard_normal(500, np.float32),
        terminated=True,
    )
    with store.writer() as writer:
        play(writer, episode)
        assert writer._ended[0][1].bytes < 4000
    assert same_episode(store.episodes[0], episode)
    assert list((store.path / "open").iterdir()) == []


@pytest.mark.parametrize("spilled", [False, True])
def test_a_sync_makes_steps_durable_that_failed_before_or_were_spilled(tmp_path, monkeypatch, spilled):
    synced, failing = set(), [not spilled]
    real = {name: getattr(os, name) for name in ("fdatasync", "fsync")}

    def sync(name, descriptor):
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path / "s")
        if path.startswith("open/") and failing[0]:
            failing[0] = False
            raise OSError(errno.ENOSPC, "No space left on device")
        synced.add(path)
        real[name](descriptor)

    store = EpisodeStore.create(tmp_path / "s", PLAIN)
    with store.writer() as writer:
        for env in (0, 1):
            writer.begin(np.zeros(3, np.float32), env=env)
            writer.step(np.zeros(2, np.float32), 1.0, np.zeros(3, np.float32), env=env)
        if spilled:
            monkeypatch.setattr(staging, "SPILL_BYTES", 0)
            for episode in writer._open.values():
                episode.flush()
            assert sorted(os.listdir(store.path / "open")) == ["0.1", "1.2"]
        for name in real:
            monkeypatch.setattr(os, name, functools.partial(sync, name))
        if not spilled:
            with pytest.raises(DiskFull):
                writer.sync()
        writer.sync()
        assert {"open/0.1", "open/1.2", "open", "."} <= synced


def test_abort_drops_what_was_not_committed(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(0)])
    with store.writer() as writer:
        writer.append(numbered_episode(1))
        play(writer, whole(20), steps=3)
        writer.abort()
        writer.abort()
    assert len(EpisodeStore.open(store.path)) == 1
    with store.writer() as writer:
        assert writer.open_episodes == {}
        writer.append(numbered_episode(1))
    check_numbered(store)
    assert check(store.path) == []


def test_a_writer_commits_automatically_if_configured(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    with store.writer(commit_s=0.0) as writer:
        play(writer, whole(3))
        assert len(EpisodeStore.open(store.path)) == 1
        writer.append(numbered_episode(1))
        assert len(EpisodeStore.open(store.path)) == 2
