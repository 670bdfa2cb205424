"""Convert Arrow arrays to NumPy columns, for Minari's Arrow form, LeRobot and tables. pyarrow is imported on first use."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from offrl_store.errors import InvalidInput
from offrld.importers.bad_data import BadRow
from offrld.importers.columns import MAX_EPISODE_BYTES, Column

#: Package -> the extra of ours that installs it.
EXTRAS = {"pyarrow": "parquet", "av": "lerobot", "PIL": "lerobot"}


def need(module: str, what: str) -> ModuleType:
    """Import a module of an optional package for ``what``. Raises `InvalidInput` with the pip command if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise InvalidInput(f"{what} needs {package}, which is not installed", hint=f'pip install "offrl[{EXTRAS[package]}]"') from None


def to_numpy(array: Any, file: str, key: str, row: int = 0, flaws: dict[int, str] | None = None, size: int | None = None) -> np.ndarray:
    """Convert an Arrow array of numbers, or of equally long lists of numbers, to ``[N, ...]``.

    Args:
        row: the number that messages give the first row.
        flaws: collects row -> what is wrong with it (a missing value, a list of another length); NaN or 0 then replaces the value.
            With None the first flaw is an error.
        size: the expected length of lists; None takes the length of the first list.

    Raises `BadRow` for missing values and for lists of different lengths, `InvalidInput` if the array does not hold numbers.
    """
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # old versions of pyarrow return no chunk for no rows
            array = array.chunk(0) if array.num_chunks else pa.array([], array.type)

    def wrong(at: int, why: str) -> None:
        if flaws is None:
            raise BadRow(f"{file}: {key}[{row + at}] {why}", row + at, hint="fill the gap, or leave such episodes out with --skip-bad")
        flaws.setdefault(row + at, why)

    kind = array.type
    valid = np.ones(len(array), bool) if not array.null_count else array.is_valid().to_numpy(zero_copy_only=False)
    for at in np.flatnonzero(~valid).tolist():
        wrong(at, "is missing")
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if pa.types.is_fixed_size_list(kind):
            size, lengths = kind.list_size, np.full(len(array), kind.list_size)
        else:
            lengths = np.diff(array.offsets.to_numpy())
            size = size if size is not None else int(lengths[valid][0]) if valid.any() else 0
        for at in np.flatnonzero(valid & (lengths != size)).tolist():
            wrong(at, f"has {lengths[at]} values, the rows before it {size}")
        whole = valid & (lengths == size)
        inner_flaws: dict[int, str] = {}
        inner = to_numpy((array if whole.all() else array.filter(pa.array(whole))).flatten(), file, key, 0, inner_flaws)
        places = np.flatnonzero(whole)
        for at, why in inner_flaws.items():
            wrong(int(places[at // size]), f"has a value that {why}")
        rows = inner.reshape(len(places), size, *inner.shape[1:])
        if len(places) == len(array):
            return rows
        filled = np.full((len(array), *rows.shape[1:]), np.nan if rows.dtype.kind == "f" else 0, rows.dtype)
        filled[places] = rows
        return filled
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        raise InvalidInput(f"{file}: {key!r} holds {kind}, not numbers", hint="pass numbers or lists of numbers")
    if not valid.all():
        array = array.fill_null(pa.scalar(float("nan") if pa.types.is_floating(kind) else 0, pa.float64()).cast(kind))
    return array.to_numpy(zero_copy_only=False)


def open_parquet(path: Path, file: str, columns: list[str] | None = None) -> Any:
    """Open a Parquet file.

    Raises `InvalidInput` if it is damaged, or if a row group of ``columns`` (all if None) is too large for memory.
    """
    pa, parquet = need("pyarrow", file), need("pyarrow.parquet", file)
    try:
        opened = parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(f"{file} cannot be read: {line(error)}", hint="the file is damaged or cut short; copy it again") from None
    for group in range(opened.num_row_groups):
        for place in range(opened.metadata.num_columns):
            part = opened.metadata.row_group(group).column(place)
            if part.total_uncompressed_size > MAX_EPISODE_BYTES and (columns is None or part.path_in_schema.split(".")[0] in columns):
                opened.close()
                raise InvalidInput(
                    f"{file}: {part.path_in_schema!r} has a row group of {part.total_uncompressed_size:,} bytes",
                    hint=f"write it in row groups of at most {MAX_EPISODE_BYTES:,} bytes; the file may be damaged",
                )
    return opened


def column(array: Any, file: str, key: str) -> Column:
    """Return an Arrow array as a column; see `to_numpy` for the errors."""
    return Column(file, key, to_numpy(array, file, key))


def read_table(path: Path, file: str, columns: list[str] | None = None) -> Any:
    """Read a whole ``.arrow`` (IPC file or stream) or ``.parquet`` file as a table. ``file`` is its name in messages."""
    pa = need("pyarrow", file)
    try:
        if path.suffix == ".parquet":
            with open_parquet(path, file, columns) as opened:
                return opened.read(columns=columns, use_threads=False)
        ipc = need("pyarrow.ipc", file)
        with pa.memory_map(str(path)) as source:
            try:
                table = ipc.open_file(source).read_all()
            except pa.ArrowInvalid:
                source.seek(0)
                table = ipc.open_stream(source).read_all()
        return table if columns is None else table.select(columns)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InvalidInput(f"{file} cannot be read: {line(error)}", hint="the file is damaged or cut short; copy it again") from None


def line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
