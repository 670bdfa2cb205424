"""Leaving out bad episodes: the good ones are exactly those of the same source without the bad, and each bad one is named with its row."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl.errors import EmptyStore, InvalidInput
from offrl_store import check
from offrld.importers import columns, import_into, open_source


def import_skipping(source, path, **options):
    skipped, lines = [], []
    store = import_into(source, path, skip_bad=skipped.append, message=lines.append, **options)
    assert check(path) == []
    return store, skipped


def test_a_bad_value_costs_its_episode_alone(flat, tmp_path, same_episodes):
    good = import_into(flat, tmp_path / "good")
    for key, where in (("observations", (5, 1)), ("actions", (4, 0)), ("rewards", (6,))):
        bad = {**flat, key: flat[key].copy()}
        bad[key][where] = np.nan
        store, (skipped,) = import_skipping(bad, tmp_path / key)
        same_episodes(store.episodes, [good.episodes[0], good.episodes[2]])
        assert (skipped.episode, skipped.row) == (1, where[0])
        index = ", ".join(map(str, where))
        assert skipped.why == f"arrays: {key}[{index}] is nan"


@settings(max_examples=60, deadline=None)
@given(
    ends=st.lists(st.integers(0, 39), max_size=8),
    bad=st.lists(st.tuples(st.sampled_from("oar"), st.integers(0, 39)), max_size=6),
    rows=st.integers(1, 9),
)
def test_whatever_is_bad_the_others_are_kept(tmp_path_factory, ends, bad, rows):
    """However the blocks lie: the episodes without a bad row, and the rows of the others."""
    arrays = {
        "observations": np.arange(40.0).reshape(-1, 1),
        "actions": np.linspace(-1, 1, 40).reshape(-1, 1),
        "rewards": np.arange(40.0),
        "terminals": np.isin(np.arange(40), [*ends, 39]),
    }
    stops = np.flatnonzero(arrays["terminals"]) + 1
    for key, row in bad:
        arrays[{"o": "observations", "a": "actions", "r": "rewards"}[key]][row] = np.inf
    wrong = {int(np.searchsorted(stops, row, side="right")) for _, row in bad}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BLOCK_ROWS", rows)
        with open_source(arrays, skip_bad=True) as source:
            found = [(each.number, each.observation[0, 0], each.steps) for each in source.episodes]
    starts = [0, *stops[:-1].tolist()]
    assert found == [(i, starts[i], int(stops[i]) - starts[i]) for i in range(len(stops)) if i not in wrong]
    assert set(source.bad.skipped) == wrong
    assert all(starts[each.episode] <= each.row < stops[each.episode] for each in source.bad.skipped.values())


def test_a_damaged_part_of_a_file_costs_the_episodes_in_it(tmp_path):
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for key, width in (("observations", 3), ("actions", 2)):
            file.create_dataset(key, data=np.random.default_rng(0).normal(size=(400, width)), chunks=(50, width), compression="gzip")
        file["rewards"], file["terminals"] = np.zeros(400), np.arange(400) % 20 == 19
        damaged = file["observations"].id.get_chunk_info(3).byte_offset
    raw = bytearray(path.read_bytes())
    raw[damaged : damaged + 30] = b"\xff" * 30
    path.write_bytes(raw)
    with pytest.raises(InvalidInput, match="'observations' cannot be read at rows"):
        import_into(path, tmp_path / "store")
    store, skipped = import_skipping(path, tmp_path / "store")
    assert [each.episode for each in skipped] == [7, 8, 9] and len(store) == 17  # rows 150 to 199
    assert "'observations' cannot be read at rows 140 to 159" in skipped[0].why


def test_an_epoch_whose_frames_are_cut_in_the_middle_keeps_what_is_there(tmp_path):
    """A gz cut in the middle is refused unless bad episodes are to be left out."""
    rng, folder = np.random.default_rng(0), tmp_path / "epoch"
    folder.mkdir()
    arrays = {
        "observation": rng.integers(0, 255, (400, 84, 84), np.uint8),
        "action": np.zeros(400, np.int32),
        "reward": np.zeros(400, np.float32),
        "terminal": (np.arange(400) % 40 == 39).astype(np.uint8),
    }
    for name, array in arrays.items():
        with gzip.open(folder / f"{name}.gz", "wb", compresslevel=1) as file:
            np.lib.format.write_array(file, array)
    whole = (folder / "observation.gz").read_bytes()
    (folder / "observation.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match="'observation' cannot be read"):
        import_into(folder, tmp_path / "store", format="atari")
    store, skipped = import_skipping(folder, tmp_path / "store", format="atari")
    assert 3 <= len(store) <= 5 and [each.episode for each in skipped] == list(range(len(store), 10))
    np.testing.assert_array_equal(store.episodes[2].observation[:, 0], arrays["observation"][80:120])


def test_rows_before_a_wrong_checksum_are_not_trusted(flat, tmp_path):
    """An archive keeps one checksum per array: which episode is wrong nobody knows."""
    np.savez(tmp_path / "data.npz", **flat)
    raw = bytearray((tmp_path / "data.npz").read_bytes())
    raw[raw.index(flat["rewards"].tobytes())] ^= 1
    (tmp_path / "data.npz").write_bytes(raw)
    with pytest.raises(InvalidInput, match="Bad CRC-32"):
        import_into(tmp_path / "data.npz", tmp_path / "store", skip_bad=print)
    assert not (tmp_path / "store").exists()


def test_recorded_episodes_of_another_shape_are_left_out(write_h5, tmp_path):
    arrays = {"columns": [b"observations", b"actions", b"rewards", b"terminated"], "num_episodes": 4, "version": "2.1"}
    for i, width in enumerate((4, 5, 4, 4)):
        arrays |= {f"observations_{i}": np.full((3, width), i, np.float32), f"actions_{i}": np.zeros((3, 1), np.float32)}
        arrays |= {f"rewards_{i}": np.ones((3, 1), np.float32), f"terminated_{i}": True}
    arrays["rewards_3"][2] = np.nan
    path = write_h5(arrays, "mixed.h5")
    with pytest.raises(InvalidInput, match=r"'observations_1' holds float32 \(5,\)"):
        import_into(path, tmp_path / "store")
    store, skipped = import_skipping(path, tmp_path / "store")
    assert [each.observation[0, 0] for each in store.episodes] == [0, 2]
    assert [(each.episode, each.row) for each in skipped] == [(1, None), (3, 2)]
    assert skipped[1].why == "mixed.h5: rewards_3[2, 0] is nan"


def test_an_append_leaves_out_what_the_dataset_s_bounds_refuse(flat, tmp_path):
    store = import_into({**flat, "action_low": [-1, -1], "action_high": [1, 1]}, tmp_path / "store")
    more = {**flat, "actions": flat["actions"].copy()}
    more["actions"][5, 1] = 3
    skipped = []
    assert len(import_into(more, store.path, append=True, skip_bad=skipped.append)) == 5
    assert [(each.episode, each.row) for each in skipped] == [(1, 1)] and "3.0 is outside the bounds" in skipped[0].why
    assert not skipped[0].why.startswith("episode")


def test_a_source_without_a_good_episode_is_refused_with_the_first_reason(flat, tmp_path):
    bad = {**flat, "rewards": np.full(10, np.nan, np.float32)}
    with pytest.raises(EmptyStore, match=r"no good episode with a transition; the first bad one: arrays: rewards\[0\] is nan"):
        import_into(bad, tmp_path / "store", skip_bad=print)
    assert not (tmp_path / "store").exists()


def test_extra_fields_that_a_dataset_lacks_are_not_appended(flat, tmp_path):
    store = import_into(flat, tmp_path / "store")
    lines = []
    import_into({**flat, "infos/cost": np.arange(10)}, store.path, append=True, message=lines.append)
    assert "not appended: cost (the dataset has no such extra field)" in lines
    with_cost = import_into({**flat, "infos/cost": np.arange(10)}, tmp_path / "cost")
    with pytest.raises(InvalidInput, match=r"the dataset observation, action, reward, extra.cost"):
        import_into(flat, with_cost.path, append=True)
