"""TorchRL: a folder that ``ReplayBuffer.dumps`` wrote over a ``LazyMemmapStorage``, read without torch.

``storage/`` holds one raw file ``KEY.memmap`` per leaf, as many rows as the buffer can hold, nested keys in folders of their own, and a
``meta.json`` in each folder with dtypes and shapes; ``storage_metadata.json`` says how many rows are filled, ``writer/metadata.json`` where
the ring goes on. Leaves: ``observation`` and others that ``next`` has, too, are observations; ``action``; ``next/reward``; ``next/done``,
``next/terminated``, ``next/truncated``; ``collector/traj_ids`` ends an episode where it changes. Other leaves are kept with each step.
Integer actions of several columns are one-hot (TorchRL's default for discrete ones). Rows are put in the order in which they were written.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store.errors import EmptyStore, InvalidInput
from offrl_store.schema import DTYPES, NAME

from .columns import Column
from .flat import FlatArrays, flat_source
from .hdf5 import listed
from .reading import read_json
from .source import BadEpisodes, BadRow, Format, Source

NEEDS = "a folder with storage/meta.json and .memmap files: observation, action, next/observation, next/reward, next/done"
FLAGS = ("done", "terminated", "truncated", "is_init")


class Ring:
    """Rows of an array from row ``first`` on, around its end, as the data of a column."""

    def __init__(self, data: Any, first: int, rows: int) -> None:
        self._data, self._first = data, first
        self.shape, self.dtype = (rows, *data.shape[1:]), data.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        total = len(self._data)
        start, stop = rows.start + self._first, rows.stop + self._first
        if start >= total:
            return self._data[start - total : stop - total]
        if stop <= total:
            return self._data[start:stop]
        return np.concatenate([self._data[start:], self._data[: stop - total]])


class OneHot:
    """Rows with one 1 each, as its place, as the data of a column."""

    dtype = np.dtype(np.int64)

    def __init__(self, data: Any, file: str) -> None:
        self._data, self._file, self.shape = data, file, (data.shape[0],)

    def __getitem__(self, rows: slice) -> np.ndarray:
        block = np.asarray(self._data[rows])
        wrong = np.flatnonzero(((block != 0).sum(1) != 1) | (block.sum(1, dtype=np.int64) != 1))
        if len(wrong):
            row = rows.start + int(wrong[0])
            raise BadRow(f"{self._file}: action[{row}] is {block[wrong[0]].tolist()}, which is no one-hot choice", row,
                         hint="several discrete actions per step are not supported")  # fmt: skip
        return block.argmax(1)


def storage_folder(path: Path) -> Path | None:
    """The folder of the arrays, for a dumped buffer or for that folder itself; None where there is none."""
    for folder in (path / "storage", path):
        if (folder / "meta.json").is_file() and (folder / "storage_metadata.json").is_file():
            return folder
    return None


def detect(path: Path) -> bool:
    return path.is_dir() and storage_folder(path) is not None


def open_folder(path: Path, bad: BadEpisodes) -> Source:
    """Opens a dumped buffer; raises `InvalidInput` when the folder is none, or a file is missing or cut."""
    folder, name = storage_folder(path), path.resolve().name
    if folder is None:
        raise InvalidInput(f"{path} is no dumped replay buffer", hint=f"needed: {NEEDS}")
    filled = _json(folder / "storage_metadata.json", name).get("len")
    shape = _json(folder / "meta.json", name).get("shape")
    if not isinstance(shape, list) or len(shape) != 1:
        raise InvalidInput(f"{name}: the storage has the shape {shape}", hint="one row per step (ndim=1) is read; dump it so")
    rows = int(shape[0])
    if not isinstance(filled, int) or not 0 <= filled <= rows:
        raise InvalidInput(f"{name}: storage_metadata.json says {filled!r} of {rows} rows", hint="the folder is damaged; dump it again")
    if not filled:
        raise EmptyStore(f"{name} holds no steps", hint="dump a buffer with at least one episode")
    writer = folder.parent / "writer" / "metadata.json"
    cursor = _json(writer, name).get("cursor", 0) if writer.is_file() else 0
    first = cursor if filled == rows and isinstance(cursor, int) and 0 <= cursor < rows else 0
    others: list[str] = []
    leaves = {key: Ring(array, first, filled) for key, array in _leaves(folder, "", rows, name, others).items()}
    missing = [key for key in ("action", "next/reward") if key not in leaves]
    if missing or not ({"next/done", "next/terminated"} & leaves.keys()):
        raise InvalidInput(f"{name} holds no {(missing or ['next/done'])[0]!r} (it holds {listed(leaves)})", hint=f"needed: {NEEDS}")
    observed = [key for key in leaves if not key.startswith("next/") and f"next/{key}" in leaves and key not in (*FLAGS, "reward")]
    if not observed:
        raise InvalidInput(f"{name} holds no observation that next/ has, too", hint=f"needed: {NEEDS}")
    messages = ["the rows are those of a ring that went around: its first episode may lack its beginning"] if first else []
    column = lambda key: Column(name, key, leaves[key])  # noqa: E731
    terminals, timeouts = _ends(leaves, name, messages)
    single = observed == ["observation"]
    fields = {key: column(key) for key in observed}
    following = {key: Column(name, f"next/{key}", leaves[f"next/{key}"]) for key in observed}
    dotted = lambda named: {key.replace("/", "."): each for key, each in named.items()}  # noqa: E731
    used = {"action", "collector/traj_ids", *observed}
    extra = {key: column(key) for key in leaves if key not in used and not key.startswith("next/") and key.split("/")[-1] not in FLAGS
             and key not in ("reward", "index", "_weight") and NAME.match(key.replace("/", "."))}  # fmt: skip
    others += [key for key in leaves if key.startswith("next/") and key[5:] not in (*observed, *FLAGS, "reward")]
    if others:
        messages.append(f"not imported: {listed(others)}")
    arrays = FlatArrays(
        fields["observation"] if single else dotted(fields), _action(leaves["action"], name), column("next/reward"), terminals, timeouts,
        following["observation"] if single else dotted(following), extra=dotted(extra),
    )  # fmt: skip
    return flat_source(arrays, bad, format="torchrl", env_id=None, space=None, attributes={}, messages=messages)


def _leaves(folder: Path, prefix: str, rows: int, name: str, others: list[str]) -> dict[str, np.ndarray]:
    """Every array below a folder by its key, ``outer/inner``, mapped into memory."""
    found: dict[str, np.ndarray] = {}
    for key, described in _json(folder / "meta.json", name).items():
        path = f"{prefix}{key}"
        if "/" in key or key.startswith(".") or not isinstance(described, dict):
            continue
        if "dtype" not in described:
            if (folder / key / "meta.json").is_file():
                found |= _leaves(folder / key, f"{path}/", rows, name, others)
            else:
                others.append(path)
            continue
        dtype, shape = str(described["dtype"]).removeprefix("torch."), described.get("shape")
        if dtype not in DTYPES or described.get("is_nested") or not isinstance(shape, list) or shape[:1] != [rows]:
            others.append(path)
            continue
        file = folder / f"{key}.memmap"
        size = np.dtype(dtype).itemsize * math.prod(shape)
        if not file.is_file() or file.stat().st_size < size:
            there = file.stat().st_size if file.is_file() else 0
            raise InvalidInput(f"{name}: {path}.memmap has {there} bytes, {size} are due", hint="the folder is incomplete; copy it again")
        found[path] = np.memmap(file, dtype, "r", shape=tuple(shape))
    return found


def _ends(leaves: dict[str, Ring], name: str, messages: list[str]) -> tuple[Column, Column]:
    """Flags of terminals and of cuts, both ``[N]``."""
    flags = {key: Column(name, f"next/{key}", leaves[f"next/{key}"]) for key in FLAGS if f"next/{key}" in leaves}
    rows = next(iter(leaves.values())).shape[0]
    read = {key: each.read_flags(0, rows) for key, each in flags.items()}
    none = np.zeros(rows, bool)
    if "terminated" not in read:
        messages.append("there is no next/terminated: where next/done is set and next/truncated is not, the task has ended")
    terminated = read.get("terminated", read.get("done", none) & ~read.get("truncated", none))
    cut = read.get("truncated", none) | read.get("done", none)
    if "collector/traj_ids" in leaves:
        ids = np.asarray(leaves["collector/traj_ids"][0:rows]).reshape(rows)
        cut = cut | np.append(ids[1:] != ids[:-1], False)
    return Column(name, "next/terminated", terminated), Column(name, "next/truncated", cut)


def _action(data: Ring, name: str) -> Column:
    if data.dtype.kind in "biu" and len(data.shape) == 2 and data.shape[1] > 1:
        return Column(name, "action", OneHot(data, name))
    return Column(name, "action", data)


def _json(path: Path, name: str) -> dict[str, Any]:
    value = read_json(path, f"{name}: {path.name}")
    if not isinstance(value, dict):
        raise InvalidInput(f"{name}: {path.name} is no JSON object", hint="the folder is damaged; dump the buffer again")
    return value


FORMAT = Format("torchrl", "folder of TorchRL's ReplayBuffer.dumps with memory maps", NEEDS, detect, open_folder)
