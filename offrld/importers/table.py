"""Import tables, CSV or Parquet, with one row per step. A map assigns columns to the fields of a step.

``map`` is text, ``observation=obs_*,action=act_*,reward=r,episode=ep``, or a dict (from a TOML file) whose values are names, patterns or
lists of them. In text, ``+`` joins several columns. Fields:

- ``observation`` (or ``observation.NAME`` for several), ``action``, ``reward``, ``next_observation``, ``extra.NAME``;
- ``episode``: an id; the episode ends where it changes;
- ``step``: sorts the rows of an episode; without ids it must increase up to each flag of an end;
- ``terminal`` and ``timeout``: flags; ``done``: a flag that does not state whether the task ended.

Columns of a pattern keep the order of the file; without a map, numbered columns are sorted by their numbers. Numbers of a CSV file become
float32 if it holds them as they are written, else float64 (option ``dtype``). A single action column of whole numbers holds discrete
actions. Columns of Parquet keep their dtype and may hold lists.

The table is read once, in blocks, into unnamed temporary files that vanish with the process. Rows are counted as in a spreadsheet: the
header is row 1, also for Parquet.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store.errors import EmptyStore, InvalidInput
from offrld.importers import arrow
from offrld.importers.bad_data import BadRow
from offrld.importers.columns import Column
from offrld.importers.flat import FlatArrays, flat_source
from offrld.importers.hdf5 import listed
from offrld.importers.source import BadEpisodes, Format, Source
from offrld.importers.spaces import EXACT, probe_environment
from offrld.importers.table_episodes import EpisodeIds
from offrld.importers.table_map import FLAGS, NEEDS, mapped_columns
from offrld.importers.table_values import FIRST_ROW, Spool, TableColumn, kept_values, parsed_numbers

DELIMITERS = (",", ";", "\t", "|")
BLOCK = 4 << 20


def detect_csv(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz"))


def detect_parquet(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def open_csv(
    path: Path,
    bad: BadEpisodes,
    *,
    map: Any = None,
    dtype: Any = None,
    env_id: Any = None,
    done: Any = "truncated",
    encoding: Any = None,
    delimiter: Any = None,
    decimal: Any = ".",
) -> Source:
    """Open a text table with a header. Raises `InvalidInput` that names row and column."""
    name = path.name
    pa, csv = arrow.need("pyarrow", name), arrow.need("pyarrow.csv", name)
    if dtype not in (None, "float32", "float64"):
        raise InvalidInput(f"dtype is {dtype!r}", hint="pass float32 or float64, or leave it out")
    if decimal not in (".", ","):
        raise InvalidInput(f"decimal is {decimal!r}", hint="pass the decimal separator: . or ,")
    encoding, head = _encoding(path, name, encoding)
    messages: list[str] = []
    if delimiter is None:
        delimiter = _delimiter(head)
        if delimiter not in (",", "\t"):
            messages.append(f"columns are separated by {delimiter!r}")
    elif delimiter == "tab":
        delimiter = "\t"
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '\r\n"' or not delimiter.isascii():
        raise InvalidInput(f"delimiter is {delimiter!r}", hint="pass the single character between the columns, or tab")
    read = csv.ReadOptions(block_size=BLOCK, use_threads=False, encoding=encoding)
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with ExitStack() as resources:
        try:
            stream = resources.enter_context(pa.input_stream(str(path)))
            header = csv.open_csv(stream, read, parse).schema.names
            table = _Table(name, "csv", header, map, messages)
            convert = csv.ConvertOptions(
                column_types=dict.fromkeys(table.wanted, pa.string()), include_columns=table.wanted, strings_can_be_null=False
            )
            again = resources.enter_context(pa.input_stream(str(path)))
            batches = csv.open_csv(again, read, parse, convert)
            numbers = partial(parsed_numbers, bad=bad, decimal=decimal)
            return table.open(_damage(batches, pa, name), bad, resources, env_id, done, numbers, dtype)
        except (OSError, pa.ArrowException, UnicodeError) as error:
            hint = "give a table with a header and one row per step"
            raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint=hint) from None


def open_parquet(path: Path, bad: BadEpisodes, *, map: Any = None, env_id: Any = None, done: Any = "truncated") -> Source:
    """Open a Parquet file. Raises `InvalidInput` that names row and column."""
    name = path.name
    pa, parquet = arrow.need("pyarrow", name), arrow.need("pyarrow.parquet", name)
    with ExitStack() as resources:
        try:
            arrow.open_parquet(path, name).close()
            schema = parquet.read_schema(path)
            table = _Table(name, "parquet", schema.names, map, [])
            # Read texts as a dictionary, because many rows can refer to one long text.
            texts = [each for each in table.wanted if pa.types.is_string(kind := schema.field(each).type) or pa.types.is_large_string(kind)]
            file = resources.enter_context(parquet.ParquetFile(path, read_dictionary=texts))
            batches = file.iter_batches(batch_size=_batch_rows(file, table.wanted), columns=table.wanted, use_threads=False)
            return table.open(_damage(batches, pa, name), bad, resources, env_id, done, partial(kept_values, bad=bad), None)
        except (OSError, pa.ArrowException) as error:
            hint = "the file is damaged or cut short; copy it again"
            raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint=hint) from None


def open_frame(frame: Any, bad: BadEpisodes, *, map: Any = None, env_id: Any = None, done: Any = "truncated") -> Source:
    """Open a table of pandas, polars or pyarrow in memory. Raises `InvalidInput` that names row and column."""
    name = "the table"
    pa = arrow.need("pyarrow", name)
    try:
        if isinstance(frame, pa.Table):
            table = frame
        elif hasattr(frame, "__arrow_c_stream__") and type(frame).__module__.partition(".")[0] != "pandas":
            table = pa.table(frame)
        else:
            table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint="give columns of numbers") from None
    with ExitStack() as resources:
        opened = _Table(name, "parquet", table.column_names, map, [])
        batches = iter(table.select(opened.wanted).to_batches(max_chunksize=1 << 14))
        return opened.open(batches, bad, resources, env_id, done, partial(kept_values, bad=bad), None)


def _batch_rows(file: Any, columns: list[str]) -> int:
    """Return the number of rows per batch: fewer if a column holds long lists."""
    most = 1
    for group in range(file.num_row_groups):
        described = file.metadata.row_group(group)
        for place in range(described.num_columns):
            part = described.column(place)
            if part.path_in_schema.split(".")[0] in columns:
                most = max(most, part.num_values // max(1, described.num_rows))
    return max(1, min(1 << 14, (16 << 20) // (8 * most)))


def _encoding(path: Path, name: str, encoding: Any) -> tuple[str, str]:
    """Return the encoding of a text file and the start of its text.

    The encoding is the user's, or that of the byte order mark, or UTF-8. The whole text is decoded once, so that an error names the offset
    of the invalid byte.
    """
    packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            start = file.read(4)
            if not start:
                raise EmptyStore(f"{name} is empty", hint="give a table with a header and one row per step")
            if encoding is None:
                marks = (
                    (codecs.BOM_UTF32_LE, "utf-32"),
                    (codecs.BOM_UTF32_BE, "utf-32"),
                    (codecs.BOM_UTF8, "utf-8-sig"),
                    (codecs.BOM_UTF16_LE, "utf-16"),
                    (codecs.BOM_UTF16_BE, "utf-16"),
                )
                encoding = next((each for mark, each in marks if start.startswith(mark)), "utf-8")
            try:
                "a".encode(str(encoding))  # LookupError also for codecs that do not encode text
                decoder = codecs.getincrementaldecoder(str(encoding))("strict")
            except (LookupError, ValueError):
                hint = "give the name of a text encoding: utf-8, latin-1, cp1252, utf-16"
                raise InvalidInput(f"encoding is {encoding!r:.60}", hint=hint) from None
            head, at, block = "", 0, start
            while block:
                try:
                    text = decoder.decode(block)
                except UnicodeDecodeError as error:
                    wrong = error.object[error.start : error.start + 1]
                    place = at + len(block) - len(error.object) + error.start
                    raise InvalidInput(
                        f"{name} is not {encoding}: byte 0x{wrong.hex()} at offset {place:,} cannot be decoded",
                        hint="name its encoding: --option encoding=latin-1 (or cp1252, utf-16); from Excel, save it as CSV UTF-8",
                    ) from None
                if "\0" in text:
                    raise InvalidInput(
                        f"{name} is not text: it holds zero bytes",
                        hint="save the table as CSV; for UTF-16 without a byte order mark give --option encoding=utf-16-le",
                    )
                head += text if len(head) < BLOCK else ""
                at += len(block)
                block = file.read(1 << 20)
            decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} is cut short in the middle of a character: {arrow.line(error)}", hint="copy it again") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint="the file is damaged or cut short; copy it again") from None
    if not head.lstrip("\ufeff").strip():
        raise EmptyStore(f"{name} is empty", hint="give a table with a header and one row per step")
    return ("utf-8" if encoding == "utf-8-sig" else str(encoding)), head.lstrip("\ufeff")  # pyarrow drops the mark of UTF-8 itself


def _delimiter(head: str) -> str:
    """Return the delimiter of the header: the most frequent of `DELIMITERS` outside of quotes."""
    line = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", head.lstrip("\r\n"), maxsplit=1)[0])
    return max(DELIMITERS, key=lambda sign: (line.count(sign), -DELIMITERS.index(sign)))


def _damage(batches: Iterable[Any], pa: Any, name: str) -> Iterator[Any]:
    """Yield the batches. Raises `InvalidInput` with one line instead of pyarrow's errors."""
    try:
        yield from batches
    except (OSError, MemoryError, UnicodeError, pa.ArrowException) as error:
        raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint="correct the table, or copy it again") from None


class _Table:
    """A table with a known header: assigns its columns to fields, and turns its rows into a source."""

    def __init__(self, name: str, format: str, header: list[str], map: Any, messages: list[str]) -> None:
        self.name, self._format, self.messages = name, format, messages
        clean = [each.strip().removeprefix("\ufeff").strip() for each in header]
        chosen = mapped_columns(map, clean, name, messages)
        for key, names in chosen.items():
            for each in names:
                places = [place for place, one in enumerate(clean) if one == each]
                if len(places) > 1:
                    raise InvalidInput(
                        f"{name} has {len(places)} columns of the name {each!r}, columns {' and '.join(str(p + 1) for p in places[:3])}, "
                        f"and {key!r} takes it",
                        hint="rename all but one of them",
                    )
        self.columns = chosen
        self._source = dict(zip(clean, header, strict=True))
        self.wanted = list(dict.fromkeys(self._source[each] for names in chosen.values() for each in names))
        used = {each for names in chosen.values() for each in names}
        left = [one or f"column {place + 1} without a name" for place, one in enumerate(clean) if one not in used]
        if left:
            messages.append(f"not imported: {listed(left)}; a map takes them (--map extra.NAME=COLUMN keeps one with each step)")

    def open(
        self, batches: Iterator[Any], bad: BadEpisodes, resources: ExitStack, env_id: Any, done: Any, numbers: Any, dtype: str | None
    ) -> Source:
        """Read the rows. ``dtype``: dtype of numbers in a text; None chooses it for each field."""
        if done not in ("truncated", "terminated"):
            raise InvalidInput(f"done is {done!r}", hint="pass the meaning of an episode's end: truncated or terminated")
        if env_id is not None and not isinstance(env_id, str):
            raise InvalidInput(f"env_id is {env_id!r}", hint="pass the name of a gymnasium environment")
        name, messages, text = self.name, self.messages, self._format == "csv"
        spools = {key: Spool(names) for key, names in self.columns.items() if key != "episode"}
        for spool in spools.values():
            resources.callback(spool.file.close)
        episodes = EpisodeIds(name, self.columns.get("episode"), self._source)
        row = 0
        for batch in batches:
            for key, spool in spools.items():
                parts = [numbers(batch.column(self._source[each]), name, each, row, spool, key) for each in spool.names]
                vector = key.split(".")[0] in ("observation", "next_observation")
                spool.add(parts[0] if len(parts) == 1 and (parts[0].ndim > 1 or not vector) else self._joined(parts, spool, row), name)
            episodes.add(batch)
            row += batch.num_rows
        if not row:
            raise EmptyStore(f"{name} has a header and no row", hint="give a table with one row per step")
        step = spools.pop("step", None)
        order = episodes.order(step.column(name) if step is not None else None, messages)

        def column(key: str, kind: str | None = None) -> TableColumn:
            return spools[key].column(name, kind, order)

        def part(key: str) -> Any:
            if key in spools:
                return column(key, self._dtype(key, spools[key], dtype) if text else None)
            parts = [each for each in spools if each.startswith(f"{key}.")]
            return {each.partition(".")[2]: part(each) for each in parts} or None

        action = spools["action"]
        choices = text and len(action.names) == 1 and action.whole
        ends = [key for key in FLAGS if key in spools]
        if "terminal" in spools:
            terminals: Column = column("terminal")
        elif "done" in spools and done == "terminated":
            terminals = column("done")
            ends.remove("done")
        else:
            terminals = Column(name, "terminal", np.zeros(row, bool))
            if "done" in spools:
                messages.append(
                    f"{spools['done'].names[0]!r} does not say whether the task ended: every episode counts as truncated; "
                    "if it means that the task ended, pass --option done=terminated"
                )
            else:
                messages.append("no column states where the task ended: every episode counts as truncated")
        following = part("next_observation")
        known = self._known(spools, following, row, order)
        timeouts = episodes.timeouts([column(key) for key in ends if key != "terminal"], row, order)
        if step is not None and "episode" not in self.columns:
            self._check_rising(step.column(name), terminals, timeouts)
        arrays = FlatArrays(
            part("observation"),
            column("action", "int64" if choices else self._dtype("action", action, dtype) if text else None),
            part("reward"),
            terminals,
            timeouts,
            following,
            known,
            extra=part("extra") or {},
        )
        source = flat_source(
            arrays,
            bad,
            format=self._format,
            env_id=env_id,
            space=probe_environment(env_id, name, messages).space,
            attributes={},
            messages=messages,
            columns={key: list(names) for key, names in self.columns.items()},
        )
        source.resources = resources.pop_all()
        return source

    def _check_rising(self, step: TableColumn, terminals: Column, timeouts: Column | None) -> None:
        """Check that the steps between two ends increase. Without ids, only flags end episodes. Raises `BadRow`."""
        steps = np.asarray(step.read(0, step.rows)).reshape(-1)
        ends = terminals.read_flags(0, step.rows)
        if timeouts is not None:
            ends = ends | timeouts.read_flags(0, step.rows)
        wrong = np.flatnonzero((steps[1:] <= steps[:-1]) & ~ends[:-1])
        if len(wrong):
            row = int(wrong[0]) + 1
            raise BadRow(
                f"{self.name}: row {row + FIRST_ROW}, column {step.names[0]!r} is {steps[row]:.15g} after {steps[row - 1]:.15g}, "
                "and no flag ends an episode between them",
                row + FIRST_ROW,
                hint="map the ids of the episodes (episode=COLUMN) or a flag timeout, or leave step out of the map",
            )

    def _joined(self, parts: list[np.ndarray], spool: Spool, row: int) -> np.ndarray:
        """Join columns to a vector. Raises `InvalidInput` for arrays, `BadRow` if the common dtype cannot hold the values of each."""
        for each, block in zip(spool.names, parts, strict=True):
            if block.ndim > 2:
                shape = list(block.shape[1:])
                raise InvalidInput(
                    f"{self.name}: column {each!r} holds arrays of shape {shape}, which cannot be joined with other columns",
                    hint="map it as a field of its own: observation.NAME=COLUMN",
                )
        joined = np.column_stack(parts)
        for each, block in zip(spool.names, parts, strict=True):
            if block.dtype.kind in "iu" and joined.dtype.kind == "f" and block.dtype.itemsize > 4:
                wrong = np.flatnonzero((block > EXACT) | (block < -EXACT))
                if len(wrong):
                    at = int(wrong[0])
                    raise BadRow(
                        f"{self.name}: row {row + at + FIRST_ROW}, column {each!r} is {block[at]}, which no float holds exactly",
                        row + at + FIRST_ROW,
                        hint="map it as a field of its own: observation.NAME=COLUMN",
                    )
        return joined

    def _dtype(self, key: str, spool: Spool, dtype: str | None) -> str:
        """Return the dtype of a field of a text table. A message reports float64, and rounding to float32."""
        if spool.wide is None or dtype == "float64":
            return dtype or "float32"
        row, column, value = spool.wide
        if dtype is None:
            self.messages.append(f"{key!r} is float64: float32 does not hold {value} (row {row}, column {column!r}) as it is written")
            return "float64"
        self.messages.append(f"{key!r} is rounded to float32, as dtype states: among others {value} (row {row}, column {column!r})")
        return dtype

    def _known(self, spools: dict[str, Spool], following: Any, rows: int, order: np.ndarray | None) -> Column | None:
        """Return flags of the rows with a next observation: an empty cell means that it is unknown. None if no cell is empty."""
        missing = sorted({row for key, spool in spools.items() if key.split(".")[0] == "next_observation" for row in spool.flaws})
        if following is None or not missing:
            return None
        flags = np.ones(rows, bool)
        flags[missing] = False
        self.messages.append(f"{len(missing)} rows without a next observation: it counts as unknown there")
        return Column(self.name, "next_observation", flags if order is None else flags[order])


OPTIONS = {
    "map": "the columns of each field: observation=obs_*,action=act_*,reward=r,episode=ep (on the command line: --map)",
    "env_id": "gymnasium environment, which gives the bounds of the actions",
    "done": "meaning of the flag done: truncated (the episode was cut) or terminated (the task ended)",
}
TEXT = {
    "dtype": "float32 or float64; by default the first that holds the numbers as they are written",
    "encoding": "encoding of a text that is not UTF-8: latin-1, cp1252, utf-16",
    "delimiter": "character between the columns; by default that of the header",
    "decimal": "decimal separator: . or ,",
}
CSV = Format("csv", "table of text with a header (.csv, .tsv)", NEEDS, detect_csv, open_csv, {**OPTIONS, **TEXT})
PARQUET = Format("parquet", "Parquet file", NEEDS, detect_parquet, open_parquet, OPTIONS)
