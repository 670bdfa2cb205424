"""Tables, CSV or Parquet: one row per step, with a map that says which columns are what.

``map`` is text, ``observation=obs_*,action=act_*,reward=r,episode=ep``, or a dict (of a TOML file) whose values are names, patterns or
lists of them. Fields: ``observation`` (or ``observation.NAME`` for several), ``action``, ``reward``, ``episode`` (an id: the episode ends
where it changes), ``step`` (what sorts the rows of an episode; without ids it has to rise up to each flag of an end), ``terminal`` and
``timeout`` (flags), ``done`` (a flag that does not say whether the task ended), ``next_observation``, ``extra.NAME``. In text ``+`` stands
between several columns. Columns of a pattern keep the order of the file; without a map, numbered ones stand in the order of their numbers.
Numbers of a CSV file become float32 where that holds them as they are written, else float64 (``dtype`` says otherwise), but for one column
of whole numbers as action, which are choices; those of Parquet keep their dtype, and a column may hold lists. The table is read once, in
blocks, into files without a name, which are gone with the process. Rows are counted as a spreadsheet counts them: the header is row 1, in
Parquet, too.
"""

from __future__ import annotations

import codecs
import fnmatch
import gzip
import itertools
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from offrl.errors import nearest
from offrl_store.disk import disk_errors
from offrl_store.errors import EmptyStore, InvalidInput
from offrl_store.schema import NAME
from offrld.importers import arrow
from offrld.importers.bad_data import BadRow
from offrld.importers.columns import Column
from offrld.importers.flat import FlatArrays, flat_source
from offrld.importers.hdf5 import listed
from offrld.importers.source import BadEpisodes, Format, Source
from offrld.importers.spaces import EXACT, probe_environment

NEEDS = "columns for observation, action, reward, and episode, terminal or done: --map observation=obs_*,action=act_*,reward=r,episode=ep"

FIELDS = ("observation", "action", "reward", "episode", "step", "terminal", "timeout", "done", "next_observation", "extra")
NAMED = ("observation", "next_observation", "extra")  # those that can have several parts, FIELD.NAME
FLAGS = ("terminal", "timeout", "done")

#: Without a map, the columns of these names are taken, whatever their case: the first of a field's names that is there. A vector's columns
#: are numbered or named behind it: obs_0, obs.x, obs[3].
USUAL = {
    "observation": ("observation", "observations", "obs", "state", "states"), "action": ("action", "actions", "act"),
    "next_observation": ("next_observation", "next_observations", "next_obs", "next_state", "next_states"),
    "reward": ("reward", "rewards", "rew", "r"),
    "episode": ("episode", "episode_id", "episode_index", "episode_idx", "episode_number", "ep", "ep_id", "ep_idx", "traj", "traj_id",
                "traj_idx", "trajectory", "trajectory_id"),
    "step": ("step", "step_id", "step_index", "step_idx", "timestep", "time_step", "frame_index"),
    "terminal": ("terminal", "terminals", "terminated", "termination", "terminations", "is_terminal"),
    "timeout": ("timeout", "timeouts", "truncated", "truncation", "truncations"),
    "done": ("done", "dones", "is_done"),
}  # fmt: skip
VECTORS = ("observation", "action", "next_observation")

TRUE, FALSE = ("1", "true", "1.0"), ("0", "false", "0.0")
DELIMITERS = (",", ";", "\t", "|")
BLOCK = 4 << 20
FIRST_ROW = 2  # of the data: the header is row 1


@dataclass(frozen=True)
class TableColumn(Column):
    """A column of rows that stood in several columns of a table.

    Attributes:
        names: those of its columns.
        order: the row of the table that stands at each place, or None where they are the same.
        flaws: row of the table -> the column there, and what is wrong with it.
    """

    names: tuple[str, ...] = ()
    order: np.ndarray | None = None
    flaws: Mapping[int, tuple[str, str]] = field(default_factory=dict)

    def _row(self, row: int) -> int:
        return row if self.order is None else int(self.order[row])

    def check_whole(self, start: int, stop: int) -> None:
        if not self.flaws:
            return
        for row in range(start, stop):
            if (flaw := self.flaws.get(self._row(row))) is not None:
                raise BadRow(
                    f"{self.file}: row {self.number(row)}, column {flaw[0]!r} {flaw[1]}",
                    self.number(row),
                    hint="fill the gap, or leave such episodes out with --skip-bad",
                )

    def check_finite(self, block: np.ndarray, start: int) -> None:
        self.check_whole(start, start + len(block))
        super().check_finite(block, start)

    def number(self, row: int) -> int:
        return self._row(row) + FIRST_ROW

    def where(self, row: int, index: tuple[int, ...] = ()) -> str:
        if len(self.names) > 1 or not index or self.shape == (1,):
            place = index[0] if index and len(self.names) > 1 else 0
            return f"row {self.number(row)}, column {self.names[place]!r}"
        return f"row {self.number(row)}, column {self.names[0]!r}[{', '.join(str(i) for i in index)}]"


@dataclass
class _Spool:
    """The values of one field on their way from the table: rows in a file without a name."""

    names: list[str]
    file: IO[bytes] = field(default_factory=lambda: tempfile.TemporaryFile(prefix="offrl-table-"))  # noqa: SIM115  closed with the object
    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    whole: bool = True  # all values are whole numbers, as they stand in the text
    wide: tuple[int, str, str] | None = None  # row, column and text of the first value that float32 does not hold as it is written
    flaws: dict[int, tuple[str, str]] = field(default_factory=dict)
    rows: int = 0

    def add(self, block: np.ndarray, file: str) -> None:
        if self.dtype is None:
            self.dtype, self.shape = block.dtype, block.shape[1:]
        if block.shape[1:] != self.shape:
            raise BadRow(
                f"{file}: row {self.rows + FIRST_ROW}, column {self.names[0]!r} has {block.shape[1:]} values, "
                f"the rows before it {self.shape}",
                self.rows + FIRST_ROW,
                hint="all rows need one shape",
            )
        with disk_errors(Path(tempfile.gettempdir())):
            self.file.write(np.ascontiguousarray(block, self.dtype).data.cast("B"))
        self.rows += len(block)

    def column(self, file: str, dtype: str | None = None, order: np.ndarray | None = None) -> TableColumn:
        with disk_errors(Path(tempfile.gettempdir())):
            self.file.flush()
        shape = (self.rows, *self.shape)
        file_data: Any = self.file  # NumPy takes any file object with a descriptor
        data: Any = np.memmap(file_data, self.dtype or np.dtype(float), "r", shape=shape) if self.rows else np.empty(shape, self.dtype)
        if order is not None:
            data = _Ordered(data, order)
        return TableColumn(file, self.names[0], _As(data, np.dtype(dtype)) if dtype else data, tuple(self.names), order, self.flaws)


class _As:
    """An array in another dtype, as the data of a column."""

    def __init__(self, data: Any, dtype: np.dtype) -> None:
        self._data, self.shape, self.dtype = data, data.shape, dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore"):  # NaN as a whole number is the lowest one, which no choice can be
            return self._data[rows].astype(self.dtype)


class _Ordered:
    """The rows of an array in another order, as the data of a column."""

    def __init__(self, data: Any, order: np.ndarray) -> None:
        self._data, self._order, self.shape, self.dtype = data, order, data.shape, data.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._data[self._order[rows]]


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
    """Opens a text table with a header; raises `InvalidInput` that names row and column."""
    name = path.name
    pa, csv = arrow.need("pyarrow", name), arrow.need("pyarrow.csv", name)
    if dtype not in (None, "float32", "float64"):
        raise InvalidInput(f"dtype is {dtype!r}", hint="give float32 or float64, or leave it out")
    if decimal not in (".", ","):
        raise InvalidInput(f"decimal is {decimal!r}", hint="give the sign before the decimals: . or ,")
    encoding, head = _encoding(path, name, encoding)
    messages: list[str] = []
    if delimiter is None:
        delimiter = _delimiter(head)
        if delimiter not in (",", "\t"):
            messages.append(f"columns are separated by {delimiter!r}")
    elif delimiter == "tab":
        delimiter = "\t"
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '\r\n"' or not delimiter.isascii():
        raise InvalidInput(f"delimiter is {delimiter!r}", hint="give the one sign between the columns, or tab")
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
            numbers = partial(_numbers, bad=bad, decimal=decimal)
            return table.open(_damage(batches, pa, name), bad, resources, env_id, done, numbers, dtype)
        except (OSError, pa.ArrowException, UnicodeError) as error:
            hint = "give a table with a header and one row per step"
            raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint=hint) from None


def open_parquet(path: Path, bad: BadEpisodes, *, map: Any = None, env_id: Any = None, done: Any = "truncated") -> Source:
    """Opens a Parquet file; raises `InvalidInput` that names row and column."""
    name = path.name
    pa, parquet = arrow.need("pyarrow", name), arrow.need("pyarrow.parquet", name)
    with ExitStack() as resources:
        try:
            arrow.open_parquet(path, name).close()
            schema = parquet.read_schema(path)
            table = _Table(name, "parquet", schema.names, map, [])
            # Texts stay numbers of a dictionary: many rows can refer to one long text.
            texts = [each for each in table.wanted if pa.types.is_string(kind := schema.field(each).type) or pa.types.is_large_string(kind)]
            file = resources.enter_context(parquet.ParquetFile(path, read_dictionary=texts))
            batches = file.iter_batches(batch_size=_batch_rows(file, table.wanted), columns=table.wanted, use_threads=False)
            return table.open(_damage(batches, pa, name), bad, resources, env_id, done, partial(_kept, bad=bad), None)
        except (OSError, pa.ArrowException) as error:
            hint = "the file is damaged or cut short; copy it again"
            raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint=hint) from None


def open_frame(frame: Any, bad: BadEpisodes, *, map: Any = None, env_id: Any = None, done: Any = "truncated") -> Source:
    """Opens a table in memory: of pandas, polars or pyarrow."""
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
        return opened.open(batches, bad, resources, env_id, done, partial(_kept, bad=bad), None)


def _batch_rows(file: Any, columns: list[str]) -> int:
    """Rows per batch: fewer where a column's lists are long."""
    most = 1
    for group in range(file.num_row_groups):
        described = file.metadata.row_group(group)
        for place in range(described.num_columns):
            part = described.column(place)
            if part.path_in_schema.split(".")[0] in columns:
                most = max(most, part.num_values // max(1, described.num_rows))
    return max(1, min(1 << 14, (16 << 20) // (8 * most)))


def _encoding(path: Path, name: str, encoding: Any) -> tuple[str, str]:
    """The encoding of a text file, as its mark or the user says, else UTF-8; and the beginning of the text. The whole text is decoded
    once, so that what does not fit is said with its place."""
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
                "a".encode(str(encoding))  # LookupError also for codecs that are none of text
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
                        f"{name} is not {encoding}: byte 0x{wrong.hex()} at offset {place:,} is no text in it",
                        hint="name its encoding: --option encoding=latin-1 (or cp1252, utf-16); a table of Excel is saved as CSV UTF-8",
                    ) from None
                if "\0" in text:
                    raise InvalidInput(
                        f"{name} is no text: it holds zero bytes",
                        hint="save the table as CSV; of UTF-16 without a mark say --option encoding=utf-16-le",
                    )
                head += text if len(head) < BLOCK else ""
                at += len(block)
                block = file.read(1 << 20)
            decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} is cut short in the middle of a sign: {arrow.line(error)}", hint="copy it again") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint="the file is damaged or cut short; copy it again") from None
    if not head.lstrip("\ufeff").strip():
        raise EmptyStore(f"{name} is empty", hint="give a table with a header and one row per step")
    return ("utf-8" if encoding == "utf-8-sig" else str(encoding)), head.lstrip("\ufeff")  # pyarrow drops the mark of UTF-8 itself


def _delimiter(head: str) -> str:
    """What separates the names of the header: the most frequent of the usual signs outside of quotes."""
    line = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", head.lstrip("\r\n"), maxsplit=1)[0])
    return max(DELIMITERS, key=lambda sign: (line.count(sign), -DELIMITERS.index(sign)))


def _damage(batches: Iterable[Any], pa: Any, name: str) -> Iterator[Any]:
    """The batches; what pyarrow says against the table comes as one line."""
    try:
        yield from batches
    except (OSError, MemoryError, UnicodeError, pa.ArrowException) as error:
        raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint="correct the table, or copy it again") from None


class _Table:
    """A table whose header is known: which columns are what, and how its rows become a source."""

    def __init__(self, name: str, format: str, header: list[str], map: Any, messages: list[str]) -> None:
        self.name, self._format, self.messages = name, format, messages
        clean = [each.strip().removeprefix("\ufeff").strip() for each in header]
        chosen = _columns(map, clean, name, messages)
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
        """Reads the rows. ``dtype``: of texts; for those None lets each field choose."""
        if done not in ("truncated", "terminated"):
            raise InvalidInput(f"done is {done!r}", hint="give what the end of an episode means: truncated or terminated")
        if env_id is not None and not isinstance(env_id, str):
            raise InvalidInput(f"env_id is {env_id!r}", hint="give the name of a gymnasium environment")
        name, messages, text = self.name, self.messages, self._format == "csv"
        spools = {key: _Spool(names) for key, names in self.columns.items() if key != "episode"}
        for spool in spools.values():
            resources.callback(spool.file.close)
        episodes = _Episodes(name, self.columns.get("episode"), self._source)
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
                    f"{spools['done'].names[0]!r} does not say whether the task ended or was cut: every episode is taken as cut; "
                    "--option done=terminated takes its ends as those of the task"
                )
            else:
                messages.append("no column says where the task ended: every episode is taken as cut")
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
        """Without ids, the flags alone end episodes: the steps between two ends have to rise."""
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

    def _joined(self, parts: list[np.ndarray], spool: _Spool, row: int) -> np.ndarray:
        """Columns side by side; refused where their common dtype does not hold the values of each."""
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

    def _dtype(self, key: str, spool: _Spool, dtype: str | None) -> str:
        """The dtype of a field of texts."""
        if spool.wide is None or dtype == "float64":
            return dtype or "float32"
        row, column, value = spool.wide
        if dtype is None:
            self.messages.append(f"{key!r} is float64: float32 does not hold {value} (row {row}, column {column!r}) as it is written")
            return "float64"
        self.messages.append(f"{key!r} is rounded to float32, as dtype says: among others {value} (row {row}, column {column!r})")
        return dtype

    def _known(self, spools: dict[str, _Spool], following: Any, rows: int, order: np.ndarray | None) -> Column | None:
        """Where next observations are there: an empty cell says that the observation after the last action is not known."""
        missing = sorted({row for key, spool in spools.items() if key.split(".")[0] == "next_observation" for row in spool.flaws})
        if following is None or not missing:
            return None
        flags = np.ones(rows, bool)
        flags[missing] = False
        self.messages.append(f"{len(missing)} rows without a next observation: it is taken as unknown there")
        return Column(self.name, "next_observation", flags if order is None else flags[order])


class _Episodes:
    """The ids of episodes: where they change, and in which order their rows stand."""

    def __init__(self, file: str, names: list[str] | None, source: Mapping[str, str]) -> None:
        self._file, self._name = file, names[0] if names else None
        self._source = source
        self._numbers: dict[Any, int] = {}  # id -> its number, by first appearance
        self._codes: list[np.ndarray] = []
        self._row = 0
        self._all = np.empty(0, np.int32)

    def add(self, batch: Any) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._name is None or not batch.num_rows:
            return
        array = batch.column(self._source[self._name])
        if pa.types.is_nested(array.type):
            hint = "an id is a number or text"
            raise InvalidInput(f"{self._file}: column {self._name!r} holds {array.type}, no ids of episodes", hint=hint)
        if pa.types.is_string(array.type):
            array = pc.utf8_trim_whitespace(array)
        if not pa.types.is_dictionary(array.type):
            array = array.dictionary_encode()
        values = array.dictionary.to_pylist()
        empty = [value is None or value != value or (isinstance(value, str) and value.casefold() in ("", "nan")) for value in values]
        codes = np.asarray(array.indices.fill_null(len(values)))
        wrong = np.flatnonzero(np.array([*empty, True])[codes])
        if len(wrong):
            number = self._row + int(wrong[0]) + FIRST_ROW
            raise BadRow(
                f"{self._file}: row {number}, column {self._name!r} is empty", number, hint="every step needs the id of its episode"
            )
        used, first = np.unique(codes, return_index=True)
        numbers = np.zeros(len(values), np.int32)
        for code in used[np.argsort(first)].tolist():
            numbers[code] = self._numbers.setdefault(values[code], len(self._numbers))
        self._codes.append(numbers[codes])
        self._row += batch.num_rows

    def order(self, step: TableColumn | None, messages: list[str]) -> np.ndarray | None:
        """The order in which episodes are whole and their steps rise, or None where that is the table's. Ids of which the rows stand apart
        need steps that say which come first."""
        self._all = np.concatenate(self._codes) if self._codes else self._all
        self._codes = []
        codes = self._all
        steps: np.ndarray | None = None
        if step is not None:
            steps = np.asarray(step.read(0, step.rows)).reshape(step.rows, -1)
            step.check_finite(steps, 0)
            if steps.shape[1] != 1:
                raise InvalidInput(f"{self._file}: column {step.names[0]!r} holds lists, no steps", hint="a step is one number")
            steps = steps[:, 0]
        if self._name is None:
            return None
        same = codes[1:] == codes[:-1]
        starts = np.flatnonzero(np.append(True, ~same))
        apart = len(starts) > len(self._numbers)
        back = None if steps is None else np.flatnonzero(same & (steps[1:] <= steps[:-1]))
        if not apart and (back is None or not len(back)):
            return None
        if step is None or steps is None:
            _, first_start = np.unique(codes[starts], return_index=True)
            at = int(np.delete(starts, first_start)[0])
            named = list(self._numbers)[int(codes[at])]
            raise BadRow(
                f"{self._file}: row {at + FIRST_ROW}, column {self._name!r}: the episode {named!r} comes again",
                at + FIRST_ROW,
                hint="sort the table by episode and step, or map the column that counts the steps: --map step=COLUMN",
            )
        order = np.lexsort((steps, codes))
        twice = np.flatnonzero((codes[order][1:] == codes[order][:-1]) & (steps[order][1:] == steps[order][:-1]))
        if len(twice):
            first, second = sorted(int(row) for row in order[twice[0] : twice[0] + 2])
            named = list(self._numbers)[int(codes[first])]
            both = f"rows {first + FIRST_ROW} and {second + FIRST_ROW}"
            raise BadRow(
                f"{self._file}: {both} are both step {steps[first]} of the episode {named!r}",
                second + FIRST_ROW,
                hint="give each episode an id of its own, and each of its steps a number",
            )
        why = "episodes stand in turns" if apart else "steps do not rise"
        messages.append(f"{why}: rows are put in the order of {self._name!r} and {step.names[0]!r}")
        self._all = codes[order]
        return order

    def timeouts(self, flags: list[TableColumn], rows: int, order: np.ndarray | None) -> Column | None:
        """The flags of the table with those of the ends, as one column."""
        if self._name is None and len(flags) <= 1:
            return flags[0] if flags else None
        joined = np.zeros(rows, bool)
        for column in flags:
            joined |= column.read_flags(0, rows)
        if self._name is not None:
            joined[np.flatnonzero(self._all[1:] != self._all[:-1])] = True
            joined[-1] = True
        return Column(self._file, self._name or flags[0].key, joined)


def _kept(array: Any, file: str, name: str, row: int, spool: _Spool, key: str, bad: BadEpisodes) -> np.ndarray:
    """Values of Parquet, as they are. A missing one costs its episode where bad ones are left out."""
    flaws: dict[int, str] | None = {} if key.split(".")[0] == "next_observation" or (bad.skip and key not in FLAGS) else None
    size = spool.shape[0] if spool.dtype is not None and spool.shape and len(spool.names) == 1 else None
    try:
        values = arrow.to_numpy(array, file, name, row + FIRST_ROW, flaws, size)
    except BadRow as error:
        why = error.message.partition("] ")[2]
        raise BadRow(f"{file}: row {error.row}, column {name!r} {why}", error.row, hint=error.hint) from None
    for number, why in (flaws or {}).items():
        spool.flaws.setdefault(number - FIRST_ROW, (name, why))
    return values


def _numbers(array: Any, file: str, name: str, row: int, spool: _Spool, key: str, bad: BadEpisodes, decimal: str) -> np.ndarray:
    """Texts of CSV as numbers, or as flags. A text that is none costs its episode where bad ones are left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.utf8_trim_whitespace(array)
    if key in FLAGS:
        lower = np.asarray(pc.utf8_lower(texts).to_pylist(), object)
        flags, known = np.isin(lower, TRUE), np.isin(lower, TRUE + FALSE)
        if not known.all():
            _refuse(file, name, row, texts, int(np.flatnonzero(~known)[0]), "is no flag", "flags are 0 or 1, true or false")
        return flags
    if decimal == ",":
        dots = pc.match_substring(texts, ".")
        if pc.any(dots).as_py():
            at = int(np.flatnonzero(dots.to_numpy(zero_copy_only=False))[0])
            _refuse(file, name, row, texts, at, "has a dot beside decimal commas", "write numbers without signs between thousands")
        texts = pc.replace_substring(texts, ",", ".")
    if key == "action" and spool.whole:
        others = texts.filter(pc.invert(pc.match_substring_regex(texts, r"^[+-]?[0-9]+$")))
        spool.whole = not any(_number(text) is not None for text in others.to_pylist())  # what is no number at all decides nothing
    try:
        values = pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        values = np.full(len(texts), np.nan)
        for at, text in enumerate(texts.to_pylist()):
            number = _number(text)
            if number is not None:
                values[at] = number
            elif key.split(".")[0] == "next_observation" and not text:
                spool.flaws.setdefault(row + at, (name, "is empty"))
            elif bad.skip:
                spool.flaws.setdefault(row + at, (name, f"is {text!r:.60}, which is no number"))
            else:
                hint = "correct the table, or leave such episodes out with --skip-bad"
                if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", text):
                    hint = "decimal commas: --option decimal=, reads them; signs between thousands are not read"
                _refuse(file, name, row, texts, at, "is no number", hint)
    _check_exact(values, texts, file, name, row, spool)
    return values


def _check_exact(values: np.ndarray, texts: Any, file: str, name: str, row: int, spool: _Spool) -> None:
    """Refuses whole numbers that no float holds, and notes the first value that float32 does not hold as it is written."""
    large = np.flatnonzero(np.abs(values) >= EXACT)
    for at in large.tolist():
        text = texts[at].as_py()
        if re.fullmatch(r"[+-]?[0-9]+", text) and int(text) != int(values[at]):
            _refuse(file, name, row, texts, at, "is a whole number that no float holds exactly", "keep it in Parquet, as int64")
    if spool.wide is None:
        with np.errstate(all="ignore"):
            narrow = values.astype(np.float32)
            differ = np.flatnonzero((narrow != values) & np.isfinite(values))
            some = np.abs(values[differ])
            digits = some / 10.0 ** (np.floor(np.log10(some)) - 6)  # seven digits before the point
            wide = differ[~np.isfinite(narrow[differ]) | (narrow[differ] == 0) | (np.abs(digits - np.rint(digits)) > 1e-7)]
        if len(wide):
            spool.wide = (row + int(wide[0]) + FIRST_ROW, name, texts[int(wide[0])].as_py())


def _number(text: str) -> float | None:
    if "_" in text:  # which Python takes as a sign between thousands
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _refuse(file: str, name: str, row: int, texts: Any, at: int, why: str, hint: str) -> None:
    raise BadRow(f"{file}: row {row + at + FIRST_ROW}, column {name!r}: {texts[at].as_py()!r:.60} {why}", row + at + FIRST_ROW, hint=hint)


def _columns(map: Any, header: list[str], file: str, messages: list[str]) -> dict[str, list[str]]:
    """Field -> its columns: those of the map in the order of the file, else those of the usual names."""
    chosen = (
        _usual(header, file, messages)
        if map is None
        else {key: _matched(patterns, header, file, key) for key, patterns in _entries(map).items()}
    )
    for key in chosen:
        role, dot, part = key.partition(".")
        if role not in FIELDS or (dot and (role not in NAMED or not NAME.match(part))) or (role == "extra" and not dot):
            known = "only observation, next_observation and extra have parts, and extra needs one: extra.NAME"
            hint = nearest(role, list(FIELDS)) if role not in FIELDS else known
            raise InvalidInput(f"--map: {key!r} is no field of a step", hint=hint or f"fields: {', '.join(FIELDS)}")
    roles = {key.partition(".")[0] for key in chosen}
    missing = [key for key in ("observation", "action", "reward") if key not in roles]
    if not missing and not roles & {"episode", "terminal", "done"}:
        missing = ["episode"]
    if missing:
        raise InvalidInput(f"{file}: no column is mapped to {missing[0]!r} (columns: {listed(header)})", hint=_proposal(chosen, header))
    for role in ("observation", "next_observation"):
        if role in chosen and len(roles) < len(chosen) and any(key.startswith(f"{role}.") for key in chosen):
            raise InvalidInput(f"--map: {role!r} is mapped with a name and without", hint=f"give every part a name: {role}.NAME=COLUMNS")
    for key in ("reward", "episode", "step", *FLAGS):
        if len(chosen.get(key, ())) > 1:
            raise InvalidInput(f"{file}: {', '.join(chosen[key])} are all mapped to {key!r}", hint="it is one column")
    for key in [each for each in chosen if each.partition(".")[0] == "next_observation"]:
        _pair(chosen, key, file)
    for key, names in chosen.items():
        ordered = sorted(names, key=lambda each: [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", each)])
        alike = len({re.sub(r"[0-9]+", "", each) for each in names}) == 1
        if alike and names != ordered and not (map is not None and set(_entries(map)[key]) == set(names)):  # listed: in that order
            messages.append(f"columns {names[0]!r} to {names[-1]!r} stay in the order of the file, which is not that of their numbers")
    return chosen


def _pair(chosen: Mapping[str, list[str]], key: str, file: str) -> None:
    """Refuses columns of the next observation in another order than those of the observation, as far as their names tell."""
    before, after = chosen.get(key.removeprefix("next_"), []), chosen[key]
    ends = [_ends(names) for names in (before, after)]
    if ends[0] != ends[1] and sorted(ends[0]) == sorted(ends[1]):
        at = next(place for place, (one, two) in enumerate(zip(*ends, strict=True)) if one != two)
        order = "+".join(after[ends[1].index(end)] for end in ends[0])
        raise InvalidInput(
            f"{file}: the observation has {before[at]!r} where the next observation has {after[at]!r}",
            hint=f"list them in one order: --map {key}={order},...",
        )


def _ends(names: list[str]) -> list[str]:
    """What the names of columns have behind their common beginning."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = sum(1 for _ in same)
    return [each[common:] for each in names]


def _usual(header: list[str], file: str, messages: list[str]) -> dict[str, list[str]]:
    """The columns of the usual names, numbered ones in the order of their numbers."""
    folded = [each.casefold() for each in header]
    chosen: dict[str, list[str]] = {}
    for key, names in USUAL.items():
        found = {name: taken for name in names if (taken := _family(name, folded, key in VECTORS))}
        if not found:
            continue
        first = next(iter(found))
        others = [name for name in found if name != first and not (key == "observation" and name in ("state", "states"))]
        if others:
            both = f"{header[found[first][0]]!r} and {header[found[others[0]][0]]!r}"
            raise InvalidInput(f"{file}: both {both} can be the {key}", hint=_proposal(chosen, header, say="say which with a map"))
        places = _numbered(found[first], folded, header, first, file, messages) if key in VECTORS else found[first]
        if len(places) > 1 and key not in VECTORS:
            both = " and ".join(repr(header[place]) for place in places[:2])
            raise InvalidInput(f"{file}: both {both} can be the {key}", hint="rename one, or say which with --map")
        chosen[key] = [header[place] for place in places]
    if "next_observation" in chosen and len(chosen["next_observation"]) != len(chosen.get("observation", ())):
        messages.append(
            f"next observations of {len(chosen['next_observation'])} columns do not fit the observation's "
            f"{len(chosen.get('observation', ()))}: they are left out"
        )
        del chosen["next_observation"]
    return chosen


def _family(name: str, folded: list[str], vector: bool) -> list[int]:
    """The places of a name, and of the numbered or named columns of a vector."""
    pattern = re.compile(re.escape(name) + r"(?:[._\-\[ ].+|\d+)?" if vector else re.escape(name))
    return [place for place, each in enumerate(folded) if pattern.fullmatch(each)]


def _numbered(places: list[int], folded: list[str], header: list[str], name: str, file: str, messages: list[str]) -> list[int]:
    """The columns of a vector. Beside a column of the bare name, or numbered ones, others mean something else: they are not taken."""
    bare = [place for place in places if folded[place] == name]
    numbers = {place: int(match[1]) for place in places if (match := re.fullmatch(re.escape(name) + r"[._\-\[ ]?(\d+)\]?", folded[place]))}
    if bare and numbers:
        both = f"{header[bare[0]]!r} and {header[next(iter(numbers))]!r}"
        raise InvalidInput(f"{file}: {both} can both be the {name}", hint="say with --map which columns it has")
    if bare:
        return bare
    if not numbers:
        return places
    ordered = sorted(numbers, key=lambda place: numbers[place])
    for one, two in itertools.pairwise(ordered):
        if numbers[one] == numbers[two] and header[one] != header[two]:  # of one name: said where columns of one name are
            both = f"{header[one]!r} and {header[two]!r}"
            raise InvalidInput(f"{file}: {both} have the same number", hint="rename one, or list them with --map")
        if numbers[two] > numbers[one] + 1:
            messages.append(f"there is no column between {header[one]!r} and {header[two]!r}: is one missing?")
    if ordered != list(numbers):
        both = f"{header[ordered[0]]!r} to {header[ordered[-1]]!r}"
        messages.append(f"columns {both} are taken in the order of their numbers, not of the file")
    return ordered


#: What the name of a column may say where it is none of the usual ones.
GUESSES = {
    "reward": r"rew|^r$|^score$", "episode": r"^ep|traj|run|trial|demo|seq",
    "action": r"^a(ct|ction|_|\d|$)|torque|control|cmd|^u_?\d*$",
}  # fmt: skip


def _proposal(chosen: Mapping[str, list[str]], header: list[str], say: str = "for example") -> str:
    """A whole map of the columns that are there."""
    taken = {each for names in chosen.values() for each in names}
    left = [each for each in header if each not in taken]
    made = {key: names for key, names in chosen.items() if names}
    for key, pattern in GUESSES.items():
        if key == "episode" and made.keys() & {"episode", "terminal", "done"}:
            continue
        if key not in {each.partition(".")[0] for each in made}:
            found = [each for each in left if re.search(pattern, each, re.IGNORECASE)]
            made[key] = (found if key == "action" else found[:1]) or ["COLUMN"]
            left = [each for each in left if each not in made[key]]
    if not any(key.partition(".")[0] == "observation" for key in made):
        made["observation"] = left or ["COLUMNS"]
    order = [*(key for key in FIELDS if key in made), *(key for key in made if key not in FIELDS)]
    return f"{say}: --map " + ",".join(f"{key}={_named(made[key])}" for key in order)


def _named(names: list[str]) -> str:
    """Columns as a map has them: a pattern where they have their beginning in common."""
    prefix = re.match(r"(.+[._])[^._]+$", names[0])
    if len(names) > 3 and prefix and all(each.startswith(prefix[1]) for each in names):
        return f"{prefix[1]}*"
    shown = "+".join(names[:12])
    return f"'{shown}'" if re.search(r"[\s\[]", shown) else shown


def _entries(map: Any) -> dict[str, list[str]]:
    """The map as field -> patterns."""
    if isinstance(map, str):
        pairs = [each.partition("=") for each in re.split(r"\s*,\s*", map.strip()) if each]
        for key, equals, names in pairs:
            if not equals or not key.strip() or not names.strip():
                raise InvalidInput(f"--map: {key!r} is not FIELD=COLUMNS", hint=f"needed: {NEEDS}")
        entries: dict[str, list[str]] = {}
        for key, _, names in pairs:
            _add(entries, {key.strip(): [each.strip() for each in names.split("+")]})
        return entries
    if not isinstance(map, Mapping) or not map:
        raise InvalidInput(f"--map is {map!r:.60}", hint=f"needed: {NEEDS}")
    entries = {}
    for key, names in map.items():
        if isinstance(names, Mapping):  # a table of TOML: [extra] or [observation]
            _add(entries, {f"{key}.{part}": each for part, each in _entries(names).items()})
            continue
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
            raise InvalidInput(f"--map: {key!r} is {names!r:.60}", hint="give a column, a pattern, or a list of them")
        _add(entries, {str(key): names})
    return entries


def _add(entries: dict[str, list[str]], more: Mapping[str, list[str]]) -> None:
    for key, names in more.items():
        if key in entries:
            hint = f"list its columns once: {key}={'+'.join((*entries[key], *names))}"
            raise InvalidInput(f"--map: {key!r} is mapped twice", hint=hint)
        entries[key] = names


def _matched(patterns: list[str], header: list[str], file: str, key: str) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        names = [each for each in header if each == pattern] or [each for each in header if fnmatch.fnmatchcase(each, pattern)]
        if not names:
            hint = nearest(pattern, header) or f"columns: {listed(header)}"
            raise InvalidInput(f"{file} has no column {pattern!r}, which is mapped to {key!r}", hint=hint)
        found += [each for each in names if each not in found]
    return found


OPTIONS = {
    "map": "which columns are what: observation=obs_*,action=act_*,reward=r,episode=ep (on the command line: --map)",
    "env_id": "the gymnasium environment, for the actions' bounds",
    "done": "what a flag done means: truncated (the episode was cut) or terminated (the task ended)",
}
TEXT = {
    "dtype": "float32 or float64; where it is left out, the first that holds the numbers as they are written",
    "encoding": "of a text that is not UTF-8: latin-1, cp1252, utf-16",
    "delimiter": "the sign between the columns; where it is left out, that of the header",
    "decimal": "the sign before the decimals: . or ,",
}
CSV = Format("csv", "table of text with a header (.csv, .tsv)", NEEDS, detect_csv, open_csv, {**OPTIONS, **TEXT})
PARQUET = Format("parquet", "Parquet file", NEEDS, detect_parquet, open_parquet, OPTIONS)
