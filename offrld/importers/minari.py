"""Import Minari: a folder with ``data/metadata.json`` and the episodes as HDF5 (``data/main_data.hdf5``), Arrow or Parquet (``data/ID/``).

Each episode holds T+1 observations, T actions, rewards, terminations and truncations, and often infos. The infos of the steps become extra
fields; those of the reset (the first of T+1) are left out. Observations may be Box, Discrete, MultiDiscrete or MultiBinary spaces, and
Dicts and Tuples of them: nested names are joined with a dot, members of a tuple are named by their index. Text observations are not read.
Actions may be Box, Discrete, MultiDiscrete or MultiBinary.

The spaces in the metadata declare bounds and numbers of actions. An episode keeps its seed and options. JPEG images are decoded, in the
layout of their space. h5py or pyarrow (`minari_arrow`) read the files; Minari itself is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offrl_store.errors import InvalidInput
from offrld.importers import hdf5, minari_arrow
from offrld.importers.columns import Column, Rows, same_length
from offrld.importers.described import Shaped
from offrld.importers.episodic import Recording, ends_of, episodic_source
from offrld.importers.frames import EncodedImages
from offrld.importers.minari_space import PLAIN, Leaf, Seen, flat_actions, h5_path, leaves
from offrld.importers.reading import parse_json, read_json
from offrld.importers.source import BadEpisodes, Format, Source, named_keys
from offrld.importers.spaces import ActionSpace, box, choices, probe_environment

NEEDS = "a folder with data/metadata.json and data/main_data.hdf5, or data/0/, data/1/, ... with Arrow or Parquet files"

#: Largest dimension of a vector of actions.
MAX_ACTION_SIZE = 1 << 20

Opened = Callable[[int], Recording | None]


def data_folder(path: Path) -> Path | None:
    """Return the folder with ``metadata.json``, given a dataset's folder or that folder itself; None if there is none."""
    for folder in (path / "data", path):
        if (folder / "metadata.json").is_file() and (
            (folder / "main_data.hdf5").is_file() or "data_format" in _read_json(folder / "metadata.json")
        ):
            return folder
    return None


def detect(path: Path) -> bool:
    return path.is_dir() and data_folder(path) is not None


def open_folder(path: Path, bad: BadEpisodes, *, drop: Any = ()) -> Source:
    """Open a Minari dataset. Raises `InvalidInput` if the folder is not one or if its data format is not supported."""
    folder = data_folder(path)
    if folder is None:
        inner = (
            sorted(each.parent.parent.relative_to(path).as_posix() for each in path.glob("*/**/data/metadata.json"))[:3]
            if path.is_dir()
            else []
        )
        hint = f"give the folder of one dataset, for example {inner[0]}" if inner else f"needed: {NEEDS}"
        raise InvalidInput(f"{path} is not the folder of a Minari dataset", hint=hint)
    name = (path if folder != path else path.parent).resolve().name
    metadata = read_json(folder / "metadata.json", f"{name}: metadata.json", infinite=True)
    if not isinstance(metadata, dict) or not metadata:
        raise InvalidInput(f"{name}: metadata.json is not a JSON object", hint="copy the dataset again")
    parts, dropped = _seen(_space(metadata, "observation_space", name), drop, name)
    messages: list[str] = []
    seen = Seen(parts, messages)
    spec = _env_spec(metadata)
    env_id = spec.get("id") if isinstance(spec.get("id"), str) else None
    if isinstance(spec.get("kwargs"), dict) and spec["kwargs"]:
        made = ", ".join(f"{key}={value!r}" for key, value in spec["kwargs"].items())
        messages.append(f"the data come from {env_id} made with {made:.200}: the name alone gives another environment")
    discrete, space = _action_space(_space(metadata, "action_space", name), env_id, name, messages)
    backend = metadata.get("data_format", "hdf5")
    if backend not in ("hdf5", "arrow", "parquet"):
        raise InvalidInput(f"{name} stores its data as {backend}, which is not read", hint="write it again as hdf5, arrow or parquet")
    with ExitStack() as resources:
        notes: dict[int, str] = {}
        if backend == "hdf5":
            recording, count, left_out = _hdf5(folder, name, seen, notes, resources)
        else:
            recording, count, left_out = minari_arrow.open_episodes(folder, name, seen, notes)
        declared = metadata.get("total_episodes")
        if isinstance(declared, int) and declared != count:
            raise InvalidInput(
                f"{name} holds {count} episodes, its metadata says {declared}", hint="the dataset is incomplete; copy it again"
            )
        source = episodic_source(
            recording,
            count,
            bad,
            file=name,
            format="minari",
            env_id=env_id,
            space=space,
            attributes=hdf5.plain(metadata),
            messages=messages,
            discrete=discrete,
            dataset_id=str(metadata.get("dataset_id", name)),
        )
        messages += _summary([notes[number] for number in sorted(notes)])
        if left_out or dropped:
            messages.append(f"not imported: {hdf5.listed({*left_out, *dropped})}")
        source.resources = resources.pop_all()
        return source


def _hdf5(folder: Path, name: str, seen: Seen, notes: dict[int, str], resources: ExitStack) -> tuple[Opened, int, list[str]]:
    """Return a function that opens episode i, the number of episodes, and a list that receives the names of what is left out."""
    file = resources.enter_context(hdf5.open_hdf5(folder / "main_data.hdf5"))
    numbers = sorted(int(key.removeprefix("episode_")) for key in hdf5.names(file, name) if key.removeprefix("episode_").isdigit())
    left_out: list[str] = []

    def recording(place: int) -> Recording | None:
        return _recording(file, numbers[place], name, seen, notes, left_out if place == 0 else [])

    return recording, len(numbers), left_out


def _recording(file: h5py.File, number: int, name: str, seen: Seen, notes: dict[int, str], left_out: list[str]) -> Recording | None:
    """Read episode ``number``; None if it has no step. Raises `InvalidInput`."""
    key = f"episode_{number}"
    group = hdf5.node(file, key, name)
    if not isinstance(group, h5py.Group):
        raise InvalidInput(f"{name}: {key!r} is not a group", hint="the file does not follow its format; copy it again")
    needs = "observations, actions, rewards, terminations, truncations in each episode"
    actions, rewards, terminations, truncations = (
        hdf5.need_column(group, each, name, needs) for each in ("actions", "rewards", "terminations", "truncations")
    )
    if hdf5.node(group, "observations", name) is None:
        raise InvalidInput(f"{name} holds no '{key}/observations'", hint=f"needed: {needs}")
    observations = seen.named({leaf.key: _leaf(group, leaf, name) for leaf in seen.leaves})
    actions = flat_actions(actions, seen.messages)
    same_length(actions, rewards, terminations, truncations)
    steps = actions.rows
    if not steps:
        notes[number] = f"{key} has no steps: left out"
        return None
    for column in observations.values() if isinstance(observations, dict) else (observations,):
        if column.rows != steps + 1:
            raise InvalidInput(
                f"{name}: {column.key!r} has {column.rows} rows and {actions.key!r} has {steps}",
                hint="Minari keeps one more observation than actions; copy the dataset again",
            )
    extra, others = hdf5.extras(group, "infos", {steps, steps + 1}, name)
    left_out[:] = sorted({each.removeprefix(f"{key}/") for each in others})
    extra = {each: Column(name, column.key, Rows(column.data, column.rows - steps)) for each, column in extra.items()}
    ends = ends_of(terminations.read_flags(0, steps), truncations.read_flags(0, steps), key, number, notes)
    return Recording(observations, actions, rewards, ends, extra, _episode_metadata(hdf5.attributes(group)))


def _leaf(group: h5py.Group, leaf: Leaf, name: str) -> Column:
    """Return the observations of one leaf of their space, in the leaf's shape."""
    node = group
    for part in ("observations", *h5_path(leaf.path)):
        inner = hdf5.node(node, part, name) if isinstance(node, h5py.Group) else None
        if inner is None:
            where = f"{node.name.strip('/')}/{part}"
            raise InvalidInput(f"{name} holds no {where!r}, which its space has", hint="copy the dataset again")
        node = inner
    if not isinstance(node, h5py.Dataset):
        raise InvalidInput(f"{name}: {node.name.strip('/')!r} is a group, its space a {leaf.space['type']}", hint="copy the dataset again")
    column = Column(name, node.name.strip("/"), _decoded(node, leaf, name))
    if column.shape == leaf.shape:
        return column
    if math.prod(column.shape) != math.prod(leaf.shape):
        raise InvalidInput(f"{name}: {column.key!r} has rows of {column.shape}, its space {leaf.shape}", hint="copy the dataset again")
    return Column(name, column.key, Shaped(column.data, leaf.shape))


def _decoded(dataset: h5py.Dataset, leaf: Leaf, name: str) -> Any:
    """Return a dataset of JPEGs (rows of bytes, or a matrix if all are equally long) as decoded images, and any other dataset unchanged."""
    ragged = h5py.check_vlen_dtype(dataset.dtype) == np.uint8
    shape = leaf.shape
    if not ragged and not (dataset.dtype == np.uint8 and len(dataset.shape) == 2 and len(shape) in (2, 3)):
        return dataset
    key = dataset.name.strip("/")
    if len(shape) not in (2, 3):
        raise InvalidInput(f"{name}: {key!r} holds rows of bytes and its space the shape {shape}", hint="copy the dataset again")
    return EncodedImages(lambda start, stop: [bytes(each) for each in dataset[start:stop]], (len(dataset), *shape), name, key, last=True)


def _episode_metadata(attributes: dict[str, Any]) -> dict[str, Any] | None:
    """Return the seed, the options and further metadata of an episode; None if there are none."""
    return {key: value for key, value in attributes.items() if key not in minari_arrow.DERIVED and value is not None} or None


def _summary(noted: list[str]) -> list[str]:
    """Shorten notes that thousands of episodes may give."""
    return noted[:3] + ([f"and {len(noted) - 3} more episodes like these"] if len(noted) > 3 else [])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path, path.name, infinite=True)
    except InvalidInput:
        return {}
    return value if isinstance(value, dict) else {}


def _space(metadata: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    """Return a space of the metadata, which hold it as a string of JSON. Raises `InvalidInput`."""
    value = metadata.get(key)
    if isinstance(value, str):
        value = parse_json(value, f"{name}: {key} in metadata.json", infinite=True)
    if not isinstance(value, dict) or "type" not in value:
        raise InvalidInput(f"{name}: metadata.json declares no {key}", hint="write the dataset again with a current Minari")
    return value


def _env_spec(metadata: dict[str, Any]) -> dict[str, Any]:
    spec = metadata.get("env_spec")
    try:
        spec = parse_json(spec, "env_spec", infinite=True) if isinstance(spec, str) else spec
    except InvalidInput:
        return {}
    return spec if isinstance(spec, dict) else {}


def _seen(space: dict[str, Any], drop: Any, name: str) -> tuple[list[Leaf], list[str]]:
    """Return the leaves of the observation space to read, and the keys of those that are left out.

    Raises `InvalidInput` for a leaf that is not a plain array of numbers, before a single row is read.
    """
    keys = [leaf.key for leaf in leaves(space)]
    dropped = named_keys("drop", drop, keys, name)
    kept = [leaf for leaf in leaves(space) if leaf.key not in dropped]
    for leaf in kept:
        if leaf.space.get("type") not in PLAIN:
            where = f"observations/{leaf.key}".rstrip("/")
            more = f"; leave it out with --option drop={leaf.key}" if leaf.path and len(keys) > 1 else ""
            raise InvalidInput(
                f"{name}: {where!r} is a {leaf.space.get('type')} space, which is not read",
                hint=f"Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple are{more}",
            )
    if not kept:
        raise InvalidInput(f"{name}: nothing is left of the observations", hint="keep at least one part of them")
    return kept, dropped


def _action_space(space: dict[str, Any], env_id: str | None, name: str, messages: list[str]) -> tuple[bool, ActionSpace | None]:
    """Return whether actions are discrete, and their space: the declared one, or the environment's if its bounds are not finite."""
    try:
        if space["type"] == "Discrete":
            return True, choices(space["n"], space.get("start") or 0, "declared", name)
        if space["type"] == "Box":
            low, high = (np.asarray(space[key], float) for key in ("low", "high"))
            size = math.prod(int(n) for n in space.get("shape", low.shape))
            if not 0 < size <= MAX_ACTION_SIZE:
                raise ValueError(f"its shape is {space.get('shape')!r:.60}")
            declared = box(np.broadcast_to(low.reshape(-1), size), np.broadcast_to(high.reshape(-1), size), "declared", name)
            return False, declared or probe_environment(env_id, name, messages).space
        if space["type"] == "MultiDiscrete":
            counts = np.asarray(space["nvec"], float)
            if counts.ndim != 1 or not 0 < counts.size <= MAX_ACTION_SIZE:
                raise ValueError(f"its nvec is {space['nvec']!r:.60}")
            start = np.broadcast_to(np.asarray(space.get("start") or 0, float), counts.shape)
            return False, box(start, start + counts - 1, "declared", name, "MultiDiscrete")
        if space["type"] == "MultiBinary":
            size = space["n"][0] if isinstance(space["n"], list) and len(space["n"]) == 1 else space["n"]
            if not isinstance(size, int) or not 0 < size <= MAX_ACTION_SIZE:
                raise ValueError(f"its n is {space['n']!r:.60}")
            return False, box(np.zeros(int(size)), np.ones(int(size)), "declared", name, "MultiBinary")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{name}: the action_space in metadata.json cannot be read: {error}", hint="copy the dataset again") from None
    raise InvalidInput(
        f"{name}: actions are a {space['type']} space, which is not read", hint="Box, Discrete, MultiDiscrete and MultiBinary actions are"
    )


FORMAT = Format(
    "minari",
    "Minari folder (HDF5, Arrow or Parquet)",
    NEEDS,
    detect,
    open_folder,
    {"drop": "parts of the observations to leave out, nested ones as outer/inner"},
)
