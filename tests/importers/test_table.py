"""Tables: CSV and Parquet files of the real Pendulum and CartPole data, with columns named in other ways; what is wrong with a table."""

from __future__ import annotations

import csv
import gzip
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offrl.errors import EmptyStore, InvalidInput
from offrl_store import Field
from offrld.importers import import_into, open_source, table

MAP = "observation=obs_*,action=act_*,reward=r,episode=ep"


def steps(shared_data, name, episodes):
    """The first episodes of a real data set, flat."""
    with open_source(shared_data / f"{name}.hdf5") as source:
        return list(islice(source.episodes, episodes))


def write_csv(path, columns):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def flat_columns(episodes):
    """Columns in the order of a spreadsheet: the id first, ten observations named by number so that obs_10 follows obs_9."""
    columns = {"ep": np.repeat([f"run {i}" for i in range(len(episodes))], [each.steps for each in episodes])}
    observation = np.concatenate([each.observation for each in episodes])
    columns |= {f"obs_{i}": [repr(float(x)) for x in observation[:, i]] for i in range(observation.shape[1])}
    action = np.concatenate([each.action for each in episodes])
    if action.ndim == 1:
        columns["act_0"] = action
    else:
        columns |= {f"act_{i}": [repr(float(x)) for x in action[:, i]] for i in range(action.shape[1])}
    columns["r"] = [repr(float(x)) for x in np.concatenate([each.reward for each in episodes])]
    columns["done"] = np.concatenate([np.arange(1, each.steps + 1) == each.steps for each in episodes]) & np.repeat(
        [each.terminated for each in episodes], [each.steps for each in episodes]
    )
    return columns


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("name", ["pendulum-replay", "cartpole-random"])
def test_a_csv_file_gives_the_episodes_that_it_was_written_from(shared_data, tmp_path, same_episodes, name, suffix, monkeypatch):
    monkeypatch.setattr(table, "BLOCK", 5000)  # many blocks
    episodes = steps(shared_data, name, 6)
    path = write_csv(tmp_path / f"log{suffix}", flat_columns(episodes))
    store = import_into(path, tmp_path / "store", options={"map": f"{MAP},terminal=done"})
    same_episodes(store.episodes, episodes)
    assert store.metadata["source"]["columns"]["episode"] == ["ep"]


def test_parquet_keeps_dtypes_lists_and_extras(shared_data, tmp_path, same_episodes):
    episodes = steps(shared_data, "pendulum-replay", 4)
    rows = {key: np.concatenate([getattr(each, key) for each in episodes]) for key in ("observation", "action", "reward")}
    written = pa.table(
        {
            "state": pa.array(list(rows["observation"]), pa.list_(pa.float32())),
            "torque": pa.array(rows["action"][:, 0]),
            "reward": pa.array(rows["reward"]),
            "temperature": pa.array(np.arange(len(rows["reward"]), dtype=np.int16)),
            "trial": pa.array(np.repeat(range(4), [each.steps for each in episodes])),
        }
    )
    pq.write_table(written, tmp_path / "log.parquet", row_group_size=150)
    lines = []
    mapped = {"observation": "state", "action": ["torque"], "reward": "reward", "episode": "trial", "extra": {"heat": "temperature"}}
    options = {"map": mapped}
    store = import_into(tmp_path / "log.parquet", tmp_path / "store", options={**options, "env_id": "Pendulum-v1"}, message=lines.append)
    assert store.schema.extra == {"heat": Field("int16")} and store.metadata["bounds"] == "env:Pendulum-v1"
    assert np.concatenate([each.extra["heat"] for each in store.episodes]).tolist() == list(range(800))
    for ours, theirs in zip(store.episodes, episodes, strict=True):
        np.testing.assert_array_equal(ours.observation, theirs.observation)
        np.testing.assert_array_equal(ours.action, theirs.action)
        assert not ours.terminated
    assert "no column states where the task ended: every episode counts as truncated" in lines


BASE = {"ep": [0, 0, 0, 1, 1], "obs_0": [1, 2, 3, 4, 5], "obs_1": [0.5] * 5, "act_0": [0, 1, 0, 2, 1], "r": [1, 2, 3, 4, 5]}


def test_patterns_keep_the_order_of_the_file_and_plus_joins_columns(tmp_path):
    columns = {f"obs_{i}": [i] * 2 for i in (2, 10, 1)} | {"x": [7, 7], "a": [1, 1], "r": [0, 0], "end": [0, 1]}
    path = write_csv(tmp_path / "t.csv", columns)
    with open_source(path, options={"map": "observation=obs_*+x,action=a,reward=r,terminal=end"}) as source:
        (episode,) = source.episodes
    assert episode.observation[0].tolist() == [2, 10, 1, 7] and episode.terminated and episode.action.tolist() == [1, 1]


def test_usual_names_need_no_map_and_several_fields_have_names(tmp_path):
    plain = {"observation_0": [1, 2], "action": [0.5, 0.25], "reward": [0, 1], "episode_id": ["a", "a"]}
    with open_source(write_csv(tmp_path / "t.csv", plain)) as source:
        (episode,) = source.episodes
    assert episode.action.tolist() == [[0.5], [0.25]] and episode.observation.shape == (2, 1)
    named = "observation.arm=obs_0,observation.hand=obs_1,action=act_0,reward=r,episode=ep,extra.again=r"
    with open_source(write_csv(tmp_path / "u.csv", BASE), options={"map": named}) as source:
        assert set(source.schema.observation) == {"arm", "hand"} and set(source.schema.extra) == {"again"}
        assert [each.steps for each in source.episodes] == [3, 2]


def test_next_observations_give_final_ones(tmp_path):
    path = write_csv(tmp_path / "t.csv", {**BASE, "n_0": [2, 3, 9, 5, 8], "n_1": [0.5] * 5})
    with open_source(path, options={"map": f"{MAP},next_observation=n_*"}) as source:
        assert [each.observation[-1, 0] for each in source.episodes] == [9, 8]


@pytest.mark.parametrize(
    ("change", "map", "part"),
    [
        ({"obs_1": [0.5, "half", 1, 1, 1]}, MAP, "t.csv: row 3, column 'obs_1': 'half' is not a number"),
        ({"r": [1, 2, "", 4, 5]}, MAP, "t.csv: row 4, column 'r': '' is not a number"),
        ({"r": [1, 2, "nan", 4, 5]}, MAP, "t.csv: row 4, column 'r' is nan"),
        ({"obs_1": [1, 1, 1, 1, "inf"]}, MAP, "t.csv: row 6, column 'obs_1' is inf"),
        ({"act_0": [0, 1, -1, 0, 0]}, MAP, "t.csv: row 4, column 'act_0' is -1, outside"),
        ({"r": [1, 2, "9" * 5000, 4, 5]}, MAP, "t.csv: row 4, column 'r'.* is a whole number that no float holds exactly"),
        ({"r": [1, 2, "-" + "0" * 5000 + "9007199254740993", 4, 5]}, MAP, "t.csv: row 4, column 'r'.* is a whole number that no float"),
        ({"ep": [0, 0, 1, 1, 0]}, MAP, "row 6, column 'ep': the episode '0' appears again"),
        ({"ep": [0, 0, "", 1, 1]}, MAP, "row 4, column 'ep' is empty"),
        ({"end": [0, 0, 2, 0, 0]}, MAP + ",terminal=end", "row 4, column 'end': '2' is not a flag"),
        ({}, MAP.replace("r,", "rew,"), "has no column 'rew', which is mapped to 'reward'"),
        ({}, "observation=obs_*,action=act_*", "no column is mapped to 'reward'"),
        ({}, "observation=obs_*,action=act_*,reward=r", "no column is mapped to 'episode'"),
        ({}, MAP.replace("observation", "observaton"), "'observaton' is not a field of a step"),
        ({}, "observation", "'observation' is not FIELD=COLUMNS"),
        ({}, MAP.replace("reward=r", "reward=obs_*"), "obs_0, obs_1 are all mapped to 'reward'"),
    ],
)
def test_what_is_wrong_names_file_row_and_column(tmp_path, change, map, part):
    path = write_csv(tmp_path / "t.csv", {**BASE, **change})
    with pytest.raises(InvalidInput, match=part) as error:
        import_into(path, tmp_path / "store", options={"map": map})
    assert error.value.hint and "\n" not in str(error.value) and not (tmp_path / "store").exists()


def test_an_id_written_as_a_float_in_part_of_a_table_is_one_episode(tmp_path):
    path = write_csv(tmp_path / "t.csv", {**BASE, "ep": ["0", "0.0", "1.0", "1", "1.00"]})
    store = import_into(path, tmp_path / "store", options={"map": MAP})
    assert [episode.steps for episode in store.episodes] == [2, 3]


def test_versions_as_ids_stay_apart(tmp_path):
    path = write_csv(tmp_path / "t.csv", {**BASE, "ep": ["1.1", "1.1", "1.10", "1.10", "v1.0"]})
    store = import_into(path, tmp_path / "store", options={"map": MAP})
    assert [episode.steps for episode in store.episodes] == [2, 2, 1]


@pytest.mark.parametrize("text", ["1e-400", "-0.003E-390", "0." + "0" * 400 + "1"])
def test_a_number_below_every_float_does_not_become_zero(tmp_path, text):
    path = write_csv(tmp_path / "t.csv", {**BASE, "r": [0, "0e5", "-0.0", text, 1]})
    with pytest.raises(InvalidInput, match=r"row 5, column 'r': '.* is closer to zero than any float"):
        import_into(path, tmp_path / "store", options={"map": MAP})


def test_numbers_of_any_length_in_names_order_columns(tmp_path):
    long = "obs_" + "1" * 5000
    path = write_csv(
        tmp_path / "t.csv", {**{name: value for name, value in BASE.items() if name != "obs_1"}, long: [1] * 5, "obs_02": [2] * 5}
    )
    said: list[str] = []
    store = import_into(path, tmp_path / "store", options={"map": MAP}, message=said.append)
    assert store.schema.observation.shape == (3,)
    assert any("stay in the order of the file" in line for line in said)


def test_arrays_in_the_cells_of_a_column_do_not_go_beside_others(tmp_path):
    columns = {"obs_0": [[[1.0], [2.0]]] * 2, "obs_1": [1.0, 2.0], "act_0": [0.5, 0.5], "r": [1.0, 2.0], "ep": [0, 0]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InvalidInput, match=r"column 'obs_0' holds arrays of shape \[2, 1\]") as error:
        import_into(tmp_path / "t.parquet", tmp_path / "store", options={"map": "observation=obs_*,action=act_0,reward=r,episode=ep"})
    assert "observation.NAME" in error.value.hint


def test_a_cell_that_is_no_number_costs_its_episode_on_request(tmp_path):
    path = write_csv(tmp_path / "t.csv", {**BASE, "obs_1": [0.5, "half", 1, 1, 1]})
    skipped = []
    store = import_into(path, tmp_path / "store", options={"map": MAP}, skip_bad=skipped.append)
    assert [each.steps for each in store.episodes] == [2] and (skipped[0].episode, skipped[0].row) == (0, 3)
    assert skipped[0].why == "t.csv: row 3, column 'obs_1' is 'half', which is not a number"


def test_a_cell_that_is_no_number_does_not_turn_choices_into_continuous_actions(tmp_path):
    path = write_csv(tmp_path / "t.csv", {**BASE, "act_0": [0, 1, 0, "left", 1]})
    skipped = []
    store = import_into(path, tmp_path / "store", options={"map": MAP}, skip_bad=skipped.append)
    assert store.schema.action.n == 2 and len(store) == 1
    assert (skipped[0].episode, skipped[0].row) == (1, 5) and "row 5, column 'act_0'" in skipped[0].why


def test_rows_of_another_length_and_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("obs_0,act_0,r,ep\n1,2,3,0\n1,2\n")
    with pytest.raises(InvalidInput, match=r"t.csv cannot be read: CSV parse error.*Expected 4 columns, got 2"):
        open_source(path, options={"map": MAP})
    path.write_text("")
    with pytest.raises(InvalidInput, match=r"t.csv is empty"):
        open_source(path)
    path.write_text("obs_0,act_0,r,ep\n")
    with pytest.raises(EmptyStore, match="has a header and no row"):
        open_source(path, options={"map": MAP})
    whole = gzip.compress(("obs_0,act_0,r,ep\n" + "1,2,3,0\n" * 50_000).encode())
    (tmp_path / "t.csv.gz").write_bytes(whole)
    with open_source(tmp_path / "t.csv.gz", options={"map": MAP}) as source:
        assert next(source.episodes).steps == 50_000
    (tmp_path / "t.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match=r"t.csv.gz cannot be read"):
        open_source(tmp_path / "t.csv.gz", options={"map": MAP})
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "t.parquet")
    raw = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InvalidInput, match=r"t.parquet cannot be read"):
        open_source(tmp_path / "t.parquet")
    gap = {"observation": [1.0, None], "action": [1, 2], "reward": [1, 2], "episode": ["a", "a"]}
    pq.write_table(pa.table(gap), tmp_path / "t.parquet")
    with pytest.raises(InvalidInput, match="row 3, column 'observation' is missing"):
        open_source(tmp_path / "t.parquet")


def test_without_pyarrow_the_pip_command_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInput, match="needs pyarrow, which is not installed") as error:
        open_source(write_csv(tmp_path / "t.csv", BASE))
    assert error.value.hint == 'pip install "offrl[parquet]"'
