"""Import arrays by name: a ``.npz`` file or a dict, one row per step, with the keys of D4RL.

Keys: ``observations``, ``actions``, ``rewards``, ``terminals``; optional: ``timeouts``, ``next_observations``. The singular names are
accepted, and so are ``terminated``, ``terminations``, ``truncated`` and ``truncations``. Several observation fields are
``observations/NAME``. Without ``timeouts`` and ``next_observations`` episodes end at terminals only. ``infos/NAME`` are kept with each
step. The single values ``env_id``, ``action_n``, ``action_low`` and ``action_high`` declare the action space. A file is streamed from its
archive; object arrays (pickles) are never read.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from offrl_store.arrays import as_array
from offrl_store.errors import InvalidInput
from offrl_store.exact_numbers import numbers
from offrl_store.schema import NAME
from offrld.importers.columns import MAX_EPISODE_BYTES, Column
from offrld.importers.flat import FlatArrays, flat_source
from offrld.importers.hdf5 import listed, per_step, plain
from offrld.importers.source import BadEpisodes, Format, Source
from offrld.importers.spaces import ActionSpace, box, choices, kind_of, probe_environment

NEEDS = "observations, actions, rewards, terminals; optional: timeouts, next_observations, infos/NAME, env_id"

ALIASES = {
    "observations": ("observations", "observation"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "terminals": ("terminals", "terminal", "terminated", "terminations"),
    "timeouts": ("timeouts", "timeout", "truncated", "truncations"),
    "next_observations": ("next_observations", "next_observation"),
    "next_observations_known": ("next_observations_known",),
}
NEEDED = ("observations", "actions", "rewards", "terminals")
#: Largest single value: a text, a number, or a bound for each dimension of the actions.
MAX_VALUE_BYTES = 64 << 10

VALUES = ("env_id", "action_n", "action_low", "action_high", "action_kind")


class Archive(Protocol):
    """Opens the arrays of a source by name, as `zipfile.ZipFile` does."""

    def open(self, name: str, /) -> IO[bytes]: ...


class Member:
    """One array of a ``.npz`` file with ``shape``, ``dtype`` and slices of rows, decompressed on demand.

    Read rows in ascending order: a step back restarts the member.
    """

    def __init__(self, archive: Archive, name: str) -> None:
        self._archive, self._name = archive, name
        self._stream: IO[bytes] | None = None
        self._row = 0
        self._broken: tuple[int, str] | None = None  # rows up to this one cannot be read, and the reason
        self._loaded: np.ndarray | None = None
        with archive.open(name) as stream:
            self.shape, self._fortran, self.dtype = _header(stream)
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])

    def __getitem__(self, rows: slice) -> np.ndarray:
        if self._fortran and len(self.shape) > 1:  # stored column by column: only the whole array can be read
            if self._loaded is None:
                self._loaded = self.whole()
            return self._loaded[rows]
        if self._broken is not None and rows.stop >= self._broken[0]:
            raise EOFError(self._broken[1])  # fail at once instead of decompressing from the start for each row
        try:
            return self._read(rows.start, rows.stop)
        except (OSError, EOFError, RuntimeError, ValueError, zlib.error, zipfile.BadZipFile) as error:
            self._broken = (rows.stop, str(error))
            self.close()
            raise

    def _read(self, start: int, stop: int) -> np.ndarray:
        if self._row > start:
            self.close()
        if self._stream is None:
            self._stream, self._row = self._archive.open(self._name), 0
            _header(self._stream)
        stream = self._stream
        _skip(stream, (start - self._row) * self._row_bytes)
        self._row = stop  # wrong after an error, but `__getitem__` then closes the stream
        data = stream.read((stop - start) * self._row_bytes)
        if len(data) != (stop - start) * self._row_bytes:
            raise EOFError("the array is shorter than its header says")
        if stop == self.shape[0]:
            stream.read(1)  # the archive checks its CRC when a read reaches the end
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])

    def whole(self, limit: int = MAX_EPISODE_BYTES) -> np.ndarray:
        """Read the whole array, for single values and Fortran order. Raises ValueError beyond ``limit`` bytes, and for Python objects."""
        size = self.dtype.itemsize * math.prod(self.shape)
        if size > limit:
            order = "; it is in Fortran order, which can only be read whole" if self._fortran and len(self.shape) > 1 else ""
            raise ValueError(f"it takes {size:,} bytes, above {limit:,}{order}")
        if self.dtype.hasobject:
            raise ValueError("it holds Python objects")
        with self._archive.open(self._name) as stream:
            _header(stream)
            data = stream.read(size)
            if len(data) != size:
                raise EOFError("the array is shorter than its header says")
            stream.read(1)  # the archive checks its CRC when a read reaches the end
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if self._fortran else "C")

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        read = len(stream.read(min(count, 1 << 20)))
        if not read:
            raise EOFError("the array is shorter than its header says")
        count -= read


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an ``.npy`` member up to its first value: shape, whether in Fortran order, and dtype. Raises ValueError."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):  # other versions are for headers beyond 64 KiB, which arrays of numbers do not have
        raise ValueError(f"array format version {version} is not read")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except (tokenize.TokenError, SyntaxError, TypeError) as error:
        raise ValueError(f"the header of the array is damaged: {error}") from None
    if any(n < 0 for n in shape):
        raise ValueError(f"the header of the array has the shape {shape}")
    return shape, fortran, dtype


def detect(path: Path) -> bool:
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def open_file(path: Path, bad: BadEpisodes) -> Source:
    """Open a ``.npz`` file. Raises `InvalidInput` if it is not one, is damaged, or lacks arrays."""
    if not path.is_file():
        raise InvalidInput(f"{path} is a folder" if path.is_dir() else f"there is no file {path}", hint="pass a .npz file")
    with ExitStack() as resources:
        try:
            archive = resources.enter_context(zipfile.ZipFile(path))
        except (OSError, zipfile.BadZipFile) as error:
            raise InvalidInput(
                f"{path.name} is not a .npz file, or is cut short: {error}", hint="write it with numpy.savez, or copy it again"
            ) from None
        members: dict[str, Any] = {}
        for key in arrays_in(archive, path.name):
            entry = f"{key}.npy"
            try:
                members[key] = member = Member(archive, entry)
            except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
                raise InvalidInput(
                    f"{path.name}: {key!r} cannot be read: {error}", hint="the file is damaged; write or copy it again"
                ) from None
            resources.callback(member.close)
        source = open_arrays(members, bad, path.name)
        source.resources = resources.pop_all()
        return source


def arrays_in(archive: zipfile.ZipFile, file: str) -> list[str]:
    """Return the names of the arrays in an archive. Raises `InvalidInput` for a repeated name, encryption or an unknown compression."""
    keys: dict[str, None] = {}  # in order
    for info in archive.infolist():
        key = info.filename.removesuffix(".npy")
        if key == info.filename:
            continue
        if key in keys:
            raise InvalidInput(f"{file} holds {key!r} twice", hint="write every array once; numpy.savez does")
        if info.flag_bits & 1:
            raise InvalidInput(f"{file}: {key!r} is encrypted", hint="write the file with numpy.savez, without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InvalidInput(
                f"{file}: {key!r} is compressed by method {info.compress_type}, which is not read",
                hint="write the file with numpy.savez_compressed",
            )
        keys[key] = None
    return list(keys)


def open_arrays(arrays: Mapping[str, Any], bad: BadEpisodes, name: str = "arrays") -> Source:
    """Open a dict of arrays; observations may themselves be a dict of arrays. ``name`` is its name in messages. Raises `InvalidInput`."""
    flat = _flatten(arrays, name)
    for key, value in flat.items():
        if isinstance(value, np.ma.MaskedArray) or not (isinstance(getattr(value, "dtype", None), np.dtype) and hasattr(value, "shape")):
            try:
                flat[key] = (numbers if isinstance(value, list | tuple) else as_array)(value, f"{name}: {key!r}")
            except InvalidInput as error:
                if "differ in shape" not in error.message:
                    raise
                raise InvalidInput(f"{name}: the rows of {key!r} differ in shape", hint="every row needs the same shape") from None
    columns: dict[str, Any] = {}
    used: set[str] = set()
    for key, aliases in ALIASES.items():
        present = [alias for alias in aliases if alias in flat or any(each.startswith(alias + "/") for each in flat)]
        if len(present) > 1:
            raise InvalidInput(f"{name} holds both {present[0]!r} and {present[1]!r}", hint="keep one of them")
        if not present:
            continue
        fields = {each.removeprefix(present[0] + "/"): each for each in flat if each.startswith(present[0] + "/")}
        used |= {present[0], *fields.values()}
        if present[0] in flat:
            if fields:
                both = f"an array {present[0]!r} and {next(iter(fields.values()))!r}"
                raise InvalidInput(f"{name} holds {both}", hint="keep the array, or its fields")
            columns[key] = Column(name, present[0], flat[present[0]])
        else:
            columns[key] = {field: Column(name, each, flat[each]) for field, each in _distinct(fields, name).items()}
    for key in NEEDED:
        if key not in columns:
            hint = (
                "'dones' do not say whether the task ended: give terminals and timeouts; " if key == "terminals" and "dones" in flat else ""
            )
            if key == "terminals" and "masks" in flat and not hint:
                hint = "'masks' are 0 where the task ended: give terminals = 1 - masks; "
            raise InvalidInput(f"{name} holds no {key!r} (it holds {listed(flat)})", hint=f"{hint}needed: {NEEDS}")
    for key in ALIASES:
        if isinstance(columns.get(key), dict) and not key.endswith("observations"):
            raise InvalidInput(f"{name}: {key!r} is a group of arrays", hint="only observations can have several fields")
    messages: list[str] = []
    rows = {columns["actions"].rows}
    infos = {key.removeprefix("infos/"): key for key in flat if key.startswith("infos/") and per_step(flat[key], rows)}
    info_keys = _distinct({inner: key for inner, key in infos.items() if NAME.match(inner.replace("/", "."))}, name)
    extra = {inner: Column(name, key, flat[key]) for inner, key in info_keys.items()}
    used |= set(info_keys.values())
    ignored = [key for key in flat if key not in used and key not in VALUES]
    if ignored:
        messages.append(f"not imported: {listed(ignored)}")
    values = {key: _value(flat[key], key, name) for key in VALUES if key in flat}
    env_id = values.get("env_id")
    if env_id is not None and not isinstance(env_id, str):
        raise InvalidInput(f"{name}: env_id is {env_id!r}", hint="pass the name of a gymnasium environment, or remove it")
    space = _declared(values, name) or probe_environment(env_id, name, messages).space
    steps = FlatArrays(
        columns["observations"],
        columns["actions"],
        columns["rewards"],
        columns["terminals"],
        columns.get("timeouts"),
        columns.get("next_observations"),
        columns.get("next_observations_known"),
        extra=extra,
    )
    return flat_source(steps, bad, format="npz", env_id=env_id, space=space, attributes=values, messages=messages)


def _flatten(arrays: Mapping[str, Any], name: str, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to ``outer/inner`` keys. Raises `InvalidInput` if two keys become one."""
    flat: dict[str, Any] = {}
    for key, value in arrays.items():
        added = _flatten(value, name, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        if both := flat.keys() & added.keys():
            raise InvalidInput(f"{name} holds {min(both)!r} twice", hint="write every array once")
        flat.update(added)
    return flat


def _distinct(fields: Mapping[str, str], name: str) -> dict[str, str]:
    """Return name of the field (with dots between its parts) -> key. Raises `InvalidInput` if two keys become one name."""
    keys: dict[str, str] = {}
    for inner, key in fields.items():
        field = inner.replace("/", ".")
        if field in keys:
            raise InvalidInput(f"{name}: {keys[field]!r} and {key!r} would both be {field!r}", hint="rename one of the arrays")
        keys[field] = key
    return keys


def _value(array: Any, key: str, name: str) -> Any:
    """Return a small array as a JSON value: text, a number or a list. Raises `InvalidInput`."""
    try:
        array = array.whole(MAX_VALUE_BYTES) if isinstance(array, Member) else np.asarray(array)
        if array.nbytes > MAX_VALUE_BYTES:
            raise ValueError(f"it takes {array.nbytes:,} bytes, above {MAX_VALUE_BYTES:,}")
        return plain(array.item() if array.size == 1 and key in ("env_id", "action_n", "action_kind") else array)
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InvalidInput(
            f"{name}: {key!r} cannot be read: {error}", hint="give plain text and numbers; Python objects are never read"
        ) from None


def _declared(values: dict[str, Any], name: str) -> ActionSpace | None:
    try:
        if "action_n" in values:
            return choices(values["action_n"], 0, "declared", name)
        if "action_low" in values or "action_high" in values:
            low, high = (np.asarray(values.get(key, no), float) for key, no in (("action_low", -np.inf), ("action_high", np.inf)))
            return box(low, high, "declared", name, kind_of({"action_space": {"kind": values.get("action_kind")}}))
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{name}: action_n, action_low, action_high cannot be read: {error}", hint="correct or remove them") from None
    return None


FORMAT = Format("npz", ".npz file of flat arrays, one row per step", NEEDS, detect, open_file)
