"""Read the Arrow and Parquet forms of a Minari dataset: a folder per episode with one table of T+1 rows and ``metadata.json``.

All columns except the observations end with a row without meaning. Boxes are lists of their values, flattened row by row; Dicts and Tuples
are structs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offrl_store.errors import InvalidInput
from offrl_store.schema import DTYPES, NAME
from offrld.importers import arrow
from offrld.importers.columns import Column
from offrld.importers.episodic import Recording, ends_of
from offrld.importers.frames import EncodedImages
from offrld.importers.minari_space import Leaf, Seen, flat_actions
from offrld.importers.reading import read_json

#: Attributes of an episode that can be computed from the episode.
DERIVED = ("id", "total_steps", "rewards_sum", "rewards_mean", "rewards_std", "rewards_min", "rewards_max")

NEEDS = ("observations", "actions", "rewards", "terminations", "truncations")


def open_episodes(folder: Path, name: str, seen: Seen, notes: dict[int, str]) -> tuple[Callable[[int], Recording | None], int, list[str]]:
    """Return a function that opens episode i, the number of episodes, and a list that receives the names of what is left out."""
    arrow.need("pyarrow", name)
    numbers = sorted(int(each.name) for each in folder.iterdir() if each.is_dir() and each.name.isdigit())
    left_out: list[str] = []

    def recording(place: int) -> Recording | None:
        return _recording(folder / str(numbers[place]), name, seen, numbers[place], notes, left_out if place == 0 else [])

    return recording, len(numbers), left_out


def _recording(folder: Path, name: str, seen: Seen, number: int, notes: dict[int, str], left_out: list[str]) -> Recording | None:
    key = f"episode {number}"
    file = f"{name}, {key}"
    tables = sorted(each for each in folder.iterdir() if each.suffix in (".arrow", ".parquet"))
    if len(tables) != 1:
        raise InvalidInput(f"{file} has {len(tables)} tables", hint="each episode has one .arrow or .parquet file; copy the dataset again")
    table = arrow.read_table(tables[0], file)
    missing = [each for each in NEEDS if each not in table.column_names]
    if missing:
        raise InvalidInput(f"{file} holds no {', '.join(missing)}", hint=f"needed: {', '.join(NEEDS)}")
    observations = seen.named({leaf.key: _leaf(table["observations"], leaf, file) for leaf in seen.leaves})
    steps = table.num_rows - 1
    if steps < 1:
        notes[number] = f"{key} has no steps: left out"
        return None
    actions, rewards, terminations, truncations = (arrow.column(table[each].slice(0, steps), file, each) for each in NEEDS[1:])
    actions = flat_actions(actions, seen.messages)
    extra = _infos(table["infos"].slice(1), file, left_out) if "infos" in table.column_names else {}
    ends = ends_of(terminations.read_flags(0, steps), truncations.read_flags(0, steps), key, number, notes)
    return Recording(observations, actions, rewards, ends, extra, _metadata(folder / "metadata.json"))


def _leaf(array: Any, leaf: Leaf, file: str) -> Column:
    """Return the observations of one leaf of their space, in the leaf's shape."""
    import pyarrow as pa

    key, shape = "observations", leaf.shape
    for part in leaf.path:
        array, key = _field(array, str(part), file, key), f"{key}.{part}"
    if pa.types.is_binary(array.type):  # images as JPEG
        encoded = lambda start, stop: array.slice(start, stop - start).to_pylist()  # noqa: E731
        return Column(file, key, EncodedImages(encoded, (len(array), *shape), file, key, last=True))
    rows = arrow.to_numpy(array, file, key)
    if math.prod(rows.shape[1:]) != math.prod(shape):
        size = math.prod(rows.shape[1:])
        raise InvalidInput(f"{file}: {key!r} has rows of {size} values, its space {shape}", hint="copy the dataset again")
    return Column(file, key, rows.reshape(len(rows), *shape))


def _field(array: Any, name: str, file: str, key: str) -> Any:
    import pyarrow as pa

    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    if not pa.types.is_struct(array.type) or array.type.get_field_index(name) < 0:
        raise InvalidInput(f"{file}: {key!r} has no part {name!r}, which its space has", hint="copy the dataset again")
    return array.field(name)


def _infos(array: Any, file: str, left_out: list[str]) -> dict[str, Column]:
    """Return the infos of the steps that are plain numbers; infos as JSON text are left out."""
    import pyarrow as pa

    kept: dict[str, Column] = {}
    others: list[str] = []

    def walk(array: Any, prefix: str) -> None:
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        if pa.types.is_struct(array.type):
            for place in range(array.type.num_fields):
                field = array.type.field(place)
                walk(array.field(place), f"{prefix}.{field.name}" if prefix else field.name)
                shape = (field.metadata or {}).get(b"shape")
                name = f"{prefix}.{field.name}" if prefix else field.name
                if shape is not None and name in kept:
                    rows = kept[name].data
                    kept[name] = Column(file, f"infos.{name}", rows.reshape(len(rows), *(int(n) for n in shape.split(b",") if n)))
            return
        try:
            rows = arrow.to_numpy(array, file, f"infos.{prefix}")
        except InvalidInput:  # text, or a value that some steps lack
            others.append(f"infos.{prefix}" if prefix else "infos")
            return
        if NAME.match(prefix) and prefix not in kept and rows.dtype.name in DTYPES and 0 not in rows.shape[1:]:
            kept[prefix] = Column(file, f"infos.{prefix}", rows)
        else:
            others.append(f"infos.{prefix}")

    walk(array, "")
    left_out[:] = others
    return kept


def _metadata(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path, path.name, infinite=True)
    except InvalidInput:
        return None  # the episode is complete without it
    return {key: each for key, each in value.items() if key not in DERIVED} or None if isinstance(value, dict) else None
