"""Bad input: one line that names the file, the key or row and the value, a hint that says what to do, and nothing left behind."""

from __future__ import annotations

import os
import pickle

import h5py
import numpy as np
import pytest

from offrl.errors import EmptyStore, InvalidInput, Unknown
from offrld.importers import import_into, open_source


def refused(source, tmp_path, match, kind=InvalidInput, **options) -> InvalidInput:
    """Imports, expects the error, and looks that it is one line with a hint and that no store is there."""
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(kind, match=match) as caught:
        import_into(source, tmp_path / "store", **options)
    assert "\n" not in str(caught.value) and caught.value.hint and caught.value.exit_status == 2
    assert sorted(os.listdir(tmp_path)) == before
    return caught.value


def test_a_missing_file(tmp_path):
    refused(tmp_path / "nothing.hdf5", tmp_path, "there is no file or folder .*nothing.hdf5")
    refused(tmp_path / "nothing.hdf5", tmp_path, "there is no file or folder", format="d4rl")


def test_an_unknown_format_names_the_nearest(tmp_path, flat):
    assert refused(flat, tmp_path, "unknown format 'd4r'", Unknown, format="d4r").hint == "did you mean 'd4rl'?"
    refused(flat, tmp_path, "a dict of arrays is not of format 'minari'", format="minari")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"observations,actions\n1,2\n", "notes.txt is of no known format: it starts with b'observat'"),
        (b"", "is of no known format: it is empty"),
        (pickle.dumps([1, 2, 3]), "it is a pickle, which is never read"),
        (b"\x93NUMPY\x01\x00", "it is a single array"),
        (b"PK\x03\x04 but no archive", "it starts with b'PK"),
    ],
)
def test_a_file_of_no_known_format(tmp_path, content, part):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    hint = refused(path, tmp_path, part).hint
    assert all(name in hint for name in ("d4rl", "minari", "npz", "d3rlpy", "store"))
    for name in ("d4rl", "npz", "d3rlpy"):
        refused(path, tmp_path, "notes.txt is not a|notes.txt is empty", format=name)
    refused(path, tmp_path, "is not the folder of a Minari dataset", format="minari")
    refused(path, tmp_path, "cannot be opened as a store", format="store")


def test_a_folder_where_a_file_is_due(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("d4rl", "npz", "d3rlpy"):
        refused(tmp_path / "folder", tmp_path, "folder is a folder", format=name)
    refused(tmp_path / "folder", tmp_path, "is of no known format: it is a folder with nothing")


def test_hdf5_without_the_arrays(tmp_path, write_h5, flat):
    refused(write_h5({"states": np.zeros(3)}), tmp_path, "data.hdf5 is of no known format: it is HDF5 with states")
    for key in ("rewards", "terminals"):
        error = refused(write_h5({**flat, key: None}), tmp_path, f"data.hdf5 holds no '{key}' .it holds actions, observations")
        assert "needed: observations, actions, rewards, terminals" in error.hint
    refused(write_h5({**flat, "observations": None}), tmp_path, "data.hdf5 holds no 'observations'", format="d4rl")
    refused(write_h5({**flat, "actions": None}), tmp_path, "data.hdf5 holds no 'actions'", format="d3rlpy")


def test_arrays_missing_from_a_dict(tmp_path, flat):
    refused({key: value for key, value in flat.items() if key != "terminals"}, tmp_path, "arrays holds no 'terminals'")
    dones = {**flat, "dones": flat["terminals"]}
    del dones["terminals"]
    assert "do not say whether the task ended" in refused(dones, tmp_path, "arrays holds no 'terminals'").hint
    refused({**flat, "terminated": flat["terminals"]}, tmp_path, "holds both 'terminals' and 'terminated'")


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (("observations", "observations/x"), "holds an array 'observations' and 'observations/x'"),
        (("observations/a/b", "observations/a.b"), "would both be 'a.b'"),
        (("infos/a/b", "infos/a.b"), "would both be 'a.b'"),
    ],
)
def test_arrays_that_would_be_one_field_are_refused(tmp_path, flat, names, part):
    arrays = dict(flat)
    rows = arrays["observations"]
    if names[0] != "observations" and names[0].startswith("observations"):
        del arrays["observations"]
    arrays |= {name: rows + place for place, name in enumerate(names)}
    refused(arrays, tmp_path, part)
    np.savez(tmp_path / "x.npz", **arrays)
    refused(tmp_path / "x.npz", tmp_path, part)


def test_keys_of_a_dict_that_become_one_are_refused(tmp_path, flat):
    arrays = dict(flat)
    rows = arrays.pop("observations")
    refused(arrays | {"observations": {"a": rows}, "observations/a": rows + 1}, tmp_path, "holds 'observations/a' twice")
    refused(arrays | {"observations": {1: rows, "1": rows + 1}}, tmp_path, "holds 'observations/1' twice")


def test_whole_numbers_of_a_list_that_no_float_holds_are_refused(tmp_path, flat):
    arrays = dict(flat)
    arrays["observations"] = [[2**53 + 1, 0.5] for _ in arrays["rewards"]]
    refused(arrays, tmp_path, "whole numbers that no float holds")


def test_a_file_cut_short(tmp_path, write_h5, flat):
    path = write_h5({key: np.repeat(value, 1000, axis=0) for key, value in flat.items()})
    path.write_bytes(path.read_bytes()[:40_000])
    refused(path, tmp_path, "data.hdf5 cannot be opened: .*truncated file")
    np.savez(tmp_path / "data.npz", **flat)
    raw = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(raw[: len(raw) // 2])
    refused(tmp_path / "data.npz", tmp_path, "data.npz is not a .npz file, or is cut short", format="npz")


def test_damaged_compressed_data(tmp_path, flat):
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for key, value in flat.items():
            file.create_dataset(key, data=value, chunks=value.shape, compression="gzip")
        offset = file["rewards"].id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(raw)
    assert "damaged" in refused(path, tmp_path, "data.hdf5: 'rewards' cannot be read at rows 0 to 9").hint


def test_damaged_members_of_an_archive(tmp_path, flat):
    path = tmp_path / "data.npz"
    np.savez(path, **flat)
    raw = bytearray(path.read_bytes())
    at = raw.index(flat["rewards"].tobytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    refused(path, tmp_path, "data.npz: 'rewards' cannot be read.*: Bad CRC-32")


def test_lengths_that_differ_name_both(tmp_path, flat, write_h5):
    for key in ("actions", "rewards", "terminals", "timeouts"):
        arrays = {**flat, key: flat[key][:-2]}
        refused(arrays, tmp_path, f"arrays: 'observations' has 10 rows and '{key}' has 8")
        refused(write_h5(arrays), tmp_path, f"data.hdf5: 'observations' has 10 rows and '{key}' has 8")
    refused({**flat, "next_observations": flat["observations"][:-1]}, tmp_path, "'observations' has 10 rows and 'next_observations' has 9")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_values_name_key_and_row(tmp_path, flat, value):
    for key, where in (("observations", (7, 1)), ("actions", (3, 0)), ("rewards", (9,))):
        arrays = {**flat, key: flat[key].copy()}
        arrays[key][where] = value
        index = ", ".join(map(str, where))
        refused(arrays, tmp_path, rf"arrays: {key}\[{index}\] is {value}")
    following = np.concatenate([flat["observations"][1:], flat["observations"][:1]])
    following[6, 2] = value
    refused({**flat, "next_observations": following}, tmp_path, rf"next_observations\[6, 2\] is {value}")


def test_an_empty_dataset(tmp_path, flat, write_h5):
    empty = {key: value[:0] for key, value in flat.items()}
    refused(empty, tmp_path, "arrays holds no steps", EmptyStore)
    refused(write_h5(empty), tmp_path, "data.hdf5 holds no steps", EmptyStore)
    header = {"columns": [b"observations"], "num_episodes": 0, "version": "2.1"}
    refused(write_h5(header, "none.h5"), tmp_path, "none.h5 holds no episodes", EmptyStore)


def test_a_dataset_without_a_single_transition(tmp_path, flat):
    one = {key: value[4:5] for key, value in flat.items()}
    refused(one, tmp_path, "the source holds no transition", EmptyStore)


def test_actions_outside_the_declared_space_name_row_value_and_bounds(tmp_path, flat, write_h5):
    actions = np.zeros((10, 1), np.float32)
    actions[6] = 2.5
    path = write_h5({**flat, "actions": actions}, attributes={"env_id": "Pendulum-v1"})
    error = refused(path, tmp_path, r"data.hdf5: actions\[6, 0\] is 2.5, outside \[-2, 2\] of Pendulum-v1")
    assert "remove 'env_id'" in error.hint
    discrete = {**flat, "actions": np.array([0, 1, 1, 0, 2, 0, 0, 0, 0, 0])}
    path = write_h5(discrete, attributes={"env_id": "CartPole-v1"})
    refused(path, tmp_path, r"data.hdf5: actions\[4\] is 2, outside the 2 actions \(0 to 1\) of CartPole-v1")
    refused({**discrete, "action_n": 2}, tmp_path, r"arrays: actions\[4\] is 2, outside the 2 actions \(0 to 1\) of the file")
    refused({**flat, "actions": np.full(10, -1)}, tmp_path, r"actions\[0\] is -1, outside the range of discrete actions")


def test_actions_of_another_kind_than_the_environment(tmp_path, flat, write_h5):
    halves = {**flat, "actions": np.array([0, 1, 0.5, 0, 1, 0, 1, 0, 1, 0])}
    path = write_h5(halves, attributes={"env_id": "CartPole-v1"})
    refused(path, tmp_path, r"data.hdf5: actions\[2\] is 0.5, but the actions are discrete")
    refused(write_h5({**halves, "discrete_action": True}, "old.h5"), tmp_path, r"old.h5: actions\[2\] is 0.5, but the actions are discrete")
    path = write_h5(flat, attributes={"env_id": "Pendulum-v1"})
    refused(path, tmp_path, "'actions' has 2 dimensions, the actions of Pendulum-v1 have 1")


def test_shapes_that_no_step_has(tmp_path, flat):
    refused({**flat, "rewards": np.zeros((10, 2))}, tmp_path, r"'rewards' has shape \(10, 2\)")
    refused({**flat, "actions": np.zeros((10, 2), int)}, tmp_path, "several discrete actions per step are not supported")
    refused({**flat, "actions": np.zeros((10, 2, 2))}, tmp_path, r"'actions' has rows of shape \(2, 2\)")
    refused({**flat, "terminals": 1.0}, tmp_path, "'terminals' is a single value")
    refused({**flat, "terminals": np.arange(10)}, tmp_path, r"terminals\[2\] is 2")
    refused({**flat, "observations": [[1.0], [1.0, 2.0]] * 5}, tmp_path, "the rows of 'observations' differ in shape")
    refused({**flat, "next_observations": flat["observations"].astype(float)}, tmp_path, "'next_observations' holds float64")


def test_objects_are_never_unpickled(tmp_path, flat):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    for key in ("observations", "env_id"):
        np.savez(tmp_path / "data.npz", **{**flat, key: np.array([Trap()] * 10, dtype=object)})
        refused(tmp_path / "data.npz", tmp_path, f"data.npz: '{key}'")
        assert not (tmp_path / "sprung").exists()


def test_text_is_no_data(tmp_path, flat, write_h5):
    refused({**flat, "observations": np.array(["a"] * 10)}, tmp_path, "'observations' has dtype <U1, which holds no plain numbers")
    refused(write_h5({**flat, "rewards": ["a"] * 10}), tmp_path, "'rewards' has dtype object")


def test_files_that_point_at_other_files_are_refused(tmp_path, flat, write_h5):
    secret = write_h5({"observations": flat["observations"]}, "secret.hdf5")
    path = write_h5({key: value for key, value in flat.items() if key != "observations"})
    with h5py.File(path, "a") as file:
        file["observations"] = h5py.ExternalLink(str(secret), "observations")
    refused(path, tmp_path, "'observations' is a link out of the file")
    with h5py.File(path, "a") as file:
        del file["observations"]
        file.create_dataset("observations", (10, 3), np.float32, external=[(str(secret), 0, 120)])
    refused(path, tmp_path, "'observations' keeps its data in another file")
    layout = h5py.VirtualLayout((10, 3), np.float32)
    layout[:] = h5py.VirtualSource(str(secret), "observations", (10, 3))
    with h5py.File(path, "a") as file:
        del file["observations"]
        file.create_virtual_dataset("observations", layout)
    refused(path, tmp_path, "'observations' keeps its data in another file")


def test_d3rlpy_files_of_another_version(tmp_path, write_h5):
    header = {"columns": [b"observations"], "num_episodes": 1}
    refused(write_h5({**header, "version": "2.0"}, "new.h5"), tmp_path, "new.h5 has the layout version 2.0; expected 2.1")
    refused(write_h5({**header, "version": "2.1"}, "new.h5"), tmp_path, "new.h5 holds no 'actions_0'")


def test_an_error_leaves_no_file_open(tmp_path, write_h5, flat):
    path = write_h5({**flat, "rewards": flat["rewards"][:-1]})
    refused(path, tmp_path, "'rewards' has 9")
    with pytest.raises(InvalidInput):
        open_source(path)
    with h5py.File(path, "a") as file:  # HDF5 refuses to write to a file that is open for reading
        file["more"] = 1


def test_an_option_that_a_format_lacks_names_the_nearest(tmp_path, flat):
    refused(flat, tmp_path, "the format 'npz' has no option 'percentile'", Unknown, options={"percentile": 0.5})


def test_headers_that_declare_too_much_are_refused_before_anything_is_read(tmp_path, flat, monkeypatch):
    """A damaged or hostile file: sizes are bounded by what a step and an episode may take, not by what the machine has."""
    import io
    import zipfile

    def member(shape):
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return file.getvalue() + bytes(400)

    shapes = {(10, 10**12): "one row of 'observations'", (10**12, 3): "has 1000000000000 rows", (10, 2**62, 4): "one row of"}
    for shape, part in shapes.items():
        path = tmp_path / "data.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("observations.npy", member(shape))
            for key in ("actions", "rewards", "terminals"):
                with archive.open(f"{key}.npy", "w") as entry:
                    np.lib.format.write_array(entry, flat[key])
        refused(path, tmp_path, part)
    monkeypatch.setattr("offrld.importers.columns.MAX_EPISODE_BYTES", 40)
    refused(flat, tmp_path, "arrays: rows 0 to 3 of 'observations' are one episode, of 48 bytes")


def test_groups_that_hold_themselves_and_chunks_that_no_memory_holds(tmp_path, write_h5, flat):
    path = write_h5({key: value for key, value in flat.items() if key != "observations"})
    with h5py.File(path, "a") as file:
        group = file.create_group("observations")
        group["inner"] = group
        group["rows"] = flat["observations"]
    refused(path, tmp_path, "is nested more than 16 deep")
    path = write_h5({key: value for key, value in flat.items() if key != "observations"}, "bomb.hdf5")
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", (10, 3), np.float32, maxshape=(None, 3), chunks=(100_000_000, 3), compression="gzip")
    refused(path, tmp_path, "'observations' is kept in chunks of 1,200,000,000 bytes")


CHOICES = np.array([[0, 0], [1, 2], [2, 1], [0, 1]])


def several_choices(actions, **declared) -> dict:
    """Two episodes with several choices at once, 0 to 2 each."""
    return {
        "observations": np.zeros((4, 3), np.float32),
        "actions": actions,
        "rewards": np.zeros(4),
        "terminals": np.array([0, 1, 0, 1], bool),
        "action_low": np.zeros(2),
        "action_high": np.full(2, 2),
        "action_kind": "MultiDiscrete",
        **declared,
    }


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int64", "uint8"])
def test_several_choices_are_stored_as_whole_numbers_whatever_dtype_a_file_has(tmp_path, dtype):
    high = [300, 2] if dtype == "uint8" else [2, 2]  # a bound that the file's dtype does not hold
    arrays = several_choices(CHOICES.astype(dtype), action_high=np.array(high))
    store = import_into(arrays, tmp_path / "store")
    field = store.schema.action
    assert field.dtype == ("int8" if dtype == "int8" else "int64")
    assert (field.low.tolist(), field.high.tolist()) == ([0, 0], high)
    assert store.metadata["action_space"] == {"kind": "MultiDiscrete"}
    np.testing.assert_array_equal(np.concatenate([episode.action for episode in store.episodes]), CHOICES)


def test_choices_that_are_not_whole_are_refused(tmp_path):
    half = CHOICES + np.array([[0, 0], [0, 0], [0, 0.5], [0, 0]])
    refused(several_choices(half), tmp_path, r"1\.5, but MultiDiscrete actions are whole numbers")
    refused(several_choices(CHOICES, action_high=np.array([2, 2.5])), tmp_path, r"choices\[1\] lie between 0 and 2\.5")
    refused(several_choices(CHOICES, action_high=np.array([2, np.inf])), tmp_path, r"choices\[1\] lie between 0 and inf")


@pytest.mark.parametrize("count", [0, -3, 2.5, 1 << 40, 10**30, np.nan, np.inf])
def test_a_number_of_actions_that_no_policy_has_is_refused(tmp_path, count):
    arrays = several_choices(CHOICES[:, 0], action_n=np.float64(count))
    refused(
        {key: arrays[key] for key in ("observations", "actions", "rewards", "terminals", "action_n")}, tmp_path, "the number of actions is"
    )
