"""Flat arrays become the episodes that a row-by-row reading gives, whatever their flags and however they are read in blocks."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offrld.importers import columns, d4rl, import_into, open_source


def read_row_by_row(arrays: dict[str, np.ndarray], limit: int | None) -> list[tuple[list[float], list[float], list[float], bool]]:
    """The oracle: (observations, actions, rewards, terminated) per episode, by the rules as the documentation has them."""
    count = len(arrays["actions"])
    following, known = arrays.get("next_observations"), arrays.get("next_observations_known")
    has_next = lambda row: following is not None and (known is None or known[row])  # noqa: E731
    episodes, start = [], 0
    for row in range(count):
        end = bool(arrays["terminals"][row]) or row == count - 1
        if "timeouts" in arrays:
            end = end or bool(arrays["timeouts"][row])
        elif following is None and limit is not None:
            end = end or row - start + 1 == limit
        if not end and has_next(row):
            end = following[row, 0] != arrays["observations"][row + 1, 0]
        if end:
            observations = list(arrays["observations"][start : row + 1, 0])
            if has_next(row):
                observations.append(following[row, 0])
            episodes.append(
                (
                    observations,
                    list(arrays["actions"][start : row + 1, 0]),
                    list(arrays["rewards"][start : row + 1]),
                    bool(arrays["terminals"][row]),
                )
            )
            start = row + 1
    return episodes


@st.composite
def flat_arrays(draw):
    count = draw(st.integers(1, 30))
    flags = st.lists(st.sampled_from([False, False, False, True]), min_size=count, max_size=count)
    arrays = {
        "observations": np.arange(count, dtype=np.float32).reshape(-1, 1),
        "actions": np.linspace(-1, 1, count, dtype=np.float32).reshape(-1, 1),
        "rewards": np.arange(count, dtype=np.float64) / 7,
        "terminals": np.array(draw(flags)),
    }
    if draw(st.booleans()):
        arrays["timeouts"] = np.array(draw(flags)).astype(draw(st.sampled_from(["bool", "uint8", "float32"])))
    if draw(st.booleans()):
        jumps = np.array(draw(flags))
        arrays["next_observations"] = arrays["observations"] + 1 + 100 * jumps.reshape(-1, 1).astype(np.float32)
        if draw(st.booleans()):
            arrays["next_observations_known"] = np.array(draw(flags))
    return arrays


@settings(max_examples=150, deadline=None)
@given(arrays=flat_arrays(), rows=st.integers(1, 7), limit=st.integers(1, 9))
def test_flat_hdf5_equals_a_row_by_row_reading(tmp_path_factory, arrays, rows, limit):
    path = tmp_path_factory.mktemp("flat") / "data.hdf5"
    with h5py.File(path, "w") as file:
        file.update(arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BLOCK_ROWS", rows)
        patch.setattr(d4rl, "DEFAULT_LIMIT", limit)
        with open_source(path) as source:
            found = list(source.episodes)
        expected = read_row_by_row(arrays, limit)
        assert source.count == len(found) == len(expected)
        for episode, (observations, actions, rewards, terminated) in zip(found, expected, strict=True):
            assert episode.observation[:, 0].tolist() == observations
            assert episode.action[:, 0].tolist() == actions
            assert episode.reward.tolist() == rewards
            assert episode.terminated == terminated


@settings(max_examples=60, deadline=None)
@given(arrays=flat_arrays(), rows=st.integers(1, 7), compress=st.booleans())
def test_an_npz_file_and_the_dict_give_the_same_episodes(tmp_path_factory, same_episodes, arrays, rows, compress):
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    (np.savez_compressed if compress else np.savez)(path, **arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BLOCK_ROWS", rows)
        with open_source(path) as source, open_source(arrays) as given_arrays:
            assert source.format == given_arrays.format == "npz"
            found = list(source.episodes)
            same_episodes(found, given_arrays.episodes)
        expected = read_row_by_row(arrays, None)
        assert [episode.observation[:, 0].tolist() for episode in found] == [observations for observations, *_ in expected]


def test_an_episode_is_terminated_where_both_flags_are_set(flat):
    flat["timeouts"] = flat["timeouts"] | flat["terminals"]
    with open_source(flat) as source:
        assert [episode.terminated for episode in source.episodes] == [True, False, True]


def test_rows_after_the_last_end_are_kept_as_a_cut_episode_and_said(flat):
    flat["terminals"][9] = False
    with open_source(flat) as source:
        *_, last = source.episodes
    assert (last.steps, last.terminated, last.final_missing) == (3, False, True)
    assert "the last 3 rows follow no end of an episode: kept as a truncated episode" in source.messages


def test_the_final_observation_comes_from_the_next_observations(flat):
    flat["next_observations"] = np.concatenate([flat["observations"][1:], np.full((1, 3), 7, np.float32)])
    flat["next_observations"][6] = 5
    with open_source(flat) as source:
        episodes = list(source.episodes)
    assert not any(episode.final_missing for episode in episodes)
    assert episodes[1].observation[-1].tolist() == [5, 5, 5]
    assert episodes[2].observation[-1].tolist() == [7, 7, 7]
    assert source.messages == ["the file declares no action bounds: the range of the data is used"]


def test_rounding_between_next_observations_and_observations_does_not_cut(flat):
    flat["next_observations"] = np.concatenate([flat["observations"][1:], flat["observations"][:1]]) * np.float32(1 + 1e-6)
    with open_source(flat) as source:
        assert [episode.steps for episode in source.episodes] == [4, 3, 3]


def test_without_timeouts_a_d4rl_file_is_cut_at_the_environment_s_limit(write_h5):
    count = 450
    arrays = {
        "observations": np.zeros((count, 3), np.float32),
        "actions": np.zeros((count, 1), np.float32),
        "rewards": np.zeros(count, np.float32),
        "terminals": np.zeros(count, bool),
    }
    with open_source(write_h5(arrays, attributes={"env_id": "Pendulum-v1"})) as source:
        assert [episode.steps for episode in source.episodes] == [200, 200, 50]
    assert "there are no timeouts: episodes are cut after 200 steps (2 of them)" in source.messages
    with open_source(write_h5(arrays)) as source:
        assert [episode.steps for episode in source.episodes] == [450]
    assert "there are no timeouts: episodes are cut after 1000 steps (0 of them)" in source.messages


def test_dtypes_of_the_source_are_kept(flat):
    flat["observations"] = flat["observations"].astype(np.float64)
    flat["rewards"] = flat["rewards"].astype(np.float64)
    with open_source(flat) as source:
        assert source.schema.observation.dtype == np.float64 and source.schema.reward.dtype == np.float64
        assert next(source.episodes).observation.dtype == np.float64
    flat["observations"] = np.zeros((10, 1, 4, 4), np.uint8)
    flat["rewards"] = np.arange(10, dtype=np.int64)
    with open_source(flat) as source:
        assert source.schema.observation.dtype == np.uint8 and source.schema.observation.shape == (1, 4, 4)
        assert next(source.episodes).reward.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_big_endian_files_are_read(flat, write_h5, same_episodes):
    swapped = {key: value.astype(value.dtype.newbyteorder(">")) if value.dtype.kind == "f" else value for key, value in flat.items()}
    with open_source(write_h5(swapped)) as source, open_source(flat) as plain:
        same_episodes(source.episodes, plain.episodes)


def test_discrete_actions_are_counted_in_the_data_where_nothing_declares_them(flat):
    for actions in (np.array([0, 1, 2, 1] * 2 + [4, 0]), np.array([0, 1, 2, 1] * 2 + [4, 0], np.uint8).reshape(-1, 1)):
        with open_source({**flat, "actions": actions}) as source:
            assert source.schema.action.discrete and source.schema.action.n == 5
            assert next(source.episodes).action.tolist() == [0, 1, 2, 1]
            assert source.metadata["bounds"] == "inferred"


def test_one_continuous_action_per_step_may_be_flat(flat):
    with open_source({**flat, "actions": flat["actions"][:, 0]}) as source:
        assert source.schema.action.shape == (1,)


def test_an_environment_that_is_not_known_gives_the_data_s_bounds_and_says_so(flat, write_h5):
    for env_id, part in (
        ("hopper-medium-v2", "is not available here"),
        ("os.path:Thing-v0", "a data file cannot make the import load a module"),
    ):
        with open_source(write_h5(flat, attributes={"env_id": env_id})) as source:
            assert source.metadata["env_id"] == env_id and source.metadata["bounds"] == "inferred"
            assert part in source.messages[0]
            np.testing.assert_allclose(source.schema.action.low, flat["actions"].min(0))


def test_rounding_beyond_the_environment_s_bounds_is_set_to_the_bound_and_said(flat, write_h5):
    actions = np.full((10, 1), 2 * (1 + 3e-7), np.float32)
    path = write_h5({**flat, "actions": actions}, attributes={"env_id": "Pendulum-v1"})
    with open_source(path) as source:
        assert next(source.episodes).action.max() == 2
    assert any("10 actions were beyond their bounds by" in line for line in source.messages)


def test_infos_are_kept_with_each_step_and_metadata_with_the_store(flat, write_h5, tmp_path):
    """J20: infos/* with a row per step become extra fields, metadata/* stands in the store's metadata; the rest is named."""
    qpos = np.arange(20.0).reshape(10, 2)
    content = {
        "infos/qpos": qpos,
        "infos/deep/flag": np.arange(10) % 2 == 0,
        "infos/goal": np.zeros(3),
        "infos/note": "text",
        "metadata/algorithm": "SAC",
        "metadata/policy/fc0/weight": np.zeros((256, 17)),
        "metadata/iteration": 7,
        "other": np.zeros(10),
    }
    lines = []
    store = import_into(write_h5({**flat, **content}), tmp_path / "store", message=lines.append)
    assert "not imported: infos/goal, infos/note, other" in lines
    assert list(store.schema.extra) == ["deep.flag", "qpos"]
    np.testing.assert_array_equal(np.concatenate([each.extra["qpos"] for each in store.episodes]), qpos)
    assert store.episodes[1].extra["deep.flag"].tolist() == [True, False, True]
    weights = {"fc0": {"weight": "array of float64, shape (256, 17)"}}
    assert store.metadata["source_metadata"] == {"algorithm": "SAC", "iteration": 7, "policy": weights}


def test_several_observation_fields(flat, write_h5, same_episodes):
    fields = {"observations/camera": np.zeros((10, 1, 8, 8), np.uint8), "observations/arm": flat.pop("observations")}
    with open_source(write_h5({**fields, **flat})) as source:
        assert set(source.schema.observation) == {"camera", "arm"}
        episodes = list(source.episodes)
    nested = {"observations": {"camera": fields["observations/camera"], "arm": fields["observations/arm"]}, **flat}
    for arrays in ({**fields, **flat}, nested):
        with open_source(arrays) as source:
            same_episodes(episodes, source.episodes)


def test_images_with_their_channels_last_are_noticed(flat):
    """J23: networks take [C, H, W]; the data are kept as they are."""
    with open_source({**flat, "observations": np.zeros((10, 12, 10, 3), np.uint8)}) as source:
        assert source.schema.observation.shape == (12, 10, 3)
    (line,) = [line for line in source.messages if "channels last" in line]
    assert line.startswith("'observation' looks like images of (12, 10, 3), channels last") and "--option channels=last" in line
    with open_source({**flat, "observations": np.zeros((10, 3, 12, 10), np.uint8)}) as source:
        assert not any("channels" in line for line in source.messages)


def test_no_more_than_a_block_is_read_at_once(flat, monkeypatch):
    class Watched:
        """An array that remembers how many rows were asked for."""

        def __init__(self, array: np.ndarray) -> None:
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def __getitem__(self, rows: slice) -> np.ndarray:
            asked.append((rows.stop - rows.start) * self.array[:1].nbytes)
            return self.array[rows]

    asked: list[int] = []
    monkeypatch.setattr(columns, "BLOCK_BYTES", 5 * 12)  # five rows of the widest column
    flat["next_observations"] = flat["observations"]
    with open_source({key: Watched(np.repeat(value, 20, axis=0)) for key, value in flat.items()}) as source:
        assert sum(episode.steps for episode in source.episodes) == 200
    assert max(asked) == 5 * 12
