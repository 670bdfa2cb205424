"""Tables, CSV or Parquet: one row per step, with a map that says which columns are what.

``map`` is text, ``observation=obs_*,action=act_*,reward=r,episode=ep``, or a dict (of a TOML file) whose values are names, patterns or
lists of them. Fields: ``observation`` (or ``observation.NAME`` for several), ``action``, ``reward``, ``episode`` (an id: the episode ends
where it changes), ``terminal`` and ``timeout`` (flags), ``next_observation``, ``extra.NAME``. In text ``+`` stands between several columns.
Columns of a pattern keep the order of the file. Numbers of a CSV file become float32 (``dtype`` says otherwise), but for one column of
whole numbers as action, which are choices; those of Parquet keep their dtype, and a column may hold lists. The table is read once, in
blocks, into files without a name, which are gone with the process.
"""

from __future__ import annotations

import fnmatch
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from offrl.errors import nearest
from offrl_store.disk import disk_errors
from offrl_store.errors import InvalidInput
from offrl_store.schema import NAME

from . import arrow
from .columns import Column
from .flat import FlatArrays, flat_source
from .hdf5 import listed
from .source import BadEpisodes, BadRow, Format, Source
from .spaces import probe_environment

NEEDS = "columns for observation, action, reward, and for episode or terminal: --map observation=obs_*,action=act_*,reward=r,episode=ep"

FIELDS = ("observation", "action", "reward", "episode", "terminal", "timeout", "next_observation", "extra")
NAMED = ("observation", "next_observation", "extra")  # those that can have several parts, FIELD.NAME

#: Without a map, the columns of these names and patterns are taken where they are there.
USUAL = {
    "observation": ["observation", "observation[._]*", "obs", "obs[._]*"], "action": ["action", "action[._]*", "act", "act[._]*"],
    "reward": ["reward"], "episode": ["episode", "episode_id", "episode_index"], "terminal": ["terminal", "terminated"],
    "timeout": ["timeout", "truncated"],
}  # fmt: skip

TRUE, FALSE = ("1", "true", "1.0"), ("0", "false", "0.0")
BLOCK = 4 << 20


@dataclass(frozen=True)
class TableColumn(Column):
    """A column of rows that stood in several columns of a table; ``names`` are theirs."""

    names: tuple[str, ...] = ()

    def where(self, row: int, index: tuple[int, ...] = ()) -> str:
        place = index[0] if index and len(self.names) > 1 else 0
        return f"row {row}, column {self.names[place]!r}"


@dataclass
class _Spool:
    """The values of one field on their way from the table: rows in a file without a name."""

    names: list[str]
    file: BinaryIO = field(default_factory=partial(tempfile.TemporaryFile, prefix="offrl-table-"))
    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    whole: bool = True  # all values are whole numbers, as they stand in the text
    rows: int = 0

    def add(self, block: np.ndarray, file: str) -> None:
        if self.dtype is None:
            self.dtype, self.shape = block.dtype, block.shape[1:]
        if block.shape[1:] != self.shape:
            raise BadRow(f"{file}: row {self.rows}, column {self.names[0]!r} has {block.shape[1:]} values, the rows before it {self.shape}",
                         self.rows, hint="all rows need one shape")  # fmt: skip
        with disk_errors(Path(tempfile.gettempdir())):
            self.file.write(np.ascontiguousarray(block, self.dtype).data.cast("B"))
        self.rows += len(block)

    def column(self, file: str, dtype: str | None = None) -> TableColumn:
        with disk_errors(Path(tempfile.gettempdir())):
            self.file.flush()
        shape = (self.rows, *self.shape)
        data = np.memmap(self.file, self.dtype, "r", shape=shape) if self.rows else np.empty(shape, self.dtype)
        return TableColumn(file, self.names[0], _As(data, np.dtype(dtype)) if dtype else data, tuple(self.names))


class _As:
    """An array in another dtype, as the data of a column."""

    def __init__(self, data: Any, dtype: np.dtype) -> None:
        self._data, self.shape, self.dtype = data, data.shape, dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore"):  # NaN as a whole number is the lowest one, which no choice can be
            return self._data[rows].astype(self.dtype)


def detect_csv(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz"))


def detect_parquet(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def open_csv(path: Path, bad: BadEpisodes, *, map: Any = None, dtype: Any = "float32", env_id: Any = None) -> Source:
    """Opens a CSV or (by its name) TSV file with a header; raises `InvalidInput` that names row and column."""
    pa, csv = arrow.need("pyarrow", path.name), arrow.need("pyarrow.csv", path.name)
    if dtype not in ("float32", "float64"):
        raise InvalidInput(f"dtype is {dtype!r}", hint="give float32 or float64")
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    read = csv.ReadOptions(block_size=BLOCK, use_threads=False)
    parse = csv.ParseOptions(delimiter=delimiter)
    name = path.name
    with ExitStack() as resources:
        try:
            stream = resources.enter_context(pa.input_stream(str(path)))
            header = csv.open_csv(stream, read, parse).schema.names
            columns = _columns(map, header, name)
            wanted = list(dict.fromkeys(each for names in columns.values() for each in names))
            convert = csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted, strings_can_be_null=False
            )
            again = resources.enter_context(pa.input_stream(str(path)))
            batches = csv.open_csv(again, read, parse, convert)
            return _open(_damage(batches, pa, name), columns, bad, resources, name, "csv", env_id, partial(_numbers, bad=bad), dtype)
        except (OSError, pa.ArrowException) as error:
            hint = "give a table with a header and one row per step"
            raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint=hint) from None


def open_parquet(path: Path, bad: BadEpisodes, *, map: Any = None, env_id: Any = None) -> Source:
    """Opens a Parquet file; raises `InvalidInput` that names row and column."""
    name = path.name
    pa = arrow.need("pyarrow", name)
    with ExitStack() as resources:
        file = resources.enter_context(arrow.open_parquet(path, name))
        try:
            columns = _columns(map, file.schema_arrow.names, name)
            wanted = list(dict.fromkeys(each for names in columns.values() for each in names))
            batches = file.iter_batches(batch_size=1 << 14, columns=wanted, use_threads=False)
            return _open(_damage(batches, pa, name), columns, bad, resources, name, "parquet", env_id, _kept, None)
        except (OSError, pa.ArrowException) as error:
            hint = "the file is damaged or cut short; copy it again"
            raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint=hint) from None


def _damage(batches: Iterable[Any], pa: Any, name: str) -> Iterator[Any]:
    """The batches; what pyarrow says against the table comes as one line."""
    try:
        yield from batches
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(f"{name} cannot be read: {arrow.line(error)}", hint="correct the table, or copy it again") from None


def _open(
    batches: Iterator[Any], columns: dict[str, list[str]], bad: BadEpisodes, resources: ExitStack, name: str, format: str, env_id: Any,
    numbers: Any, dtype: str | None,
) -> Source:  # fmt: skip
    spools = {key: _Spool(names) for key, names in columns.items() if key != "episode"}
    for spool in spools.values():
        resources.callback(spool.file.close)
    episodes = _Episodes(name, columns.get("episode"))
    row = 0
    for batch in batches:
        for key, spool in spools.items():
            blocks = [numbers(batch.column(each), name, each, row, spool, key) for each in spool.names]
            spool.add(blocks[0] if len(blocks) == 1 and (blocks[0].ndim > 1 or key.split(".")[0] not in ("observation", "next_observation"))
                      else np.column_stack(blocks), name)  # fmt: skip
        episodes.add(batch)
        row += batch.num_rows
    messages: list[str] = []
    if env_id is not None and not isinstance(env_id, str):
        raise InvalidInput(f"env_id is {env_id!r}", hint="give the name of a gymnasium environment")

    def part(key: str) -> Any:
        if key in spools:
            return spools[key].column(name, dtype)
        named = {each.partition(".")[2]: spool.column(name, dtype) for each, spool in spools.items() if each.startswith(f"{key}.")}
        return named or None

    action = spools["action"]
    choices = dtype is not None and len(action.names) == 1 and action.whole
    if "terminal" not in spools:
        messages.append("no column says where the task ended: every episode is taken as cut")
        terminals = Column(name, "terminal", np.zeros(row, bool))
    else:
        terminals = spools["terminal"].column(name)
    arrays = FlatArrays(
        part("observation"), action.column(name, "int64" if choices else dtype), part("reward"), terminals,
        episodes.timeouts(spools["timeout"].column(name) if "timeout" in spools else None, row),
        part("next_observation"), extra=part("extra") or {},
    )  # fmt: skip
    source = flat_source(
        arrays, bad, format=format, env_id=env_id, space=probe_environment(env_id, name, messages).space, attributes={}, messages=messages,
        columns={key: list(names) for key, names in columns.items()},
    )  # fmt: skip
    source.resources = resources.pop_all()
    return source


class _Episodes:
    """Where an id of episodes changes; an id that comes again later is an error."""

    def __init__(self, file: str, names: list[str] | None) -> None:
        self._file, self._name = file, names[0] if names else None
        self._last: Any = None
        self._seen: set[Any] = set()
        self._ends: list[int] = []
        self._row = 0

    def add(self, batch: Any) -> None:
        if self._name is None or not batch.num_rows:
            return
        ids = np.asarray(batch.column(self._name).to_pylist(), object)
        changes = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
        for at in changes.tolist():
            if ids[at] is None or ids[at] == "":
                raise BadRow(f"{self._file}: row {self._row + at}, column {self._name!r} is empty", self._row + at,
                             hint="every step needs the id of its episode")  # fmt: skip
            if at == 0 and self._row and ids[0] == self._last:
                continue
            if ids[at] in self._seen:
                raise BadRow(f"{self._file}: row {self._row + at}, column {self._name!r}: the episode {ids[at]!r} comes again",
                             self._row + at, hint="sort the table by episode and step")  # fmt: skip
            self._seen.add(ids[at])
            if self._row + at:
                self._ends.append(self._row + at - 1)
        self._last, self._row = ids[-1], self._row + len(ids)

    def timeouts(self, column: Column | None, rows: int) -> Column | None:
        """The flags of the table with those of the ends, as one column."""
        if self._name is None:
            return column
        flags = column.read_flags(0, rows).copy() if column is not None else np.zeros(rows, bool)
        flags[self._ends] = True
        if rows:
            flags[-1] = True
        return Column(self._file, self._name, flags)


def _kept(array: Any, file: str, name: str, row: int, spool: _Spool, key: str) -> np.ndarray:
    """Values of Parquet, as they are."""
    try:
        return arrow.to_numpy(array, file, name, row)
    except BadRow as error:
        raise BadRow(f"{file}: row {error.row}, column {name!r} is missing, or has another number of values", error.row,
                     hint="fill the gap, or remove the episode") from None  # fmt: skip


def _numbers(array: Any, file: str, name: str, row: int, spool: _Spool, key: str, bad: BadEpisodes) -> np.ndarray:
    """Texts of CSV as numbers, or as flags. A text that is none costs its episode where bad ones are left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.utf8_trim_whitespace(array)
    if key in ("terminal", "timeout"):
        lower = np.asarray(pc.utf8_lower(texts).to_pylist(), object)
        flags, known = np.isin(lower, TRUE), np.isin(lower, TRUE + FALSE)
        if not known.all():
            _refuse(file, name, row, texts, int(np.flatnonzero(~known)[0]), "is no flag", "flags are 0 or 1, true or false")
        return flags
    if key == "action" and spool.whole:
        others = texts.filter(pc.invert(pc.match_substring_regex(texts, r"^[+-]?[0-9]+$")))
        spool.whole = not any(_number(text) is not None for text in others.to_pylist())  # what is no number at all decides nothing
    try:
        return pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        pass
    values = np.full(len(texts), np.nan)
    for at, text in enumerate(texts.to_pylist()):
        number = _number(text)
        if number is not None:
            values[at] = number
        elif not bad.skip:
            _refuse(file, name, row, texts, at, "is no number", "correct the table, or leave such episodes out with --skip-bad")
    return values


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _refuse(file: str, name: str, row: int, texts: Any, at: int, why: str, hint: str) -> None:
    raise BadRow(f"{file}: row {row + at}, column {name!r}: {texts[at].as_py()!r:.60} {why}", row + at, hint=hint)


def _columns(map: Any, header: list[str], file: str) -> dict[str, list[str]]:
    """Field -> its columns, in the order of the file."""
    if map is None:
        chosen = {key: [each for each in header if any(fnmatch.fnmatchcase(each, one) for one in names)] for key, names in USUAL.items()}
        chosen = {key: names for key, names in chosen.items() if names}
    else:
        chosen = {key: _matched(patterns, header, file, key) for key, patterns in _entries(map).items()}
    for key in chosen:
        role, dot, part = key.partition(".")
        if role not in FIELDS or (dot and (role not in NAMED or not NAME.match(part))) or (role == "extra" and not dot):
            known = "only observation, next_observation and extra have parts, and extra needs one: extra.NAME"
            hint = nearest(role, list(FIELDS)) if role not in FIELDS else known
            raise InvalidInput(f"--map: {key!r} is no field of a step", hint=hint or f"fields: {', '.join(FIELDS)}")
    roles = {key.partition(".")[0] for key in chosen}
    missing = [key for key in ("observation", "action", "reward") if key not in roles]
    if not missing and not roles & {"episode", "terminal"}:
        missing = ["episode"]
    if missing:
        raise InvalidInput(f"{file}: no column is mapped to {missing[0]!r} (columns: {listed(header)})", hint=f"needed: {NEEDS}")
    for key in ("reward", "episode", "terminal", "timeout"):
        if len(chosen.get(key, ())) > 1:
            raise InvalidInput(f"{file}: {', '.join(chosen[key])} are all mapped to {key!r}", hint="it is one column")
    return chosen


def _entries(map: Any) -> dict[str, list[str]]:
    """The map as field -> patterns."""
    if isinstance(map, str):
        pairs = [each.partition("=") for each in re.split(r"\s*,\s*", map.strip()) if each]
        for key, equals, names in pairs:
            if not equals or not key.strip() or not names.strip():
                raise InvalidInput(f"--map: {key!r} is not FIELD=COLUMNS", hint=f"needed: {NEEDS}")
        return {key.strip(): [each.strip() for each in names.split("+")] for key, _, names in pairs}
    if not isinstance(map, Mapping) or not map:
        raise InvalidInput(f"--map is {map!r:.60}", hint=f"needed: {NEEDS}")
    entries: dict[str, list[str]] = {}
    for key, names in map.items():
        if isinstance(names, Mapping):  # a table of TOML: [extra] or [observation]
            entries |= {f"{key}.{part}": each for part, each in _entries(names).items()}
            continue
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
            raise InvalidInput(f"--map: {key!r} is {names!r:.60}", hint="give a column, a pattern, or a list of them")
        entries[str(key)] = names
    return entries


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
}
CSV = Format("csv", "table of text with a header (.csv, .tsv)", NEEDS, detect_csv, open_csv, {**OPTIONS, "dtype": "float32 or float64"})
PARQUET = Format("parquet", "Parquet file", NEEDS, detect_parquet, open_parquet, OPTIONS)
