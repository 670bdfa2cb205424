"""The grid of `cases` through the formats that hold a part of it: flat files, pixel files, and tables that the test writes."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cases import FIELDS, episodes, same, store

from offrl.errors import InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.importers import export_dataset, import_into, open_source
from offrld.importers.gen_dgrl import ACTIONS

FLAT = {"d4rl": "x.hdf5", "npz": "x.npz", "store": "x"}
PIXELS = {"gen_dgrl": ("pixels", "grey pixels"), "atari": ("grey pixels",)}  # format -> the cases that it holds
SEVERAL = [case for case, (observation, *_) in FIELDS.items() if isinstance(observation, dict)]


def cut(episode: Episode) -> Episode:
    """An episode without its final observation and its extras, as pixel formats and d3rlpy keep it."""
    seen, steps = episode.observation, episode.steps
    parts = {name: rows[:steps] for name, rows in seen.items()} if isinstance(seen, dict) else seen[:steps]
    return Episode(parts, episode.action, episode.reward, episode.terminated)


def store_of(case: str, path: Any, ends: tuple[bool, ...]) -> EpisodeStore:
    """A store of a case, whose episodes end as given."""
    made = EpisodeStore.create(path, Schema(*FIELDS[case], {"bounds": "declared"}))
    with made.writer() as writer:
        for episode, terminated in zip(episodes(case), ends, strict=True):
            writer.append(replace(episode, terminated=terminated))
    return EpisodeStore.open(path)


# --- Flat files -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("case", FIELDS)
@pytest.mark.parametrize("format", FLAT)
def test_flat_files_bring_every_case_back(tmp_path, format, case, final):
    made = store(case, tmp_path / "made", final=final)
    again = import_into(export_dataset(made, tmp_path / FLAT[format], format), tmp_path / "again")
    same(again.episodes, made.episodes)
    assert again.schema.observation == made.schema.observation and again.schema.action == made.schema.action


@pytest.mark.parametrize("case", FIELDS)
def test_the_first_version_of_d3rlpy_brings_single_observations_back(tmp_path, case):
    made = store(case, tmp_path / "made", final=False)
    if case in SEVERAL:
        with pytest.raises(InvalidInput, match="several observation fields"):
            export_dataset(made, tmp_path / "x.h5", "d3rlpy-v1")
        return
    again = import_into(export_dataset(made, tmp_path / "x.h5", "d3rlpy-v1"), tmp_path / "again")
    same(again.episodes, [cut(each) for each in made.episodes])
    assert again.schema.observation == made.schema.observation and again.schema.action == made.schema.action


# --- Pixels ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [(True, True, True), (True, False, True), (False, True, False)])
@pytest.mark.parametrize("case", PIXELS["gen_dgrl"])
def test_gen_dgrl_brings_completed_episodes_back(tmp_path, case, ends):
    made = store_of(case, tmp_path / "made", ends)
    again = import_into(export_dataset(made, tmp_path / "x", "gen_dgrl"), tmp_path / "again")
    same(again.episodes, [cut(each) for each in made.episodes if each.terminated])
    assert again.schema.observation == made.schema.observation and again.schema.action.n == ACTIONS


@pytest.mark.parametrize("ends", [(True, True, True), (True, False, True), (True, True, False), (False, False, False)])
@pytest.mark.parametrize("game", [None, "offrld/breakout-v0"])
def test_atari_brings_back_completed_episodes_and_a_last_one_that_was_cut(tmp_path, ends, game):
    """With a game, which has four actions as the case has, the space comes back too; without one the actions are counted."""
    made = store_of("grey pixels", tmp_path / "made", ends)
    if game is not None:
        schema = Schema(*FIELDS["grey pixels"], {"bounds": "declared", "env_id": game})
        named = EpisodeStore.create(tmp_path / "named", schema)
        with named.writer() as writer:
            for each in made.episodes:
                writer.append(each)
        made = EpisodeStore.open(tmp_path / "named")
    again = import_into(export_dataset(made, tmp_path / "x", "atari"), tmp_path / "again")
    kept = [each for number, each in enumerate(made.episodes) if each.terminated or number == len(made) - 1]
    same(again.episodes, [cut(each) for each in kept])
    assert again.schema.observation == made.schema.observation
    assert again.schema.action.n == (4 if game else 1 + max(int(each.action.max()) for each in kept))


@pytest.mark.parametrize(("format", "case"), [(format, case) for format, held in PIXELS.items() for case in FIELDS if case not in held])
def test_pixel_formats_refuse_the_other_cases_and_leave_nothing(tmp_path, format, case):
    made = store(case, tmp_path / "made")
    with pytest.raises(InvalidInput):
        export_dataset(made, tmp_path / "x", format)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


# --- Tables ---------------------------------------------------------------------------------------------------------------------------


def flat_rows(case: str, final: bool) -> tuple[dict[str, np.ndarray], list[Episode]]:
    """The rows of a case by field of a table's map, and its episodes."""
    made = episodes(case, final=final)
    named = lambda each: each.observation if isinstance(each.observation, dict) else {"": each.observation}  # noqa: E731
    key = lambda role, name: f"{role}.{name}" if name else role  # noqa: E731
    rows = {
        "episode": np.repeat(np.arange(len(made)), [each.steps for each in made]),
        "terminal": np.concatenate([(np.arange(each.steps) == each.steps - 1) & each.terminated for each in made]),
        "action": np.concatenate([each.action for each in made]),
        "reward": np.concatenate([each.reward for each in made]),
    }
    for name in named(made[0]):
        rows[key("observation", name)] = np.concatenate([named(each)[name][: each.steps] for each in made])
        if final:
            rows[key("next_observation", name)] = np.concatenate([named(each)[name][1:] for each in made])
    for name in made[0].extra:
        rows[f"extra.{name}"] = np.concatenate([each.extra[name] for each in made])
    return rows, made


def as_table(episode: Episode, convert: Any) -> Episode:
    """An episode as a table gives it: one number per step is an observation of one row; ``convert`` gives arrays their dtype."""
    row = lambda rows: convert(rows[:, None] if rows.ndim == 1 else rows)  # noqa: E731
    seen = episode.observation
    return Episode(
        {name: row(rows) for name, rows in seen.items()} if isinstance(seen, dict) else row(seen),
        episode.action if episode.action.dtype.kind == "i" else convert(episode.action),
        convert(episode.reward),
        episode.terminated,
        {name: convert(rows) for name, rows in episode.extra.items()},
    )


def stated(action: Field) -> dict[str, Any]:
    """The options that state the space of an action, which a table does not declare."""
    if action.discrete:
        return {"action_n": action.n}
    return {
        name: np.broadcast_to(bound, action.shape).tolist() for name, bound in (("action_low", action.low), ("action_high", action.high))
    }


LARGE = [
    case for case, (observation, *_) in FIELDS.items() if isinstance(observation, Field) and observation.dtype.name in ("int64", "uint64")
]
DEEP = [case for case, (observation, *_) in FIELDS.items()
        if any(len(each.shape) > 1 for each in (observation.values() if isinstance(observation, dict) else [observation]))]  # fmt: skip


def write_csv(path: Any, rows: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """Write a text table with a column per number; returns its map."""
    columns: dict[str, list[Any]] = {}
    fields: dict[str, list[str]] = {}
    for key, array in rows.items():
        wide = array.reshape(len(array), -1)
        fields[key] = [f"{key}_{i}" for i in range(wide.shape[1])]
        wide = wide.astype(np.int64 if array.dtype.kind == "b" else np.float64 if array.dtype.kind == "f" else array.dtype)
        columns |= {name: wide[:, i].tolist() for i, name in enumerate(fields[key])}
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*([repr(value) for value in each] for each in columns.values()), strict=True))
    return fields


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("case", [case for case in FIELDS if case not in (*LARGE, *DEEP)])
def test_csv_brings_vectors_back(tmp_path, case, final):
    """Numbers come back as float32 if it holds them as they are written, else as float64."""
    rows, made = flat_rows(case, final)
    fields = write_csv(tmp_path / "x.csv", rows)
    again = import_into(tmp_path / "x.csv", tmp_path / "again", options={"map": fields, **stated(FIELDS[case][1])})
    exact = lambda rows: np.array_equal(rows.astype(np.float32).astype(rows.dtype), rows)  # noqa: E731
    same(again.episodes, [as_table(each, lambda rows: rows.astype(np.float32 if exact(rows) else np.float64)) for each in made])
    assert again.schema.action == FIELDS[case][1]


@pytest.mark.parametrize("case", LARGE)
def test_csv_refuses_numbers_that_no_float_holds(tmp_path, case):
    fields = write_csv(tmp_path / "x.csv", flat_rows(case, True)[0])
    with pytest.raises(InvalidInput, match="is a whole number that no float holds exactly"):
        open_source(tmp_path / "x.csv", options={"map": fields})


def nested(rows: np.ndarray) -> pa.Array:
    """Rows as numbers, as lists, or as lists of lists."""
    values = pa.array(np.ascontiguousarray(rows).reshape(-1))
    for size in reversed(rows.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("case", FIELDS)
def test_parquet_brings_every_case_back_with_its_dtypes(tmp_path, case, final):
    rows, made = flat_rows(case, final)
    pq.write_table(pa.table({key: nested(array) for key, array in rows.items()}), tmp_path / "x.parquet", row_group_size=3)
    options = {"map": {key: [key] for key in rows}, **stated(FIELDS[case][1])}
    again = import_into(tmp_path / "x.parquet", tmp_path / "again", options=options)
    same(again.episodes, [as_table(each, lambda rows: rows) for each in made])
    assert again.schema.action == FIELDS[case][1]
