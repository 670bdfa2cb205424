"""Which columns of a table are what: names that collide, orders, encodings, values that a dtype does not hold, rows that stand apart."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offrl.errors import EmptyStore, InvalidInput
from offrld.importers import import_into, open_source

HEAD = "episode,obs_0,action_0,reward\n"
ROWS = HEAD + "0,1,.5,1\n0,2,.25,1\n"


@pytest.fixture
def take(tmp_path):
    """Imports a text as a CSV file; gives the store and what was said."""
    made = []

    def take(text, name="log.csv", written="utf-8", **options):
        folder = tmp_path / str(len(made))
        made.append(folder)
        folder.mkdir()
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode(written))
        lines = []
        return import_into(folder / name, folder / "store", options=options or None, message=lines.append), lines

    return take


def seen(store):
    return [np.asarray(each.observation).tolist() for each in store.episodes]


# --- Names ---
@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("obs_0,obs_0", "has 2 columns of the name 'obs_0', columns 2 and 3"),
        ("obs_0, obs_0", "has 2 columns of the name 'obs_0'"),
        ("Obs_0,obs_0", "'Obs_0' and 'obs_0' have the same number"),
        ("obs_1,obs_01", "'obs_1' and 'obs_01' have the same number"),
        ("obs_1,obs.1", "'obs_1' and 'obs.1' have the same number"),
        ("obs,obs.1", "'obs' and 'obs.1' can both be the obs"),
        ("obs_0,observation_0", "both 'observation_0' and 'obs_0' can be the observation"),
    ],
)
def test_names_that_collide_are_refused(take, header, part):
    with pytest.raises(InvalidInput, match=part) as caught:
        take(f"episode,{header},action_0,reward\n0,1,100,.5,1\n0,2,200,.25,1\n")
    assert caught.value.hint


@pytest.mark.parametrize(("one", "two", "field"), [("reward", "Reward", "reward"), ("ep", "episode", "episode"), ("r", "rew", "reward")])
def test_two_columns_that_can_be_one_field_are_refused(take, one, two, field):
    names = {"obs_0": 1, "action_0": 0.5, "reward": 1, "episode": 0}
    names.pop(field)
    names |= {one: 1, two: 1}
    with pytest.raises(InvalidInput, match=f"can be the {field}"):
        take(",".join(names) + "\n" + ",".join(map(str, names.values())) + "\n")


@pytest.mark.parametrize(
    "given",
    [
        "observation=obs_0,observation=action_0,action=action_0,reward=reward,episode=episode",
        {"observation": "obs_0", "action": "action_0", "reward": "reward", "extra.x": "obs_0", "extra": {"x": "episode"}},
    ],
)
def test_a_field_mapped_twice_is_refused(take, given):
    with pytest.raises(InvalidInput, match="is mapped twice") as caught:
        take(ROWS, map=given)
    assert "list its columns once" in caught.value.hint


def test_next_observations_in_another_order_than_the_observations_are_refused(take):
    head = "episode,{},{},action_0,reward\n0,1,2,4,3,.5,1\n0,3,4,6,5,.5,1\n"
    for before, after, options in (
        ("obs_x,obs_y", "next_obs_y,next_obs_x", {}),
        (
            "obs_0,obs_1",
            "next_obs_1,next_obs_0",
            {"map": "observation=obs_*,next_observation=next_obs_*,action=action_0,reward=reward,episode=episode"},
        ),
        (
            "obs_x,obs_y",
            "next_obs_y,next_obs_x",
            {"map": "observation.a=obs_*,next_observation.a=next_obs_*,action=action_0,reward=reward,episode=episode"},
        ),
    ):
        with pytest.raises(InvalidInput, match=f"the observation has '{before[:5]}' where the next observation has '{after[:10]}'"):
            take(head.format(before, after), **options)
    store, _ = take(
        head.format("obs_x,obs_y", "next_obs_y,next_obs_x"),
        map=("observation=obs_*,next_observation=next_obs_x+next_obs_y,action=action_0,reward=reward,episode=episode"),
    )
    assert seen(store) == [[[1, 2], [3, 4], [5, 6]]]


def test_columns_of_a_pattern_out_of_the_order_of_their_numbers_are_said(take):
    text, said = "episode,obs_10,obs_2,action_0,reward\n0,1,2,.5,1\n0,3,4,.5,1\n", "stay in the order of the file"
    fields = ",action=action_0,reward=reward,episode=episode"
    store, lines = take(text, map="observation=obs_*" + fields)
    assert seen(store) == [[[1, 2], [3, 4]]] and any(said in line for line in lines)
    store, lines = take(text, map="observation=obs_10+obs_2" + fields)
    assert seen(store) == [[[1, 2], [3, 4]]] and not any(said in line for line in lines)


def test_a_name_twice_in_parquet_is_refused_where_a_field_takes_it(tmp_path):
    table = pa.table(
        [[0, 0], [1.0, 2], [3.0, 4], [0.5, 0.1], [1.0, 1], [7, 7], [8, 8]],
        names=["episode", "obs_0", "x", "action_0", "reward", "note", "note"],
    )
    pq.write_table(table, tmp_path / "log.parquet")
    lines = []
    import_into(tmp_path / "log.parquet", tmp_path / "store", message=lines.append)
    assert any(line.startswith("not imported: note, note, x;") for line in lines)
    pq.write_table(table.rename_columns(["episode", "obs_0", "obs_0", "action_0", "reward", "a", "b"]), tmp_path / "log.parquet")
    with pytest.raises(InvalidInput, match="2 columns of the name 'obs_0', columns 2 and 3"):
        open_source(tmp_path / "log.parquet")


def test_numbered_columns_stand_in_the_order_of_their_numbers_and_gaps_are_said(take):
    store, lines = take("episode,obs_0,obs_10,obs_2,action_0,reward\n0,1,2,3,.5,1\n0,1,2,3,.25,1\n")
    assert seen(store) == [[[1, 3, 2]] * 2]
    assert "columns 'obs_0' to 'obs_10' are sorted by their numbers, not in the order of the file" in lines
    assert "there is no column between 'obs_0' and 'obs_2': is one missing?" in lines


def test_columns_that_mean_something_else_are_left_out_and_said_once(take):
    store, lines = take("Episode, OBS_0, Action_0,action_mask,obs_time,Reward\n0,1,.5,1,9,1\n0,2,.25,1,9,1\n")
    assert seen(store) == [[[1], [2]]] and store.schema.action.shape == (1,)
    assert [line for line in lines if "not imported" in line] == [
        "not imported: action_mask, obs_time; a map takes them (--map extra.NAME=COLUMN keeps one with each step)"
    ]


def test_next_observations_are_taken_unasked_and_an_empty_one_is_unknown(take):
    store, lines = take("episode,obs_0,next_obs_0,action_0,reward\n0,1,2,.5,1\n0,2,,.5,1\n1,1,2,.5,1\n1,2,3,.25,1\n")
    assert seen(store) == [[[1], [2]], [[1], [2], [3]]]
    assert "1 rows without a next observation: it counts as unknown there" in lines
    _, lines = take("episode,obs_0,obs_1,next_obs_0,action_0,reward\n0,1,2,3,.5,1\n0,1,2,3,.25,1\n")
    assert any("next observations of 1 columns do not fit the observation's 2" in line for line in lines)


def test_done_is_a_cut_unless_the_user_says_that_the_task_ended(take):
    text = "traj_id,obs_x,obs_y,action,rew,done\n0,1,2,.5,1,0\n0,1,2,.25,1,1\n"
    store, lines = take(text)
    assert not store.episodes[0].terminated and any("'done' does not say whether the task ended" in line for line in lines)
    assert take(text, done="terminated")[0].episodes[0].terminated
    with pytest.raises(InvalidInput, match="done is 'yes'"):
        take(text, done="yes")


def test_the_hint_of_unknown_columns_is_a_whole_map_that_works(take):
    text = "run,x,y,torque,score_total,rew_t\n0,1,2,.5,9,1\n0,1,2,.25,9,1\n"
    with pytest.raises(InvalidInput, match="no column is mapped to 'observation'") as caught:
        take(text)
    assert caught.value.hint == "for example: --map observation=x+y+score_total,action=torque,reward=rew_t,episode=run"
    store, _ = take(text, map=caught.value.hint.partition("--map ")[2])
    assert seen(store) == [[[1, 2, 9]] * 2]


# --- Order of rows ---
TURNS = "episode,step,obs_0,action_0,reward\n0,0,1,.5,1\n1,0,10,.5,2\n0,1,2,.25,3\n1,1,11,.5,4\n"


def test_episodes_in_turns_are_put_together_by_their_steps(take):
    store, lines = take(TURNS)
    assert seen(store) == [[[1], [2]], [[10], [11]]]
    assert [each.reward.tolist() for each in store.episodes] == [[1, 3], [2, 4]]
    assert "episodes are interleaved: rows are sorted by 'episode' and 'step'" in lines


def test_what_is_wrong_names_the_row_of_the_file_after_rows_are_put_in_order(take):
    with pytest.raises(InvalidInput, match="row 4, column 'obs_0' is nan"):
        take(TURNS.replace("0,1,2,.25", "0,1,nan,.25"))


def test_steps_that_do_not_rise_are_sorted(take):
    store, lines = take("episode,step,obs_0,action_0,reward\n0,0,1,.5,1\n0,2,3,.5,1\n0,1,2,.25,1\n")
    assert seen(store) == [[[1], [2], [3]]] and any("steps do not increase" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (HEAD + "0,1,.5,1\n1,2,.5,1\n0,3,.5,1\n", "row 4, column 'episode': the episode '0' appears again"),
        (TURNS + "0,0,5,.5,1\n", "rows 2 and 6 are both step 0.0 of the episode '0'"),
        (HEAD + "nan,1,.5,1\n0,1,.5,1\n", "row 2, column 'episode' is empty"),
        (HEAD + " ,1,.5,1\n0,1,.5,1\n", "row 2, column 'episode' is empty"),
    ],
)
def test_an_order_that_nothing_says_is_refused(take, text, part):
    with pytest.raises(InvalidInput, match=part):
        take(text)


def test_one_step_twice_in_an_episode_is_refused(take):
    with pytest.raises(InvalidInput, match=r"rows 2 and 3 are both step 0\.0 of the episode '0'"):
        take("episode,step,obs_0,action_0,reward\n0,0,1,.5,1\n0,0,2,.5,1\n0,1,3,.5,1\n0,1,4,.5,1\n")


def test_without_ids_steps_rise_up_to_each_end(take):
    head = "step,obs_0,action_0,reward,terminal\n"
    for rows, part in (
        ("1,1,.5,1,0\n0,2,.5,1,1\n", "row 3, column 'step' is 0 after 1"),
        ("0,1,.5,1,0\n1,2,.5,1,0\n0,3,.5,1,0\n1,4,.5,1,1\n", "row 4, column 'step' is 0 after 1"),
    ):
        with pytest.raises(InvalidInput, match=part) as caught:
            take(head + rows)
        assert "episode=COLUMN" in caught.value.hint
    store, _ = take(head + "0,1,.5,1,0\n1,2,.5,1,1\n0,3,.5,1,0\n1,4,.5,1,1\n")
    assert seen(store) == [[[1], [2]], [[3], [4]]]


@pytest.mark.parametrize("ids", [[0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"], [True, True, False, False]])
def test_ids_of_any_plain_kind(tmp_path, ids):
    columns = {"episode": ids, "obs_0": [1.0, 2, 3, 4], "action_0": [0.1, 0.2] * 2, "reward": [1.0] * 4}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    assert seen(import_into(tmp_path / "log.parquet", tmp_path / "store")) == [[[1], [2]], [[3], [4]]]
    for wrong in ([[0], [0], [1], [1]], [float("nan"), 0, 1, 1], [None, 0, 1, 1]):
        pq.write_table(pa.table(columns | {"episode": wrong}), tmp_path / "log.parquet")
        with pytest.raises(InvalidInput, match=r"not ids of episodes|row 2, column 'episode' is empty"):
            open_source(tmp_path / "log.parquet")


# --- Text ---
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_tells_the_encoding(take, encoding):
    store, _ = take(ROWS.replace("obs_0", "obs_höhe"), written=encoding)
    assert seen(store) == [[[1], [2]]] and store.metadata["source"]["columns"]["observation"] == ["obs_höhe"]


def test_other_text_names_the_byte_and_the_option_that_reads_it(take):
    text = ROWS.replace("obs_0", "obs_höhe")
    with pytest.raises(InvalidInput, match=r"log.csv is not utf-8: byte 0xf6 at offset 13 cannot be decoded") as caught:
        take(text.encode("latin-1"))
    assert "--option encoding=latin-1" in caught.value.hint
    late = HEAD + "0,1,.5,1\n" * 300_000  # behind the first blocks
    with pytest.raises(InvalidInput, match=f"byte 0xff at offset {len(late):,}"):
        take(late.encode() + b"\xff")
    store, _ = take(text.encode("latin-1"), encoding="latin-1")
    assert store.metadata["source"]["columns"]["observation"] == ["obs_höhe"]
    assert seen(take(ROWS.encode("utf-16-le"), encoding="utf-16-le")[0]) == [[[1], [2]]]
    with pytest.raises(InvalidInput, match="encoding is 'hex'"):
        take(ROWS, encoding="hex")


@pytest.mark.parametrize(
    ("content", "part", "kind"),
    [
        (b"PK\x03\x04\x00\x00" * 9, "log.csv is not text: it holds zero bytes", InvalidInput),
        (ROWS.encode("utf-16-le"), "log.csv is not text: it holds zero bytes", InvalidInput),
        (b"", "log.csv is empty", EmptyStore),
        (b"\n\n", "log.csv is empty", EmptyStore),
        (HEAD.encode(), "log.csv has a header and no row", EmptyStore),
    ],
)
def test_what_is_no_table_says_so(take, content, part, kind):
    with pytest.raises(kind, match=part):
        take(content)


def test_other_separators_line_ends_and_decimal_commas(take):
    store, lines = take(ROWS.replace(",", ";"))
    assert seen(store) == [[[1], [2]]] and "columns are separated by ';'" in lines
    assert seen(take(ROWS.replace(",", "\t"))[0]) == seen(take(ROWS.replace("\n", "\r"))[0]) == [[[1], [2]]]
    assert seen(take(ROWS.replace(",", "!"), delimiter="!")[0]) == [[[1], [2]]]
    assert seen(take(gzip.compress(ROWS.encode()), name="log.csv.gz")[0]) == [[[1], [2]]]
    german = "episode;obs_0;action_0;reward\n0;1,5;0,5;1\n0;2,5;0,25;1\n"
    with pytest.raises(InvalidInput, match="row 2, column 'obs_0': '1,5' is not a number") as caught:
        take(german)
    assert "--option decimal=," in caught.value.hint
    assert seen(take(german, decimal=",")[0]) == [[[1.5], [2.5]]]
    with pytest.raises(InvalidInput, match=r"'1\.000,5' has a dot beside decimal commas"):
        take(german.replace("1,5", "1.000,5"), decimal=",")


# --- Values ---
def test_a_number_with_signs_between_thousands_is_none(take):
    with pytest.raises(InvalidInput, match="'1_000' is not a number"):
        take(HEAD + "0,1_000,.5,1\n0,2,.25,1\n")


def test_numbers_that_float32_does_not_hold_make_a_field_float64(take):
    store, lines = take(HEAD + "0,16777217,.1,1\n0,1700000000.25,.2,1\n")
    assert store.schema.observation.dtype == np.float64 and seen(store) == [[[16777217], [1700000000.25]]]
    assert store.schema.action.dtype == store.schema.reward.dtype == np.float32
    assert "'observation' is float64: float32 does not hold 16777217 (row 2, column 'obs_0') as it is written" in lines
    store, lines = take(HEAD + "0,16777217,.1,1\n0,1,.2,1\n", dtype="float32")
    assert store.schema.observation.dtype == np.float32 and any("is rounded to float32, as dtype states" in line for line in lines)


def test_whole_numbers_that_no_float_holds_are_refused(take, tmp_path):
    with pytest.raises(InvalidInput, match="row 3, column 'obs_0': '9007199254740993' is a whole number that no float holds"):
        take(HEAD + "0,1,.5,1\n0,9007199254740993,.5,1\n")
    columns = {"episode": [0, 0], "obs_0": pa.array([1, 2**53 + 1], pa.uint64()), "action_0": [0.1, 0.2], "reward": [1.0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    assert seen(import_into(tmp_path / "log.parquet", tmp_path / "store")) == [[[1], [2**53 + 1]]]
    pq.write_table(pa.table(columns | {"obs_1": [0.5, 0.5]}), tmp_path / "log.parquet")
    with pytest.raises(InvalidInput, match="row 3, column 'obs_0' is 9007199254740993, which no float holds"):
        open_source(tmp_path / "log.parquet")


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("obs_0", [1.0, None, 3, 4], "is missing"),
        ("obs_0", pa.array([1, None, 3, 4], pa.int64()), "is missing"),
        ("obs_0", pa.array([True, None, True, False]), "is missing"),
        ("action_0", [0.1, None, 0.2, 0.3], "is missing"),
        ("action_0", pa.array([0, None, 1, 2], pa.int8()), "is missing"),
        ("reward", [1.0, None, 1, 1], "is missing"),
        ("obs_0", [[1.0, 2], [1.0], [3.0, 4], [5.0, 6]], "has 1 values, the rows before it 2"),
        ("obs_0", [[1.0, 2], [1.0, None], [3.0, 4], [5.0, 6]], "has a value that is missing"),
        ("obs_0", [[1.0, 2], None, [3.0, 4], [5.0, 6]], "is missing"),
    ],
)
def test_a_missing_value_costs_its_episode_on_request_and_is_named_else(tmp_path, name, values, why):
    columns = {"episode": [0, 0, 1, 1], "obs_0": [1.0, 2, 3, 4], "action_0": [0.1, 0.2, 0.3, 0.4], "reward": [1.0] * 4, name: values}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    with pytest.raises(InvalidInput, match=f"log.parquet: row 3, column '{name}' {why}"):
        import_into(tmp_path / "log.parquet", tmp_path / "store")
    skipped = []
    store = import_into(tmp_path / "log.parquet", tmp_path / "store", skip_bad=skipped.append)
    assert len(store) == 1 and [(each.episode, each.row) for each in skipped] == [(0, 3)]
    assert skipped[0].why == f"log.parquet: row 3, column '{name}' {why}"


def test_a_gap_in_an_extra_field_of_whole_numbers_is_not_filled(tmp_path):
    columns = {
        "episode": [0, 0, 1, 1],
        "obs_0": [1.0, 2, 3, 4],
        "action_0": [0.1, 0.2] * 2,
        "reward": [1.0] * 4,
        "n": pa.array([1, 2, None, 4], pa.int16()),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    skipped = []
    mapped = {"map": "observation=obs_0,action=action_0,reward=reward,episode=episode,extra.n=n"}
    store = import_into(tmp_path / "log.parquet", tmp_path / "store", options=mapped, skip_bad=skipped.append)
    assert len(store) == 1 and skipped[0].row == 4 and store.episodes[0].extra["n"].tolist() == [1, 2]
