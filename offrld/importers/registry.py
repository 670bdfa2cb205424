"""The registry of import formats, and the detection of a format from the content of a file or folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from offrl.errors import Unknown, nearest
from offrl_store import EpisodeStore
from offrl_store.errors import InvalidInput
from offrld.importers import atari, common_options, d3rlpy, d4rl, gen_dgrl, hdf5, lerobot, minari, native, npz, robomimic, table, torchrl
from offrld.importers.channels import turned
from offrld.importers.source import BadEpisodes, Format, Source

#: Every import format by its name for ``--format``. A new format is a module and one line here. Detection tries them in this order.
#: d3rlpy's flat files look like D4RL's with additions, so d3rlpy comes first.
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        native.FORMAT,
        minari.FORMAT,
        atari.FORMAT,
        torchrl.FORMAT,
        lerobot.FORMAT,
        gen_dgrl.FORMAT,
        robomimic.FORMAT,
        d3rlpy.FORMAT,
        d4rl.FORMAT,
        npz.FORMAT,
        table.CSV,
        table.PARQUET,
    )
}


def open_source(
    source: Any,
    format: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    skip_bad: bool = False,
) -> Source:
    """Open a source of episodes.

    A source is a file, a folder or an object. The format of a file or folder is detected from its content unless ``format`` names it. An
    object is a dict of arrays (NumPy, torch, or anything that converts to an array), a table of pandas, polars or pyarrow, a store, or an
    iterable of episodes.

    Args:
        options: options of the format by name (`Format.options`).
        skip_bad: leave out episodes that cannot be used and record them in the source's ``bad``; otherwise the first one is an error.

    Raises:
        Unknown: the format, or one of the options, does not exist.
        InvalidInput: the source is missing, damaged or of an unknown format, or one of its values cannot be used.
    """
    if format is not None and format not in FORMATS:
        raise Unknown(f"unknown format {format!r}", hint=nearest(format, list(FORMATS)))
    if not isinstance(source, str | os.PathLike):
        return _open_object(source, format, options, skip_bad)
    path = Path(source)
    try:
        exists = path.exists()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", hint="check its owner and mode") from None
    if not exists:
        raise InvalidInput(f"there is no file or folder {path}", hint="check the path")
    if not os.access(path, os.R_OK):
        raise InvalidInput(f"{path} cannot be read", hint="check its owner and mode")
    chosen = FORMATS[format] if format is not None else detect(path)
    return _open(chosen, chosen.open, path, options, skip_bad)


def _open_object(source: Any, format: str | None, options: Mapping[str, Any] | None, skip_bad: bool) -> Source:
    """Open an object in memory."""
    opener: Callable[..., Source]
    if isinstance(source, Mapping):
        kind, nearest_format, opener = "dict of arrays", npz.FORMAT, npz.open_arrays
    elif isinstance(source, EpisodeStore):
        kind, nearest_format, opener = "store", native.FORMAT, native.open_given
    elif hasattr(source, "__arrow_c_stream__") or type(source).__module__.partition(".")[0] == "pandas":
        kind, nearest_format, opener = "table in memory", table.PARQUET, table.open_frame
    elif isinstance(source, Iterable) and not isinstance(source, bytes | bytearray) and not hasattr(source, "dtype"):
        kind, nearest_format, opener = "list of episodes", native.FORMAT, native.open_episodes
    else:
        raise InvalidInput(
            f"a {type(source).__name__} is not a source of data", hint="pass a path, a dict of arrays, a table, a store, or episodes"
        )
    if format not in (None, nearest_format.name):
        raise InvalidInput(f"a {kind} is not of format {format!r}", hint="leave the format out")
    return _open(nearest_format, opener, source, options, skip_bad)


def _open(format: Format, opener: Callable[..., Source], source: Any, options: Mapping[str, Any] | None, skip_bad: bool) -> Source:
    """Open a source with the options of its format and the common ones."""
    own: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for name, value in (options or {}).items():
        if name not in format.options and name not in common_options.OPTIONS:
            known = [*format.options, *common_options.OPTIONS]
            raise Unknown(f"the format {format.name!r} has no option {name!r}", hint=nearest(name, known) or f"known: {', '.join(known)}")
        (own if name in format.options else shared)[name] = value
    stated = common_options.CommonOptions(**shared)
    return turned(opener(source, BadEpisodes(skip_bad, stated), **own), stated.channels)


def detect(path: Path) -> Format:
    """Detect the format of a file or folder. Raises `InvalidInput` that describes its content and lists the formats."""
    for each in FORMATS.values():
        if each.detect(path):
            return each
    raise InvalidInput(
        f"{path.name} is of no known format: {_looks(path)}",
        hint=f"{_likely(path)}; --format names one of {', '.join(FORMATS)}",
    )


def _likely(path: Path) -> str:
    """List the formats that such a file or folder probably has."""
    if path.is_dir():
        names = ("minari", "lerobot", "store")
    elif hdf5.is_hdf5(path):
        names = ("d4rl", "robomimic", "d3rlpy")
    else:
        names = ("csv", "npz", "d4rl")
    return "likely formats: " + "; ".join(f"{name}: {FORMATS[name].summary}" for name in names)


def _looks(path: Path) -> str:
    """Describe the content of a file of an unknown format."""
    if path.is_dir():
        datasets = sorted(each.parent.parent.relative_to(path).as_posix() for each in path.glob("*/**/data/metadata.json"))[:3]
        if datasets:
            return f"it is a folder of datasets; pass one of them, for example {datasets[0]}"
        return f"it is a folder with {hdf5.listed(each.name for each in path.iterdir())}"
    if hdf5.is_hdf5(path):
        hdf5.open_hdf5(path).close()  # raises for a damaged file
        return f"it is HDF5 with {hdf5.listed(hdf5.keys(path))}"
    with open(path, "rb") as file:
        start = file.read(8)
    if not start:
        return "it is empty"
    if start[:1] == b"\x80":
        return "it is a pickle, which is never read because loading one can run any program"
    if start[:6] == b"\x93NUMPY":
        return "it is a single array; put observations, actions, rewards and terminals into one .npz"
    return f"it starts with {start!r}"
