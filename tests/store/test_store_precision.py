"""float64 and wide integers are stored as such or refused: no way into a store narrows values silently."""

from __future__ import annotations

import numpy as np
import pytest
from store_cases import write

from offrl_store import Episode, EpisodeStore, Field, MDPDataset, Schema, append_rows, from_episodes, to_arrays
from offrl_store.errors import InvalidEpisode, InvalidInput

THIRD = 1 / 3  # has no float32
FINE = np.full((3, 1), THIRD)
WIDE = Schema(Field("float64", (1,)), Field("float64", (1,)), Field("float64"), {"cost": Field("float64")})


def test_float64_is_read_back_bit_for_bit(tmp_path):
    episode = Episode(np.full((4, 1), THIRD), FINE, FINE[:, 0], True, {"cost": FINE[:, 0]})
    store = write(tmp_path / "s", WIDE, [episode])
    with store.writer() as writer:
        writer.begin(np.array([THIRD]))
        for t in range(3):
            writer.step(np.array([THIRD]), THIRD, np.array([THIRD]), t == 2, extra={"cost": THIRD})
        for env in range(2):
            writer.begin(np.array([THIRD]), env=env)
        for t in range(3):
            writer.step_batch(FINE[:2], FINE[:2, 0], FINE[:2], [t == 2] * 2, [False] * 2, extra={"cost": FINE[:2, 0]})
    assert len(store) == 4
    for each in store.episodes:
        for array in (each.observation, each.action, each.reward, each.extra["cost"]):
            assert array.dtype == np.float64 and (array == THIRD).all()
    batch = store.transitions(8, 0, extra=["cost"], next_action=True).sample()
    for array in (batch.observation, batch.next_observation, batch.action, batch.extra["cost"]):
        assert array.dtype == np.float64 and (array == THIRD).all()
    windows = store.windows(8, 2, 0, extra=["cost"]).sample()
    for array in (windows.observation, windows.action, windows.extra["cost"]):
        assert array.dtype == np.float64 and (array[windows.mask > 0] == THIRD).all()
    assert store.stats()["fields"]["reward"]["mean"] == THIRD


def test_returns_are_summed_in_float64(tmp_path):
    """A million rewards of a tenth: float32 sums would be off in the third digit."""
    steps = 200_000
    store = from_episodes(tmp_path / "s", [Episode(np.zeros((steps + 1, 1), np.uint8), np.zeros(steps, np.int64), np.full(steps, 0.1))])
    assert abs(store.returns[0] - 20_000) < 1e-6
    batch = store.transitions(1, 0, returns=True, gamma=1.0, rows=[0]).sample()
    assert batch.returns[0] == np.float32(20_000) and batch.remaining[0] == steps


@pytest.mark.parametrize("part", ["observation", "action", "reward", "extra"])
def test_float64_for_a_float32_field_is_refused_on_every_way_in(tmp_path, part):
    schema = Schema(Field("float32", (1,)), Field("float32", (1,)), Field("float32"), {"cost": Field("float32")})
    shapes = {"observation": (4, 1), "action": (3, 1), "reward": (3,), "extra": (3,)}
    parts = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    parts[part] = parts[part].astype(np.float64)
    episode = Episode(parts["observation"], parts["action"], parts["reward"], True, {"cost": parts["extra"]})
    store = EpisodeStore.create(tmp_path / "s", schema)
    with store.writer() as writer:
        with pytest.raises(InvalidEpisode, match="would be narrowed to float32"):
            writer.append(episode)
        if part == "reward":
            return  # a single reward is a Python number to every environment, which float32 is declared to hold
        writer.begin(np.zeros(1, "f4"))
        with pytest.raises(InvalidEpisode, match="narrowed"):
            writer.step(parts["action"][0], 0.0, parts["observation"][0], extra={"cost": parts["extra"][0]})
        writer.discard()
        writer.begin(np.zeros(1, "f4"), env=0)
        with pytest.raises(InvalidEpisode, match="narrowed"):
            writer.step_batch(
                parts["action"][:1], parts["reward"][:1], parts["observation"][:1], [True], [False], extra={"cost": parts["extra"][:1]}
            )
        writer.discard()
    assert len(store) == 0


def test_flat_arrays_keep_their_dtype():
    """MDPDataset narrows no array: d3rlpy makes float32 of everything."""
    store = MDPDataset(FINE, FINE, FINE, [0, 0, 1])
    arrays = to_arrays(store)
    for name in ("observations", "actions", "rewards"):
        assert arrays[name].dtype == np.float64 and (arrays[name] == THIRD).all(), name
    half = MDPDataset(FINE.astype(np.float16), FINE.astype(np.float16), FINE.astype(np.float16), [0, 0, 1])
    assert [c.field.dtype.name for c in half.schema.columns] == ["float16", "float16", "float32"]
    lists = MDPDataset([[0.5]] * 3, [[0.5]] * 3, [0.5] * 3, [0, 0, 1])
    assert [c.field.dtype.name for c in lists.schema.columns] == ["float32"] * 3
    with pytest.raises(InvalidEpisode, match="narrowed"):
        append_rows(lists, FINE, [[0.5]] * 3, [0.5] * 3, [0, 0, 1])
    assert append_rows(lists, [[0.1]] * 3, [[0.5]] * 3, [0.5] * 3, [0, 0, 1]) == [1]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(5, "float32"), (2**24, "float32"), (2**24 + 1, "float64"), (-(2**53), "float32"), (2**53 - 1, "float64"), (2**53 + 1, None)],
)
def test_whole_numbers_become_a_float_that_holds_them(value, dtype):
    arrays = (np.full((3, 1), value), np.full((3, 1), 0.5), np.full(3, value))
    if dtype is None:
        with pytest.raises(InvalidInput, match="no float holds"):
            MDPDataset(*arrays, [0, 0, 1])
        return
    store = MDPDataset(*arrays, [0, 0, 1])
    assert store.schema.observation.dtype == store.schema.reward.dtype == dtype
    assert int(store.episodes[0].observation[0, 0]) == int(store.episodes[0].reward[0]) == value


@pytest.mark.parametrize("format", ["d4rl", "npz", "d3rlpy", "d3rlpy-v1", "minari", "store"])
def test_importers_keep_float64(tmp_path, format):
    importers = pytest.importorskip("offrld.importers")
    source = {"observations": FINE, "actions": np.float64([[0.1], [0.2], [0.3]]), "rewards": FINE[:, 0], "terminals": [False, False, True]}
    source = {name: np.asarray(value) for name, value in source.items()}
    if format == "minari":
        source["next_observations"] = FINE
    store = importers.import_into(source, tmp_path / "s")
    path = importers.export_dataset(store, tmp_path / "x-v0", format)
    again = importers.import_into(path, tmp_path / "again", format=format.removesuffix("-v1"))
    for each in (store, again):
        assert [c.field.dtype.name for c in each.schema.columns] == ["float64"] * 3
        assert (each.episodes[0].observation == THIRD).all() and (each.episodes[0].reward == THIRD).all()
        assert each.episodes[0].action[:, 0].tolist() == [0.1, 0.2, 0.3]
