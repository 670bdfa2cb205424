"""Exporting a store: as flat D4RL HDF5, as ``.npz``, for Minari, for d3rlpy, or as a store of its own.

The importers read ``d4rl``, ``npz`` and ``store`` back without loss; what the formats of `recorded_export` leave out they say.
Flat files carry ``next_observations`` where the store has final observations, and ``next_observations_known`` where it has only some of
them; bounds, the number of actions and ``env_id`` go along. Extra fields become ``infos/NAME``, what a D4RL file had as metadata stands
under ``metadata/`` again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from offrl.errors import Unknown, nearest
from offrl_store import EpisodeStore, Field
from offrl_store.disk import disk_errors, reserve
from offrl_store.errors import DiskFull, EmptyStore, InvalidInput
from offrld.importers import native
from offrld.importers.atari_export import write_atari
from offrld.importers.calm_file import CalmFile
from offrld.importers.columns import BLOCK_BYTES
from offrld.importers.exporting import Export, Progress, set_attributes
from offrld.importers.gen_dgrl_export import write_gen_dgrl
from offrld.importers.ingest import import_into
from offrld.importers.lerobot_export import write_lerobot
from offrld.importers.recorded_export import write_d3rlpy, write_d3rlpy_v1, write_minari
from offrld.importers.robomimic_export import write_robomimic
from offrld.importers.spaces import kind_of
from offrld.importers.torchrl_export import write_torchrl


def export_dataset(
    store: EpisodeStore,
    out_path: str | os.PathLike[str],
    format: str,
    *,
    compress: bool = False,
    progress: Progress | None = None,
    message: Callable[[str], None] | None = None,
) -> Path:
    """Writes the episodes that ``store`` sees to ``out_path``, which must not exist; it appears there when it is complete.

    Args:
        format: ``d4rl``, ``npz``, ``store``, ``minari`` (a folder), ``d3rlpy`` (version 2, layout 2.1), ``d3rlpy-v1``, ``robomimic``,
            ``torchrl``, ``gen_dgrl``, ``atari`` or ``lerobot`` (folders).
        compress: gzip in HDF5, deflate in ``.npz``; smaller and slower ``gen_dgrl`` and ``atari``, which are always compressed; without
            meaning for ``store``.
        progress: called with (episodes done, episodes in all); ``npz`` goes through the episodes once per array.
        message: called with a line for everything that the format has no place for.

    Raises:
        Unknown: no such format.
        InvalidInput: the path exists, the store is empty, or has a form that the format does not have (several action fields).
        DiskFull: nothing is left at ``out_path``.
    """
    path, message = Path(out_path), message or _said_nowhere
    if format not in EXPORTS:
        raise Unknown(f"unknown export format {format!r}", hint=nearest(format, list(EXPORTS)))
    if path.exists():
        raise InvalidInput(f"{path} exists already", hint="remove it or choose another name")
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent}", hint="make it first")
    if not len(store):
        raise EmptyStore("the dataset holds no episodes", hint="nothing was written")
    temporary = path.parent / f".{path.name}.partial-{secrets.token_hex(4)}"
    try:
        with disk_errors(path):
            EXPORTS[format](Export(store, temporary, path, compress, progress or _silent, message))
            os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        if isinstance(error, DiskFull):
            raise DiskFull(f"no space left to write {path}", hint="free some space and export again; nothing was left there") from None
        raise
    return path


def dump_dataset(store: EpisodeStore, file: BinaryIO, format: str = "d3rlpy", **options: Any) -> None:
    """`export_dataset` into a file that is open for writing, as d3rlpy's ``dump`` takes it ("wb" is enough): made beside it, then copied.

    Raises `InvalidInput` for the formats that are folders; else as `export_dataset`.
    """
    if format in FOLDERS:
        raise InvalidInput(f"{format!r} is a folder and does not go into a file", hint="export_dataset(store, path, format)")
    with tempfile.TemporaryDirectory(prefix="offrl-dump-") as folder:
        path = export_dataset(store, Path(folder) / "dump", format, **options)
        with disk_errors(Path(str(getattr(file, "name", "the file")))), open(path, "rb") as made:
            shutil.copyfileobj(made, file, 1 << 20)
            file.flush()


def _silent(done: int, total: int | None) -> None:
    """No progress is asked for."""


def _said_nowhere(line: str) -> None:
    """Nobody wants the messages."""


@dataclass(frozen=True)
class FlatColumn:
    """One array of a flat export: its key, the dtype and shape of a row, and the rows of episode ``i``, ``[T, ...]``."""

    key: str
    field: Field
    rows: Callable[[int], np.ndarray]


def flat_columns(store: EpisodeStore) -> list[FlatColumn]:
    """The arrays of a flat export, in the order in which they are written."""
    schema = store.schema
    if not isinstance(schema.action, Field):
        raise InvalidInput(
            f"the dataset has several action fields ({', '.join(schema.action)})", hint="flat formats hold one; export it as 'store'"
        )
    episodes = store.episodes
    missing = store.episode_table["flags"] & 2 != 0  # FINAL_MISSING
    columns = []
    named = (
        {"": schema.observation}
        if isinstance(schema.observation, Field)
        else {f"/{name}": each for name, each in schema.observation.items()}
    )

    def observation(i: int, name: str) -> np.ndarray:
        value = episodes[i].observation
        return value[name[1:]] if name else value

    def before(i: int, name: str) -> np.ndarray:
        return observation(i, name)[: episodes[i].steps]

    def extra(i: int, name: str) -> np.ndarray:
        return episodes[i].extra[name]

    def following(i: int, name: str) -> np.ndarray:
        rows, steps = observation(i, name), episodes[i].steps
        return rows[1:] if len(rows) > steps else np.concatenate([rows[1:], np.zeros_like(rows[:1])])

    def known(i: int) -> np.ndarray:
        flags = np.ones(episodes[i].steps, bool)
        flags[-1] = not missing[i]
        return flags

    def ended(i: int, terminated: bool) -> np.ndarray:
        flags = np.zeros(episodes[i].steps, bool)
        flags[-1] = episodes[i].terminated == terminated
        return flags

    flag = Field("bool")
    for name, field in named.items():
        columns.append(FlatColumn(f"observations{name}", field, partial(before, name=name)))
    columns.append(FlatColumn("actions", schema.action, lambda i: episodes[i].action))
    columns.append(FlatColumn("rewards", schema.reward, lambda i: episodes[i].reward))
    columns.append(FlatColumn("terminals", flag, lambda i: ended(i, True)))
    columns.append(FlatColumn("timeouts", flag, lambda i: ended(i, False)))
    if not missing.all():
        for name, field in named.items():
            columns.append(FlatColumn(f"next_observations{name}", field, partial(following, name=name)))
        if missing.any():
            columns.append(FlatColumn("next_observations_known", flag, known))
    for name, field in schema.extra.items():
        columns.append(FlatColumn(f"infos/{name}", field, partial(extra, name=name)))
    return columns


def _joined(column: FlatColumn, count: int) -> Iterator[np.ndarray]:
    """The rows of all episodes in blocks: short episodes are put together, so that writing costs the bytes and not the episodes."""
    parts: list[np.ndarray] = []
    size = 0
    for i in range(count):
        parts.append(column.rows(i))
        size += parts[-1].nbytes
        if size >= BLOCK_BYTES:
            yield np.concatenate(parts)
            parts, size = [], 0
    if parts:
        yield np.concatenate(parts)


def _declared(store: EpisodeStore) -> dict[str, Any]:
    """Values that go along with flat arrays, so that an import declares the same action space."""
    action, metadata = store.schema.action, store.metadata
    values: dict[str, Any] = {"env_id": metadata["env_id"]} if isinstance(metadata.get("env_id"), str) else {}
    if metadata.get("bounds") == "inferred":
        return values
    if action.discrete:
        values["action_n"] = action.n
    else:
        bounds = {"action_low": action.low, "action_high": action.high}
        values |= {key: np.asarray(bound, np.float64) for key, bound in bounds.items() if bound is not None}
        if kind := kind_of(metadata):
            values["action_kind"] = kind
    return values


def _write_d4rl(export: Export) -> None:
    store, progress, columns, count = export.store, export.progress, flat_columns(export.store), len(export.store)
    options = {"compression": "gzip", "shuffle": True, "chunks": True} if export.compress else {}
    attributes = store.metadata.get("source_attributes")
    with contextlib.closing(CalmFile(export.path)) as calm, h5py.File(calm, "w") as file:
        set_attributes(file, attributes)
        set_attributes(file, _declared(store))
        _set_metadata(file, "metadata", store.metadata.get("source_metadata"))
        for group in dict.fromkeys(column.key.rpartition("/")[0] for column in columns if "/" in column.key):
            file.create_group(group, track_order=True)  # fields keep their order, which is that of a network's input
        for done, column in enumerate(columns, start=1):
            dataset = file.create_dataset(column.key, (store.step_count, *column.field.shape), column.field.dtype, **options)
            start = 0
            for block in _joined(column, count):
                dataset[start : start + len(block)] = block
                start += len(block)
                calm.check()
            progress(count * done // len(columns), count)
        file.close()  # writes what HDF5 still holds
        calm.check()


def _set_metadata(file: h5py.File, key: str, value: Any) -> None:
    """JSON values as datasets, objects as groups; what the import only described (large arrays) is left out."""
    if isinstance(value, dict):
        for name, each in value.items():
            _set_metadata(file, f"{key}/{name}", each)
    elif isinstance(value, (str, bool, int, float, list)) and not str(value).startswith("array of "):
        with contextlib.suppress(TypeError, ValueError):  # a list of lists of different lengths has no form in HDF5
            file[key] = value


def _write_npz(export: Export) -> None:
    store, progress, columns, count = export.store, export.progress, flat_columns(export.store), len(export.store)
    with zipfile.ZipFile(export.path, "w", zipfile.ZIP_DEFLATED if export.compress else zipfile.ZIP_STORED) as archive:
        for done, column in enumerate(columns, start=1):
            with archive.open(f"{column.key}.npy", "w", force_zip64=True) as member:
                header = {
                    "descr": np.lib.format.dtype_to_descr(column.field.dtype),
                    "fortran_order": False,
                    "shape": (store.step_count, *column.field.shape),
                }
                np.lib.format.write_array_header_1_0(member, header)
                for block in _joined(column, count):
                    reserve(block.nbytes)
                    member.write(np.ascontiguousarray(block).data.cast("B"))
            progress(count * done // len(columns), count)
        for key, value in _declared(store).items():
            with archive.open(f"{key}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)


def _write_store(export: Export) -> None:
    """The episodes are appended anew: exactly those of the store's snapshot, each checked, also while somebody appends to it."""
    import_into(native.open_store(export.store, export.store.path.name), export.path, progress=export.progress)


#: Format name -> what writes it.
EXPORTS: dict[str, Callable[[Export], None]] = {
    "d4rl": _write_d4rl, "npz": _write_npz, "store": _write_store, "minari": write_minari, "d3rlpy": write_d3rlpy,
    "d3rlpy-v1": write_d3rlpy_v1, "robomimic": write_robomimic, "torchrl": write_torchrl, "gen_dgrl": write_gen_dgrl,
    "atari": write_atari, "lerobot": write_lerobot,
}  # fmt: skip

#: The formats that are folders; the others are single files.
FOLDERS = ("store", "minari", "torchrl", "gen_dgrl", "atari", "lerobot")
