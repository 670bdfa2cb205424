"""docs/datasets.md lists every format and option, and each cell of its round-trip table is the result of a round trip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offrl.errors import InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.importers import EXPORTS, FOLDERS, FORMATS, export_dataset, import_into

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text()
METADATA = {"seed": 7, "note": "left", "level_seed": 3, "index": 12, "time": "20260101T000000", "tasks": ["push"]}
PIXELS = {"gen_dgrl": (3, 8, 8), "atari": (1, 8, 8)}  # formats that hold nothing else
ENV_IDS = {"atari": "offrld/breakout-v0"}


def rows(first_cell: str) -> dict[str, list[str]]:
    """The rows of the table whose head begins with a text, by their first cell without backquotes."""
    lines = PAGE[PAGE.index(f"| {first_cell} |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {each[0].replace("`", "").split(" ")[0]: each[1:] for each in cells}


def make(path, format, *, fields=False, env_id=None):
    """A terminated and a truncated episode with final observations, an extra field, bounds wider than the data, metadata of episodes."""
    pixels = PIXELS.get(format)
    observation = Field("uint8", pixels) if pixels else Field("float32", (3,))
    if fields:
        observation = {"a": observation, "b": Field("float64", (2,))}
    action = Field("int64", low=0, high=14) if pixels else Field("float32", (1,), low=-2, high=2)
    metadata = {"bounds": "declared"} | ({"env_id": env_id} if env_id else {})
    store = EpisodeStore.create(path, Schema(observation, action, extra={"cost": Field("int16")}, metadata=metadata))
    rng = np.random.default_rng(0)
    with store.writer() as writer:
        for terminated in (True, False):
            one = rng.integers(0, 255, (5, *pixels), np.uint8) if pixels else rng.normal(size=(5, 3)).astype(np.float32)
            actions = rng.integers(0, 3, 4) if pixels else rng.uniform(-1, 1, (4, 1)).astype(np.float32)
            writer.append(
                Episode(
                    {"a": one, "b": np.ones((5, 2))} if fields else one,
                    actions,
                    np.ones(4, np.float32),
                    terminated,
                    {"cost": np.arange(4, dtype=np.int16)},
                ),
                METADATA if not terminated else METADATA | {"index": 11},
            )
    return store


def back(tmp_path, format, name, **options):
    store = make(tmp_path / name, format, **options)
    return store, import_into(export_dataset(store, tmp_path / f"{name}.out", format), tmp_path / f"{name}.again", format=None)


def yes(value) -> str:
    return "yes" if value else "no"


def space(format, kept, of_env) -> str:
    return "of a game" if format == "atari" and of_env and not kept else yes(kept)


def kept_metadata(found, given) -> str:
    kept = [key for key in METADATA if found.get(key) == given[key]]
    if kept == list(METADATA):
        return "yes"
    if kept == [key for key in METADATA if key != "tasks"]:
        return "texts and numbers"
    return ", ".join(kept) or "no"


@pytest.mark.parametrize("format", list(EXPORTS))
def test_what_comes_back_is_what_the_page_says(tmp_path, format):
    store, again = back(tmp_path, format, "plain")
    named, known = back(tmp_path, format, "env", env_id=ENV_IDS.get(format, "Pendulum-v1"))
    try:
        _, several = back(tmp_path, format, "several", fields=True)
        observation = several.schema.observation
        fields = "yes" if set(observation) == {"a", "b"} else "as a tuple" if "observation_0" in observation else "?"
    except InvalidInput as error:
        assert "several observation fields" in str(error) or "the observations are" in str(error)
        fields = "refused"
    originals = [each for each in store.episodes if each.terminated] if len(again) < len(store) else store.episodes
    pairs = list(zip(again.episodes, originals, strict=True))
    found = [
        yes(not any(ours.final_missing for ours, _ in pairs)),
        yes(all(ours.terminated == theirs.terminated for ours, theirs in pairs)) + ("; no cut ones" if len(pairs) < len(store) else ""),
        yes(all("cost" in ours.extra and np.array_equal(ours.extra["cost"], theirs.extra["cost"]) for ours, theirs in pairs)),
        fields,
        space(format, again.schema.action == store.schema.action, known.metadata["bounds"].startswith("env:")),
        "of a game"
        if format == "atari" and known.metadata["env_id"] == ENV_IDS[format]
        else yes(known.metadata.get("env_id") == named.metadata["env_id"]),
        kept_metadata(again.episode_metadata(0), store.episode_metadata(0)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours.action, theirs.action)
        np.testing.assert_array_equal(ours.reward, theirs.reward)
        first, second = (
            next(iter(each.observation.values())) if isinstance(each.observation, dict) else each.observation for each in (ours, theirs)
        )
        np.testing.assert_array_equal(first[:4], second[:4])
    assert found == rows("after export and import")[format]


def test_the_page_lists_every_format_and_option():
    sources, exports = rows("`--format` | source"), rows("`--format` | what")
    assert set(sources) == set(FORMATS) and set(exports) == set(EXPORTS)
    assert all(("folder" in exports[name][0]) == (name in FOLDERS) for name in exports)
    options = PAGE[PAGE.index("### Options") : PAGE.index("## Bad episodes")]
    for format in FORMATS.values():
        for option in format.options:
            assert f"`{option}`" in options, f"{format.name}: {option}"
