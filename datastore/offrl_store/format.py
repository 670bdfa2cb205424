"""The store on disk, format 1: schema.json, columns/NAME.bin and episodes.log as little-endian dtypes with their checksums.

docs/store-format.md describes the same in prose. Only this module knows offsets and checksums.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store.errors import InvalidSchema, StoreCorrupt, StoreNotFound
from offrl_store.kernels import kernels
from offrl_store.schema import Schema

VERSION = 1
SCHEMA_FILE, LOG_FILE, COLUMN_FOLDER = "schema.json", "episodes.log", "columns"
MAGIC = b"OFFRLEPS"
TERMINATED, FINAL_MISSING = 1, 2  # bits of a record's flags

# The log: one header, then one record per episode, all of 64 bytes. `committed` is a lower bound of what has been acknowledged:
# fewer valid records than that means damage, while anything invalid beyond it is the torn tail of an unfinished write. The two slots
# are written alternately, so that a torn one leaves the other intact. Of the valid slots the one with the higher `committed` counts.
SLOT = np.dtype(
    [
        ("first", "<i8"),  # number of the oldest episode kept: above 0 once a bounded store has evicted some
        ("committed", "<i8"),  # episodes known to be durable
        ("reserved", "V4"),  # zeros
        ("crc", "<u4"),  # CRC-32 of the header's first 16 bytes and the 20 bytes before
    ]
)
HEADER = np.dtype(
    [
        ("magic", "S8"),  # OFFRLEPS
        ("version", "<u4"),  # 1
        ("record_size", "<u4"),  # 64
        ("slots", SLOT, 2),
    ]
)
RECORD = np.dtype(
    [
        ("first_row", "<i8"),  # the episode takes the rows first_row .. first_row + steps of every column
        ("steps", "<i8"),  # T
        ("return", "<f8"),  # sum of the T rewards
        ("flags", "<u4"),  # TERMINATED, FINAL_MISSING
        ("data_crc", "<u4"),  # CRC-32 of the T+1 rows of each column, one column after the other in the order of the schema
        ("reserved", "V12"),  # zeros
        ("chain", "V16"),  # first 16 bytes of SHA-256(chain of the record before, the 44 bytes before this field)
        ("crc", "<u4"),  # CRC-32 of the 60 bytes before
    ]
)
SIZE = RECORD.itemsize
PAGE = 4096  # holes are made of whole pages


def _offset(record: np.dtype, name: str) -> int:
    """Return the byte at which a field of a record starts."""
    fields: Mapping[str, Any] = record.fields or {}
    return int(fields[name][1])


_FIXED = _offset(HEADER, "slots")
_CHECKED = _offset(RECORD, "crc")
_RECORD_START = struct.Struct("<qqdII12s")  # a record up to its chain
_SLOT_START = struct.Struct("<qq4s")  # a slot up to its checksum


def column_path(path: Path, column: str) -> Path:
    return path / COLUMN_FOLDER / f"{column}.bin"


# --- schema.json --------------------------------------------------------------------------------------------------------------


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def dump_schema(schema: Schema, limit: Mapping[str, int] | None = None) -> bytes:
    """Return the content of schema.json. ``limit`` of a bounded store is {"transitions": n} or {"bytes": n}."""
    body = {"format": "offrl-store", "version": VERSION, **schema.to_json(), **({"limit": dict(limit)} if limit else {})}
    body["crc"] = zlib.crc32(_canonical(body))
    return (json.dumps(body, indent=1) + "\n").encode()


def load_schema(path: Path) -> tuple[Schema, dict[str, int]]:
    """Read schema.json: the fields, and the limit of a bounded store.

    Raises StoreNotFound if it is missing, StoreCorrupt if it is damaged or of another version.
    """
    file = path / SCHEMA_FILE
    try:
        raw = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreNotFound(f"there is no episode store at {path}", hint=f"a store is a folder that holds {SCHEMA_FILE}") from error
    try:
        body = json.loads(raw)
        crc = body.pop("crc")
        name, version = body["format"], body["version"]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise StoreCorrupt(f"{file} is damaged: {type(error).__name__}: {error}") from error
    if name != "offrl-store" or version != VERSION:
        raise StoreCorrupt(
            f"{file} is {name!r} version {version!r}; this program reads offrl-store version {VERSION}",
            hint="update offrl, or export the data again with the version that wrote it",
        )
    if crc != zlib.crc32(_canonical(body)):
        raise StoreCorrupt(f"{file} is damaged: its checksum does not fit", hint="restore the file from a copy")
    try:
        limit = {str(name): int(value) for name, value in body.get("limit", {}).items()}
        if set(limit) - {"transitions", "bytes"} or any(value < 1 for value in limit.values()):
            raise ValueError(f"the limit {limit} is unknown")
        return Schema.from_json(body), limit
    except (InvalidSchema, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreCorrupt(f"{file} is damaged: {error}") from error


def chain_start(schema: Schema) -> bytes:
    """Return the chain before the first record. It ties every record to the columns (not to the metadata)."""
    return hashlib.sha256(_canonical(schema.to_json()["columns"])).digest()[:16]


# --- episodes.log -------------------------------------------------------------------------------------------------------------


def slot_offset(slot: int) -> int:
    return _FIXED + slot * SLOT.itemsize


def dump_slot(committed: int, first: int = 0) -> bytes:
    raw = _SLOT_START.pack(first, committed, b"")
    return raw + zlib.crc32(raw, _HEADER_CRC).to_bytes(4, "little")


def dump_header_start() -> bytes:
    header = np.zeros((), HEADER)
    header["magic"], header["version"], header["record_size"] = MAGIC, VERSION, SIZE
    return header.tobytes()[:_FIXED]


_HEADER_CRC = zlib.crc32(dump_header_start())


def dump_header() -> bytes:
    """Return the header of an empty store."""
    return dump_header_start() + 2 * dump_slot(0)


def dump_record(first_row: int, steps: int, ret: float, flags: int, data_crc: int, chain: bytes) -> tuple[bytes, bytes]:
    """Return a record and the chain after it."""
    raw = _RECORD_START.pack(first_row, steps, ret, flags, data_crc, b"")
    chain = hashlib.sha256(chain + raw).digest()[:16]
    raw += chain
    return raw + zlib.crc32(raw).to_bytes(4, "little"), chain


@dataclass(frozen=True)
class Log:
    """The whole episodes of a log, and the number of bytes after them that are not a whole record (a torn tail).

    In a bounded store the log starts with the episode before the oldest one that is kept. The chain of that episode cannot be checked,
    because earlier records may be gone.
    """

    base: int  # number of the episode of table[0]
    table: np.ndarray  # RECORD [episodes from base on]
    start: bytes  # the chain before the first record of the store
    first: int
    committed: int
    torn: int
    slot: int  # the slot of the header that counts
    slots_valid: bool  # whether the other slot is whole, too

    @property
    def count(self) -> int:
        """Episodes that were ever in the store."""
        return self.base + len(self.table)

    @property
    def rows(self) -> int:
        """Rows of a column up to the last episode's end."""
        return int(self.table["first_row"][-1] + self.table["steps"][-1]) + 1 if len(self.table) else 0

    def since(self, number: int) -> np.ndarray:
        """Return the records of the episodes from ``number`` on; ``number`` must be at least ``base``."""
        return self.table[number - self.base :]

    def chain(self, count: int) -> bytes:
        """Return the chain after ``count`` records, as the log holds it; ``base`` < count <= ``self.count``, or 0."""
        return self.table["chain"][count - 1 - self.base].tobytes() if count else self.start


def read_log(descriptor: int, file: Path, schema: Schema, known: Log | None = None) -> Log:
    """Read and check the log without the records of ``known``, which were read before. Raises StoreCorrupt. Never changes the file."""
    while True:
        header = first, committed, _, _ = read_header(descriptor, file)
        log = _read_records(descriptor, file, schema, known, *header)
        if log.count >= committed:
            return log
        if read_first(descriptor, file) == first:  # otherwise the writer evicted these records while they were read
            raise StoreCorrupt(
                f"{file}: record {log.count} is damaged or cut, {committed} episodes were committed", hint="restore the store from a copy"
            )


def _read_records(
    descriptor: int, file: Path, schema: Schema, known: Log | None, first: int, committed: int, slot: int, slots_valid: bool
) -> Log:
    base, start = max(first - 1, 0), chain_start(schema) if known is None else known.start
    if known is not None and known.count <= base:
        known = None  # all of them were evicted since
    start_number = base if known is None else known.count
    size = os.fstat(descriptor).st_size
    if known is not None and size < SIZE * (1 + start_number):
        raise StoreCorrupt(f"{file} is cut: {size} bytes, {start_number} episodes were there", hint="restore the store from a copy")
    raw = _read(descriptor, size - SIZE * (1 + start_number), SIZE * (1 + start_number))
    records = np.frombuffer(raw, RECORD, count=len(raw) // SIZE)
    if known is not None:
        row = known.rows
    else:
        row = int(records["first_row"][0]) if base and len(records) else 0  # the end of the evicted rows is unknown
        _check_start(descriptor, file, start, committed)
    valid = _valid_prefix(records, row)
    if known is None:
        table = records[:valid]
    else:
        table = _extended(known.table[max(base - known.base, 0) :], records[:valid])
        base = max(base, known.base)
    return Log(base, table, start, first, committed, len(raw) - valid * SIZE, slot, slots_valid)


def _check_start(descriptor: int, file: Path, start: bytes, committed: int) -> None:
    """Check with the first record, which is never evicted, that the log belongs to the schema. Raises StoreCorrupt."""
    raw = os.pread(descriptor, SIZE, SIZE)
    record = np.frombuffer(raw, RECORD, count=len(raw) // SIZE)
    if not _valid_prefix(record, 0):
        if committed:
            raise StoreCorrupt(
                f"{file}: record 0 is damaged or cut, {committed} episodes were committed", hint="restore the store from a copy"
            )
        return
    first_row, steps, episode_return, flags, data_crc = record[0].item()[:5]
    if dump_record(first_row, steps, episode_return, flags, data_crc, start)[0] != raw:
        raise StoreCorrupt(f"{file} does not belong to {SCHEMA_FILE}: the chain of the first record differs")


def _extended(known: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Append ``added`` to ``known`` in a buffer with room to grow, so that a commit copies only its own records."""
    count, buffer, at = len(known) + len(added), known.base, 0
    if isinstance(buffer, np.ndarray) and buffer.dtype == RECORD and len(known):
        at = (known.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]) // SIZE
    if not isinstance(buffer, np.ndarray) or buffer.dtype != RECORD or len(buffer) < at + count or not buffer.flags.writeable:
        buffer, at = np.empty(2 * count, RECORD), 0
        buffer[: len(known)] = known
    buffer[at + len(known) : at + count] = added  # no other table reaches there: each covers its buffer up to its own end only
    return buffer[at : at + count]


def damaged_remains(descriptor: int, base: int) -> int:
    """Count the records before ``base`` that are neither whole nor evicted (zeros)."""
    at, end, damaged = SIZE, SIZE * (1 + base), 0
    while at < end:
        try:
            at = max(at, os.lseek(descriptor, at, os.SEEK_DATA) // SIZE * SIZE)  # skip a hole
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return damaged
            if error.errno != errno.EINVAL:  # without support for SEEK_DATA, holes are read as zeros
                raise
        data = _read(descriptor, min(end - at, 1 << 20), at)
        records = np.frombuffer(data, RECORD, count=len(data) // SIZE)
        if not len(records):
            return damaged
        raw, crc = records.view(np.uint8).reshape(-1, SIZE), np.empty(len(records), np.uint32)
        kernels().crc32_rows(raw, _CHECKED, crc)
        damaged += int(np.count_nonzero((crc != records["crc"]) & raw.any(axis=1)))
        at += len(records) * SIZE
    return damaged


def gone(first: int) -> tuple[int, int]:
    """Return start and end of the bytes of the log that a bounded store may free once ``first`` is its oldest episode.

    They are whole pages of records before that of episode ``first - 1``. The first page, with the header and the first record, stays.
    """
    return PAGE, max(SIZE * first // PAGE * PAGE, PAGE)


def read_first(descriptor: int, file: Path) -> int:
    """Return the number of the oldest episode that is kept, from the header alone."""
    return read_header(descriptor, file)[0]


def read_header(descriptor: int, file: Path) -> tuple[int, int, int, bool]:
    """Return the first episode, the number of committed episodes, their slot, and whether both slots are whole. Raises StoreCorrupt."""
    raw = os.pread(descriptor, SIZE, 0)
    if raw[: len(MAGIC)] == MAGIC and len(raw) == SIZE:
        header = np.frombuffer(raw, HEADER)[0]
        if header["version"] != VERSION:
            raise StoreCorrupt(f"{file} is version {int(header['version'])}; this program reads version {VERSION}")
        whole = []
        for i, slot in enumerate(header["slots"]):
            if dump_slot(int(slot["committed"]), int(slot["first"])) == slot.tobytes() and raw[:_FIXED] == dump_header_start():
                whole.append((int(slot["committed"]), int(slot["first"]), i))
        if whole:
            committed, first, slot = max(whole)
            return first, committed, slot, len(whole) == 2
    raise StoreCorrupt(f"{file}: the header is damaged", hint="restore the store from a copy")


def _read(descriptor: int, size: int, offset: int) -> bytes:
    """Repeat pread until all bytes are read: one call returns at most 2 GiB."""
    parts = []
    while size > 0:
        part = os.pread(descriptor, size, offset)
        if not part:
            break
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _valid_prefix(records: np.ndarray, row: int) -> int:
    """Count the whole records from the start: with the right checksum, each at the end of the one before (the first at ``row``)."""
    if not len(records):
        return 0
    raw = records.view(np.uint8).reshape(len(records), SIZE)
    crc = np.empty(len(records), np.uint32)
    kernels().crc32_rows(raw, _CHECKED, crc)
    good = (crc == records["crc"]) & (records["steps"] > 0) & (records["steps"] < 2**48)
    ends = row + np.cumsum(np.where(good, records["steps"] + 1, 0))
    good[1:] &= records["first_row"][1:] == ends[:-1]
    good[0] &= records["first_row"][0] == row
    return len(good) if good.all() else int(np.argmin(good))
