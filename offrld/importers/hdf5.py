"""Read untrusted HDF5 files: one-line errors, plain datasets only, attributes as JSON values."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offrl_store.errors import InvalidInput
from offrl_store.schema import DTYPES, NAME
from offrld.importers.columns import Column

#: Groups are followed to this depth, because a group can contain itself.
DEPTH = 16

#: Largest chunk. HDF5 inflates a chunk whole, and no sensible file has larger ones.
MAX_CHUNK_BYTES = 1 << 30

#: Filters that are read: those of HDF5 itself, and LZF of h5py. For any other filter HDF5 would search and load a shared library.
FILTERS = {
    h5py.h5z.FILTER_DEFLATE: "gzip", h5py.h5z.FILTER_SHUFFLE: "shuffle", h5py.h5z.FILTER_FLETCHER32: "fletcher32",
    h5py.h5z.FILTER_SZIP: "szip", h5py.h5z.FILTER_NBIT: "nbit", h5py.h5z.FILTER_SCALEOFFSET: "scaleoffset", h5py.h5z.FILTER_LZF: "lzf",
}  # fmt: skip

#: Largest allowed ratio of an array's size to its size in the file (gzip reaches 1032); arrays up to the second size are exempt.
MAX_RATIO, MAX_FILLED_BYTES = 2000, 256 << 20

#: Largest text of an attribute or of metadata (all texts of an array together), and largest number of names in a list.
MAX_TEXT_BYTES, MAX_TEXTS = 1 << 20, 1 << 17

#: Longer arrays are not metadata: only their dtype and shape are kept.
MAX_VALUES = 256

#: Largest number of soft links that are followed in a path.
LINKS = 16


def is_hdf5(path: Path) -> bool:
    """Return whether the file starts as HDF5 does. It may still be damaged."""
    try:
        return path.is_file() and bool(h5py.is_hdf5(path))
    except OSError:
        return False


def open_hdf5(path: Path) -> h5py.File:
    """Open a file for reading. Raises `InvalidInput` that distinguishes a missing, locked, foreign and damaged file."""
    if not path.is_file():
        raise InvalidInput(f"{path} is a folder" if path.is_dir() else f"there is no file {path}", hint="pass an HDF5 file")
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InvalidInput(f"{path.name} cannot be read: {error.strerror}", hint="check its owner and mode") from None
    if empty:
        raise InvalidInput(f"{path.name} is empty", hint="give an HDF5 file with content; the program that writes it may still be running")
    if not is_hdf5(path):
        raise InvalidInput(f"{path.name} is not an HDF5 file", hint="pass an .hdf5 or .h5 file, or name the format with --format")
    try:
        return h5py.File(path, "r")
    except BlockingIOError:
        hint = "close it there, or wait until the program that writes it has ended"
        raise InvalidInput(f"{path.name} is open for writing in another program", hint=hint) from None
    except (OSError, RuntimeError) as error:
        if "consistency flags" in str(error) or "already open for write" in str(error):  # HDF5 marks a file that has a writer
            hint = "close it there; if no program has it open, its writer died: `h5clear -s` clears the mark"
            raise InvalidInput(f"{path.name} is open for writing in another program", hint=hint) from None
        raise InvalidInput(
            f"{path.name} cannot be opened: {_short(error)}", hint="the file is damaged or cut short; copy or download it again"
        ) from None


def keys(path: Path) -> set[str]:
    """Return the names at the root of a file, to detect its format; empty if it cannot be opened."""
    try:
        with h5py.File(path, "r") as file:
            return set(file)
    except DAMAGE:
        return set()


#: Errors that h5py raises for damaged files, including invalid names and types.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)


def names(group: h5py.Group, file: str) -> list[str]:
    """Return the names in a group, in the order of creation if the file tracks it, else sorted.

    Raises `InvalidInput` if they are unreadable.
    """
    try:
        in_file = list(group)
        return in_file if group.id.get_create_plist().get_link_creation_order() & h5py.h5p.CRT_ORDER_TRACKED else sorted(in_file)
    except DAMAGE as error:
        where = f"{group.name!r} " if isinstance(group.name, str) else ""
        raise InvalidInput(
            f"{file}: a group {where}cannot be read: {_short(error)}", hint="the file is damaged or cut short; copy it again"
        ) from None


def node(group: h5py.Group, key: str, file: str) -> Any:
    """Return the `h5py.Dataset` or `h5py.Group` under ``key``, or None.

    Raises `InvalidInput` for links and layouts that would read other files of this machine, because the file is not trusted.
    """
    path = f"{group.name.strip('/')}/{key}".strip("/")
    try:
        if group.get(key, getlink=True) is None:
            return None
        found = _followed(group, key)
        if found is None:
            raise InvalidInput(f"{file}: {path!r} is a link out of the file, or to nothing", hint="store the data itself in the file")
        if isinstance(found, h5py.Dataset):
            _check_dataset(found, path, file)
        elif not isinstance(found, h5py.Group):
            raise InvalidInput(f"{file}: {path!r} is a type, neither an array nor a group", hint="remove it from the file")
        if found.name.count("/") > DEPTH:
            hint = "the file is damaged, or a group holds itself"
            raise InvalidInput(f"{file}: {path[:60]!r} is nested more than {DEPTH} deep", hint=hint)
    except DAMAGE as error:
        raise InvalidInput(
            f"{file}: {path!r} cannot be read: {_short(error)}", hint="the file is damaged or cut short; copy it again"
        ) from None
    return found


def _followed(group: h5py.Group, key: str) -> Any:
    """Follow ``key`` part by part through soft links inside the file. Returns None if a part is missing or leads out of the file.

    HDF5 itself would also follow a soft link whose path contains an external link, and open the file that the external link names.
    """
    at: Any = group
    parts, hops = key.split("/")[::-1], 0
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        link = at.get(part, getlink=True) if isinstance(at, h5py.Group) else None
        if isinstance(link, h5py.HardLink):
            at = at[part]
        elif isinstance(link, h5py.SoftLink) and hops < LINKS:
            hops += 1
            parts += link.path.split("/")[::-1]
            at = at.file["/"] if link.path.startswith("/") else at
        else:
            return None
    return at


def _check_dataset(found: h5py.Dataset, path: str, file: str) -> None:
    """Raise `InvalidInput` for a dataset whose data lie in other files, that is empty, has an unknown filter, or would inflate beyond
    limits.
    """
    created = found.id.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count():
        raise InvalidInput(f"{file}: {path!r} keeps its data in another file", hint="store the data itself in the file")
    for code, _, _, name in (created.get_filter(i) for i in range(created.get_nfilters())):
        if code not in FILTERS:
            label = name.decode("utf-8", "replace") or "unnamed"
            raise InvalidInput(
                f"{file}: {path!r} is compressed by the filter {label!r:.60} ({code}), which is not read",
                hint="write it with gzip or lzf, or uncompressed",
            )
    size = found.dtype.itemsize * math.prod(found.chunks or (0,))
    if size > MAX_CHUNK_BYTES:
        raise InvalidInput(
            f"{file}: {path!r} is kept in chunks of {size:,} bytes", hint=f"write it in chunks of at most {MAX_CHUNK_BYTES:,} bytes"
        )
    if found.shape is None:
        raise InvalidInput(f"{file}: {path!r} holds nothing", hint="it must be an array with one row per step")
    declared = found.dtype.itemsize * math.prod(found.shape)
    if declared > MAX_FILLED_BYTES and declared > MAX_FILLED_BYTES + MAX_RATIO * (stored := found.id.get_storage_size()):
        raise InvalidInput(
            f"{file}: {path!r} has the shape {found.shape}, {declared:,} bytes, of which the file keeps {stored:,}",
            hint="the rest was never written; write the array whole, or shorten it",
        )


def column(group: h5py.Group, key: str, file: str) -> Column | None:
    """Return the dataset under ``key`` as a column, or None if the key is missing."""
    found = node(group, key, file)
    if found is None:
        return None
    path = found.name.strip("/")
    if not isinstance(found, h5py.Dataset):
        raise InvalidInput(f"{file}: {path!r} is a group, not an array", hint="it must be an array with one row per step")
    return Column(file, path, found)


def need_column(group: h5py.Group, key: str, file: str, needs: str) -> Column:
    """Return the dataset under ``key`` as a column. Raises `InvalidInput` with the needs of the format if it is missing."""
    found = column(group, key, file)
    if found is None:
        path = f"{group.name.strip('/')}/{key}".strip("/")
        raise InvalidInput(f"{file} holds no {path!r} (it holds {listed(names(group, file))})", hint=f"needed: {needs}")
    return found


def columns(
    group: h5py.Group, key: str, file: str, convert: Callable[[h5py.Dataset], Any] | None = None
) -> dict[str, Column] | Column | None:
    """Return an array as a column, or a group of arrays (several observation fields) by name; nested names are joined with a dot.

    ``convert`` returns the data of the column for a dataset; by default that is the dataset.
    """
    found = node(group, key, file)
    if isinstance(found, h5py.Dataset):
        return Column(file, found.name.strip("/"), convert(found) if convert is not None else found)
    if found is None:
        return None
    flat: dict[str, Column] = {}
    for name in names(found, file):
        inner = columns(found, name, file, convert)
        named = {f"{name}.{deep}": each for deep, each in inner.items()} if isinstance(inner, dict) else {name: inner} if inner else {}
        for key, each in named.items():
            if key in flat:
                raise InvalidInput(f"{file}: {flat[key].key!r} and {each.key!r} would both be {key!r}", hint="rename one of the arrays")
            flat[key] = each
    if not flat:
        raise InvalidInput(f"{file}: the group {found.name.strip('/')!r} is empty", hint="it must hold one array per field")
    return flat


def extras(group: h5py.Group, key: str, rows: set[int], file: str) -> tuple[dict[str, Column], list[str]]:
    """Return the arrays below ``key`` that can be kept with each step, and the names of the others. Nested names are joined with a dot.

    An array can be kept if it holds plain numbers and its number of rows is one of ``rows``.
    """
    found = node(group, key, file)
    kept: dict[str, Column] = {}
    others: list[str] = []
    for name in names(found, file) if isinstance(found, h5py.Group) else ():
        inner = node(found, name, file)
        path = inner.name.strip("/")
        if isinstance(inner, h5py.Group):
            deep, left = extras(found, name, rows, file)
            for each, column in deep.items():
                if f"{name}.{each}" in kept:  # an array already has this name
                    others.append(column.key)
                else:
                    kept[f"{name}.{each}"] = column
            others += left
        elif per_step(inner, rows) and NAME.match(name) and name not in kept:
            kept[name] = Column(file, path, inner)
        else:
            others.append(path)
    return {name: column for name, column in kept.items() if NAME.match(name)}, others


def per_step(array: Any, rows: set[int]) -> bool:
    """Return whether an array holds plain numbers, one row per step."""
    return len(array.shape) > 0 and array.shape[0] in rows and np.dtype(array.dtype).name in DTYPES and 0 not in array.shape[1:]


def values(group: h5py.Group, key: str, file: str) -> dict[str, Any]:
    """Return the content below ``key`` as JSON values. Arrays of more than `MAX_VALUES` are described by dtype and shape."""
    found = node(group, key, file)
    kept: dict[str, Any] = {}
    for name in names(found, file) if isinstance(found, h5py.Group) else ():
        inner = node(found, name, file)
        if isinstance(inner, h5py.Group):
            kept[name] = values(found, name, file)
        elif inner.size > MAX_VALUES or inner.nbytes > MAX_TEXT_BYTES:
            kept[name] = f"array of {inner.dtype}, shape {inner.shape}"
        else:
            try:
                kept[name] = plain(_read_texts(inner) if inner.dtype.hasobject else inner[()])
            except DAMAGE as error:
                kept[name] = f"unreadable: {_short(error)}"
    return kept


def scalar(group: h5py.Group, key: str, file: str) -> Any:
    """Return a single value that is stored as a dataset (number, flag or text), or None if it is missing."""
    found = node(group, key, file)
    if found is None:
        return None
    if not isinstance(found, h5py.Dataset) or found.size != 1 or found.nbytes > MAX_TEXT_BYTES:
        raise InvalidInput(f"{file}: {key!r} is not a single value", hint="the file does not follow its format; write it again")
    try:
        return plain(np.asarray(found[()]).reshape(-1)[0])
    except DAMAGE as error:
        raise InvalidInput(f"{file}: {key!r} cannot be read: {_short(error)}", hint="the file is damaged; copy it again") from None


def texts(group: h5py.Group, key: str, file: str) -> list[str]:
    """Return an array of texts as a list; [] if it is missing."""
    found = node(group, key, file)
    if not isinstance(found, h5py.Dataset):
        return []
    if h5py.check_string_dtype(found.dtype) is None:
        raise InvalidInput(f"{file}: {key!r} of {group.name!r} holds {found.dtype}, not texts", hint="write a list of names")
    if found.size > MAX_TEXTS or (not found.dtype.hasobject and found.nbytes > 256 * MAX_TEXTS):
        raise InvalidInput(
            f"{file}: {key!r} of {group.name!r} holds {found.size:,} texts of {found.nbytes:,} bytes",
            hint=f"a list has at most {MAX_TEXTS:,} names",
        )
    try:
        return [str(plain(each)) for each in (_read_texts(found) if found.dtype.hasobject else np.asarray(found[()]).reshape(-1))]
    except DAMAGE as error:
        raise InvalidInput(f"{file}: {key!r} cannot be read: {_short(error)}", hint="the file is damaged; copy it again") from None


def _read_texts(found: h5py.Dataset) -> Any:
    """Read the texts of an array one by one, because many elements can refer to one long text.

    Raises ValueError beyond `MAX_TEXT_BYTES`.
    """
    if found.shape == ():
        return found[()]
    read, total = [], 0
    for at in np.ndindex(found.shape):
        read.append(found[at])
        total += len(read[-1]) if hasattr(read[-1], "__len__") else 1
        if total > MAX_TEXT_BYTES:
            raise ValueError(f"its texts are longer than {MAX_TEXT_BYTES:,} bytes")
    return read


def attributes(group: h5py.Group) -> dict[str, Any]:
    """Return the attributes as JSON values. Large arrays are described by dtype and shape, unreadable attributes by their error."""
    values: dict[str, Any] = {}
    try:
        attribute_names = list(group.attrs)
        length = os.path.getsize(group.file.filename)
    except DAMAGE:
        return {"unreadable": "the attributes are damaged"}
    for name in attribute_names:
        try:
            opened = group.attrs.get_id(name)
            count = math.prod(opened.shape or ())
            # All elements of variable length can refer to one text, so a small file can hold a huge array.
            large = count > MAX_VALUES or (opened.dtype.hasobject and count > 1 and count * length > MAX_CHUNK_BYTES)
            values[name] = f"array of {opened.dtype}, shape {opened.shape}" if large else plain(group.attrs[name])
        except DAMAGE as error:
            values[name] = f"unreadable: {_short(error)}"
    return values


def plain(value: Any) -> Any:
    """Convert a value to JSON types: NumPy scalars and short arrays become Python values; NaN and infinity become text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        if value.size > MAX_VALUES:
            return f"array of {value.dtype}, shape {value.shape}"
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, bool, int, float, type(None))) else str(value)


def listed(names: Any) -> str:
    """List the first names for a message."""
    shown = sorted(str(name) for name in names)
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") if shown else "nothing"


def _short(error: Exception) -> str:
    """Return the first line of HDF5's message; the rest lists internal calls."""
    return str(error).strip("'\"").splitlines()[0] if str(error) else type(error).__name__
