"""Episodes that can be stored and read back, and errors that name the episode, the field and the row."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from store_cases import MEMORY, check_numbered, same_episode, stores, write
from store_numbered import SIMPLE, numbered_episode

from offrl_store import Episode, EpisodeStore, Field, Schema, check
from offrl_store.errors import InvalidEpisode, InvalidInput, InvalidSchema, StoreCorrupt, StoreExists, StoreNotFound

BOX = Schema(Field("float32", (3,)), Field("float32", (2,), low=[-1, -2], high=1))


def box_episode(**changes) -> Episode:
    parts = {"observation": np.zeros((5, 3), np.float32), "action": np.zeros((4, 2), np.float32), "reward": np.zeros(4, np.float32)}
    return Episode(**{**parts, **changes})


@given(case=stores())
@settings(max_examples=60, deadline=None)
def test_any_episode_is_read_back_unchanged(case):
    schema, episodes = case
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = write(Path(folder) / "s", schema, episodes[:1])
        with store.writer() as writer:
            for number, episode in enumerate(episodes[1:], 1):
                assert writer.append(episode) == number
        for opened in (store, EpisodeStore.open(store.path), pickle.loads(pickle.dumps(store))):
            assert opened.schema == schema
            assert len(opened) == len(opened.episodes) == len(episodes)
            assert all(same_episode(*pair) for pair in zip(opened.episodes, episodes, strict=True))
            assert opened.step_count == sum(episode.steps for episode in episodes)
            assert opened.transition_count == sum(e.steps - (e.final_missing and not e.terminated) for e in episodes)
            np.testing.assert_allclose(opened.returns, [episode.ret for episode in episodes])
            assert [episode.final_missing for episode in opened.episodes] == [episode.final_missing for episode in episodes]
            for column in schema.columns:
                rows = opened.column(column.name)
                assert rows.dtype == column.field.dtype
                assert not rows.flags.writeable
        assert check(store.path) == []


def test_episodes_are_a_lazy_sequence(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(10)])
    assert same_episode(store.episodes[-1], numbered_episode(9))
    assert [e.steps for e in store.episodes[2:8:3]] == [numbered_episode(i).steps for i in (2, 5)]
    assert same_episode(store.episodes[5:][1:][0], numbered_episode(6))
    with pytest.raises(IndexError):
        store.episodes[10]
    assert np.shares_memory(store.episodes[3].reward, store.column("reward"))
    assert store.episode_table["steps"].tolist() == [numbered_episode(i).steps for i in range(10)]


def test_what_a_shell_displays(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(0)])
    assert "episodes=1" in repr(store) and "observation: float32[3]" in repr(store)
    assert "observation=float32[" in repr(store.episodes[0])
    assert repr(SIMPLE.action) == "Field('int32', (), low=0, high=4)"
    assert store.nbytes == (numbered_episode(0).steps + 1) * (12 + 4 + 4 + 8) + 128
    with pytest.raises(InvalidInput, match="observations"):
        store.column("observations")


def test_lists_and_exactly_representable_numbers_are_accepted(tmp_path):
    lists = Episode([[0.1, 0.2, 0.3], [1, 2, 3]], [2], [0.5], True, {"row": [7]})
    store = write(
        tmp_path / "s",
        SIMPLE,
        [
            lists,
            Episode(np.arange(6).reshape(2, 3), np.array([1], np.int64), np.array([3], np.uint8), False, {"row": np.array([1], np.int8)}),
            Episode(np.asfortranarray(np.ones((2, 3), np.float16)), np.array([True]), [np.float32(1.5)], np.True_, {"row": np.array([1])}),
            Episode(np.ones((2, 3), ">f4"), np.array([1], ">i2"), [1], False, {"row": np.array([5], ">i8")}),
        ],
    )
    assert store.column("observation")[0].tolist() == np.float32([0.1, 0.2, 0.3]).tolist()
    assert store.column("observation")[2].tolist() == [0, 1, 2]
    assert store.column("reward")[[0, 2, 4, 6]].tolist() == [0.5, 3, 1.5, 1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"observation": np.full((5, 3), np.nan, np.float32)}, "episode 1, field observation, row 0: nan"),
        ({"action": np.float32([[0, 0], [0, 0], [0, np.inf], [0, 0]])}, "episode 1, field action, row 2: inf"),
        ({"reward": np.float32([0, -np.inf, 0, 0])}, "episode 1, field reward, row 1: -inf"),
        ({"reward": [0, 1e39, 0, 0]}, "episode 1, field reward, row 1: inf"),
        ({"action": np.float32([[0, 0], [0, 1.5], [0, 0], [0, 0]])}, "field action, row 1: 1.5 is outside the bounds -2.0 to 1.0"),
        ({"action": np.float32([[0, -1.5], [0, 0], [0, 0], [-1.5, 0]])}, "field action, row 3: -1.5 is outside the bounds -1.0 to 1.0"),
        ({"observation": np.zeros((5, 3))}, "float64 would be narrowed to float32"),
        ({"observation": [np.zeros(3)] * 5}, "float64 would be narrowed"),
        ({"observation": np.full((5, 3), 2**24 + 1)}, "row 0: 16777217 does not fit float32"),
        ({"observation": np.zeros((6, 3), np.float32)}, "observation has 6 rows; expected 4 or 5 for 4 rewards"),
        ({"observation": np.zeros((5, 4), np.float32)}, r"row has shape \(4,\); expected \(3,\)"),
        ({"observation": [[1, 2, 3], [1, 2]]}, "not an array"),
        ({"observation": {"a": np.zeros((5, 3))}}, "observation is a dict"),
        ({"action": np.zeros((5, 2), np.float32)}, "action has 5 rows; expected 4"),
        ({"action": np.zeros((4, 2), "U1")}, "dtype <U1 is not float32"),
        ({"action": None}, "row has shape"),
        ({"reward": np.zeros((4, 1), np.float32)}, "row has shape"),
        ({"reward": 1.0}, "one number per step"),
        ({"reward": []}, "no step"),
        ({"terminated": None}, "terminated is None"),
        ({"extra": {"x": [1, 2, 3, 4]}}, "unknown field x"),
    ],
)
def test_invalid_episodes_are_refused_naming_the_place_and_nothing_is_written(tmp_path, changes, message):
    store = write(tmp_path / "s", BOX, [box_episode()])
    with pytest.raises(InvalidEpisode, match=message), store.writer() as writer:
        writer.append(box_episode(**changes))
    assert len(store) == 1
    assert check(store.path) == []


@pytest.mark.parametrize(
    "action, message",
    [
        (np.array([0, 5]), "row 1: 5 is outside the bounds 0 to 4"),
        ([-1, 0], "row 0: -1 is outside the bounds 0 to 4"),
        (np.array([0, 2**32]), "row 1: 4294967296 does not fit int32"),
        (np.array([0.0, 1.0]), "float64 is not int32"),
        (np.array([[0], [1]]), "shape"),
        (np.array([0, 2**63], np.uint64), "row 1: 9223372036854775808 does not fit"),
    ],
)
def test_a_discrete_action_is_one_of_the_declared_choices(tmp_path, action, message):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    with pytest.raises(InvalidEpisode, match=message), store.writer() as writer:
        writer.append(Episode(np.zeros((3, 3), np.float32), action, [0, 0], extra={"row": [0, 0]}))


def test_all_named_fields_must_be_present_with_equal_lengths(tmp_path):
    schema = Schema({"a": Field("float32", (2,)), "b": Field("uint8", (1, 2, 2))}, Field("float32", (1,)))
    store = EpisodeStore.create(tmp_path / "s", schema)
    a, b = np.zeros((3, 2), np.float32), np.zeros((3, 1, 2, 2), np.uint8)
    for observation, message in (
        ({"a": a}, "observation.b is missing"),
        ({"a": a, "b": b, "c": a}, "unknown field c"),
        (a, "is one array"),
        ({"a": a, "b": b[:2]}, "different numbers of rows"),
    ):
        with pytest.raises(InvalidEpisode, match=message), store.writer() as writer:
            writer.append(Episode(observation, np.zeros((2, 1), np.float32), [0, 0]))


def test_extras_may_hold_non_finite_numbers(tmp_path):
    schema = Schema(Field("float32", ()), Field("float32", ()), extra={"logp": Field("float64")})
    store = write(tmp_path / "s", schema, [Episode([0, 1], [0], [0], extra={"logp": np.array([np.nan])})])
    assert np.isnan(store.episodes[0].extra["logp"]).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Field("complex64"), "complex64"),
        (lambda: Field("nothing"), "not a dtype"),
        (lambda: Field("float32", (0,)), "shape"),
        (lambda: Field("float32", (-1,)), "shape"),
        (lambda: Field("float32", (2,), low=[0, 0, 0]), "low"),
        (lambda: Field("uint8", (), low=-1), "low -1"),
        (lambda: Field("float32", (), low=1, high=0), "low 1.0 is above high 0.0"),
        (lambda: Field("float32", low=float("nan")), "not a number"),
        (lambda: Field("int32", (), 0, 2.5), "high 2.5"),
        (lambda: Field("float32").n, "not discrete"),
        (lambda: Schema({}, Field("float32")), "observation is {}"),
        (lambda: Schema(Field("float32"), "x"), "action is x"),
        (lambda: Schema({"a/b": Field("float32")}, Field("float32")), "'a/b'"),
        (lambda: Schema({"..": Field("float32")}, Field("float32")), "'..'"),
        (lambda: Schema(Field("float32"), Field("float32"), Field("float32", (2,))), "reward"),
        (lambda: Schema(Field("float32"), Field("float32"), extra={"a": 1}), "extra"),
        (lambda: Schema(Field("float32"), Field("float32"), metadata={"a": object()}), "metadata"),
        (lambda: Schema(Field("float32"), Field("float32"), metadata={"a": float("nan")}), "metadata"),
    ],
)
def test_an_invalid_schema_is_refused_with_the_reason(make, message):
    with pytest.raises(InvalidSchema, match=message):
        make()


def test_a_field_knows_whether_it_is_discrete_and_its_bounds():
    assert Field("int64", (), 0, 3).discrete and Field("int64", (), 0, 3).n == 4
    for field in (Field("int64"), Field("int64", (), 1, 3), Field("int64", (1,), 0, 3), Field("float32", (), 0, 3)):
        assert not field.discrete
    field = Field("float32", (2,), low=[-np.inf, 0.1], high=np.inf)
    assert field.high is None
    assert field.low.dtype == np.float32
    assert Field.from_json(field.to_json()) == field
    assert Field("float32", 3).shape == (3,)


def test_create_refuses_an_existing_store_and_open_a_missing_one(tmp_path):
    store = EpisodeStore.create(tmp_path / "deep" / "s", SIMPLE)
    with pytest.raises(StoreExists):
        EpisodeStore.create(store.path, SIMPLE)
    (tmp_path / "empty").mkdir()
    EpisodeStore.create(tmp_path / "empty", SIMPLE)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "none", tmp_path):
        with pytest.raises(StoreNotFound):
            EpisodeStore.open(path)
    with pytest.raises(StoreExists):
        EpisodeStore.create(tmp_path / "file", SIMPLE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "file"]
    (store.path / "episodes.log").unlink()
    with pytest.raises(StoreCorrupt, match="missing"):
        EpisodeStore.open(store.path)


def test_metadata_is_stored_and_does_not_change_the_snapshot(tmp_path):
    schema = Schema(SIMPLE.observation, SIMPLE.action, extra=SIMPLE.extra, metadata={"env_id": "Hopper-v5", "grüße": [1, 2.5, None]})
    store = write(tmp_path / "s", schema, [numbered_episode(0)])
    assert EpisodeStore.open(store.path).metadata == {"env_id": "Hopper-v5", "grüße": [1, 2.5, None]}
    assert store.snapshot() == write(tmp_path / "t", SIMPLE, [numbered_episode(0)]).snapshot()
    assert schema.same_fields(SIMPLE) and schema != SIMPLE


def test_successive_writers_append(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    for number in range(4):
        with store.writer() as writer:
            writer.append(numbered_episode(number))
            writer.commit()
            assert len(store) == number + 1
    check_numbered(store)
