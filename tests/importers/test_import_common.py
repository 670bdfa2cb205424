"""Options that every format takes, and what is in memory: bounds, images with their channels last, tensors, stores and episodes."""

from __future__ import annotations

import cases
import h5py
import numpy as np
import pyarrow as pa
import pytest
import torch

import offrld
from offrl.errors import InvalidInput
from offrl_store import Episode, EpisodeStore
from offrld.importers import export_dataset, import_into


def said(source, path, **options):
    lines = []
    store = import_into(source, path, options=options or None, message=lines.append)
    return store, lines


# --- Bounds ---
@pytest.mark.parametrize("how", ["dict", "npz", "hdf5", "options"])
def test_finite_bounds_are_kept_beside_infinite_ones(flat, write_h5, tmp_path, how):
    bounds = {"action_low": np.array([-np.inf, -5.0]), "action_high": np.array([np.inf, 7.0])}
    if how == "options":
        store, lines = said(flat, tmp_path / "store", action_low=[-float("inf"), -5], action_high=[float("inf"), 7])
    elif how == "hdf5":
        store, lines = said(write_h5(flat, attributes=bounds), tmp_path / "store")
    elif how == "npz":
        np.savez(tmp_path / "data.npz", **flat, **bounds)
        store, lines = said(tmp_path / "data.npz", tmp_path / "store")
    else:
        store, lines = said({**flat, **bounds}, tmp_path / "store")
    action, data = store.schema.action, flat["actions"]
    assert (action.low.tolist(), action.high.tolist()) == ([float(data[:, 0].min()), -5], [float(data[:, 0].max()), 7])
    assert store.metadata["bounds"] == "declared"
    assert sum("bound of the actions is infinite" in line and "for dimension 0:" in line for line in lines) == 2
    assert EpisodeStore.open(store.path).schema.action == action


def test_one_bound_alone_and_one_number_for_all_dimensions(flat, tmp_path):
    action = said(flat, tmp_path / "a", action_low=-3)[0].schema.action
    assert action.low.tolist() == [-3, -3] and action.high.tolist() == flat["actions"].max(0).tolist()
    action = said({**flat, "action_high": 3.0}, tmp_path / "b", action_low=[-2, -3])[0].schema.action
    assert (action.low.tolist(), action.high.tolist()) == ([-2, -3], [3, 3])
    assert said({**flat, "actions": np.arange(10) % 3}, tmp_path / "c", action_n=5)[0].schema.action.n == 5


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"action_low": [0, 1], "action_high": [1, 0.5]}, r"action_low\[1\] is 1 and action_high 0.5"),
        ({"action_low": float("nan")}, "action_low is nan"),
        ({"action_low": "low"}, "action_low is 'low'"),
        ({"action_low": []}, r"action_low is \[\]"),
        ({"action_low": [[1, 2]]}, "action_low is"),
        ({"action_low": [1, 2], "action_high": [3, 4, 5]}, "action_low has 2 values and action_high 3"),
        ({"action_low": [-1, -1, -1]}, "has 2 dimensions, the actions of the options have 3"),
        ({"action_high": -0.99}, r"actions\[\d+, \d\] is .*, outside \[-inf, -0.99\] of the options"),
        ({"action_n": 0}, "action_n is 0"),
        ({"action_n": 2, "action_low": 0}, "are both given"),
        ({"channels": "middle"}, "channels is 'middle'"),
        ({"chanels": "last"}, "has no option 'chanels'"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(flat, tmp_path, options, part):
    with pytest.raises(InvalidInput, match=part) as caught:
        import_into(flat, tmp_path / "store", options=options)
    assert caught.value.hint and not (tmp_path / "store").exists()


def test_the_hint_about_bounds_names_options_that_work(flat, tmp_path):
    wrong = {**flat, "action_low": -0.1, "action_high": 0.1}
    with pytest.raises(InvalidInput, match=r"outside \[-0.1, 0.1\] of the file") as caught:
        import_into(wrong, tmp_path / "store")
    assert "--option action_low=... --option action_high=..." in caught.value.hint
    assert said(wrong, tmp_path / "store", action_low=-1, action_high=1)[0].schema.action.high.tolist() == [1, 1]


def test_a_store_gets_the_bounds_that_the_user_states(flat, tmp_path):
    first = said(flat, tmp_path / "a")[0]
    wider = said(first.path, tmp_path / "b", action_low=-2, action_high=[2, np.inf])[0].schema.action
    assert wider.low.tolist() == [-2, -2] and wider.high.tolist() == [2, float(flat["actions"][:, 1].max())]
    store = import_into({**flat, "actions": flat["actions"] / 2}, tmp_path / "b", append=True, options={"action_high": 2})
    assert len(store) == 6


# --- Images ---
PICTURES = {"rgb": (12, 10, 3), "rgba": (12, 10, 4), "grey": (12, 10, 1), "plain": (12, 10)}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("how", ["dict", "npz", "hdf5", "store", "named"])
def test_images_are_turned_on_request_and_said(flat, write_h5, tmp_path, kind, how):
    pixels = np.random.default_rng(0).integers(0, 256, (10, *PICTURES[kind]), np.uint8)
    data = {**flat, "observations": {"eye": pixels, "arm": flat["observations"]} if how == "named" else pixels}
    if how == "npz":
        np.savez(tmp_path / "data.npz", **data)
        source = tmp_path / "data.npz"
    else:
        source = write_h5(data) if how == "hdf5" else said(data, tmp_path / "first")[0].path if how == "store" else data
    store, lines = said(source, tmp_path / "store", channels="last")
    name = "eye" if how == "named" else "observation"
    due = pixels[:, None] if pixels.ndim == 3 else np.moveaxis(pixels, -1, 1)
    found = [each.observation["eye"] if how == "named" else each.observation for each in store.episodes]
    np.testing.assert_array_equal(np.concatenate(found), due)
    assert f"{name!r} is turned to channels first: {list(PICTURES[kind])} to {list(due.shape[1:])}" in lines


def test_the_errors_about_images_name_the_option(flat, tmp_path):
    images = {**flat, "observations": np.zeros((10, 12, 10, 3), np.uint8)}
    store, lines = said(images, tmp_path / "store")
    assert any("--option channels=last" in line for line in lines)
    with pytest.raises(InvalidInput, match="images with their channels last") as caught:
        offrld.train("bc", store, steps=1, config={"batch_size": 2})
    assert "--option channels=last" in caught.value.hint
    store, lines = said(store, tmp_path / "turned", channels="last")
    assert not any("--option channels=last" in line for line in lines)
    offrld.train("bc", store, steps=1, config={"batch_size": 2, "encoder.filters": [4, 3, 2]}, threads=1)


def test_values_and_dtypes_of_other_images_stay(flat, tmp_path):
    depth = np.random.default_rng(0).integers(0, 1 << 16, (10, 12, 10, 1), np.uint16)
    store, _ = said({**flat, "observations": depth}, tmp_path / "a", channels="last")
    np.testing.assert_array_equal(np.concatenate([each.observation for each in store.episodes])[:, 0], depth[..., 0])
    store, lines = said(flat, tmp_path / "b", channels="last")
    assert any("channels=last turns nothing" in line for line in lines) and store.schema.observation.shape == (3,)


# --- In memory ---
def test_tensors_are_arrays(flat, tmp_path, same_episodes):
    tensors = {key: torch.from_numpy(value) for key, value in flat.items()}
    due = list(import_into(flat, tmp_path / "due").episodes)
    tensors["observations"] = tensors["observations"].requires_grad_()
    same_episodes(import_into(tensors, tmp_path / "a").episodes, due)
    tensors["observations"] = list(tensors["observations"])
    same_episodes(import_into(tensors, tmp_path / "b").episodes, due)
    nested = {**tensors, "observations": {"arm": {"left": torch.zeros(10, 3, dtype=torch.bfloat16)}}}
    assert import_into(nested, tmp_path / "c").schema.observation["arm.left"].dtype == np.float32


def test_stores_episodes_and_tables_are_sources(flat, tmp_path, same_episodes):
    store = import_into(flat, tmp_path / "due")
    episodes = list(store.episodes)
    same_episodes(import_into(store, tmp_path / "a").episodes, episodes)
    same_episodes(import_into(episodes, tmp_path / "b").episodes, episodes)
    same_episodes(import_into((each for each in episodes), tmp_path / "c").episodes, episodes)
    table = pa.table({"episode": [0, 0, 1, 1], "obs_0": [1.0, 2, 3, 4], "action_0": [0.1] * 4, "reward": [1.0] * 4})
    assert len(import_into(table, tmp_path / "d")) == 2
    with_gradient = Episode(torch.zeros(4, 3, requires_grad=True), torch.zeros(3, 2), [1.0, 2, 3])
    assert import_into([with_gradient], tmp_path / "e").episodes[0].observation.dtype == np.float32


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (np.ma.masked_equal(np.arange(30.0).reshape(10, 3), 5), r"'observations'\[1, 2\] is masked"),
        (np.zeros((10, 3), complex), "dtype complex128"),
        (np.zeros((10, 3), "M8[s]"), "dtype datetime64"),
        (np.zeros((10, 3), object), "dtype object"),
        (np.full((10, 3), np.longdouble(1) / 3), "which no float64 holds"),
        (["1.5"] * 10, "holds text: 1.5"),
        ([[1.0], [1.0, 2.0]] * 5, "differ in shape"),
    ],
)
def test_what_holds_no_plain_numbers_is_refused(flat, tmp_path, value, part):
    with pytest.raises(InvalidInput, match=part):
        import_into({**flat, "observations": value}, tmp_path / "store")
    for source in (5, None, np.zeros(3), b"bytes", [1, 2], []):
        with pytest.raises(InvalidInput):
            import_into(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_rewards_and_actions_keep_their_values_or_are_refused(flat, tmp_path):
    rewards = np.full(10, 2**53 + 1)
    with pytest.raises(InvalidInput, match=r"rewards\[0\] is 9007199254740993, which no float64 holds"):
        import_into({**flat, "rewards": rewards}, tmp_path / "store")
    whole = {**flat, "actions": np.full((10, 2), 2**24 + 1)}
    store, _ = said(whole, tmp_path / "store", action_low=0, action_high=2**25)
    assert store.schema.action.dtype == np.int64 and store.episodes[0].action.max() == 2**24 + 1


# --- Round trips ---
@pytest.mark.parametrize("final", [True, False], ids=["final", "no final"])
@pytest.mark.parametrize("case", cases.FIELDS)
@pytest.mark.parametrize("format", ["npz", "d4rl", "store"])
def test_every_case_comes_back_whole(tmp_path, format, case, final):
    store = cases.store(case, tmp_path / "first", final=final)
    out = tmp_path / {"npz": "out.npz", "d4rl": "out.hdf5", "store": "out"}[format]
    export_dataset(store, out, format)
    back = import_into(out, tmp_path / "back")
    cases.same(back.episodes, store.episodes)
    assert back.schema.same_fields(store.schema)


def test_a_file_open_in_another_program_is_named_so(flat, write_h5, tmp_path):
    import subprocess
    import sys

    path = write_h5(flat)
    code = "import h5py, sys; file = h5py.File(sys.argv[1], 'a'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(InvalidInput, match=r"data.hdf5 is open for writing in another program") as caught:
            import_into(path, tmp_path / "store", format="d4rl")
        assert "damaged" not in str(caught.value)
        with pytest.raises(InvalidInput, match="open for writing in another program"):
            import_into(path, tmp_path / "store")
    assert len(import_into(path, tmp_path / "store")) == 3
    (tmp_path / "empty.hdf5").touch()
    with pytest.raises(InvalidInput, match=r"empty.hdf5 is empty"):
        import_into(tmp_path / "empty.hdf5", tmp_path / "other", format="d4rl")
    with h5py.File(path, "r"):
        assert len(import_into(path, tmp_path / "read")) == 3
