"""Read an episode store with only NumPy: `python examples/read_store.py STORE` prints one line per episode."""

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

RECORD = np.dtype(
    [
        ("first_row", "<i8"),
        ("steps", "<i8"),
        ("return", "<f8"),
        ("flags", "<u4"),
        ("data_crc", "<u4"),
        ("reserved", "V12"),
        ("chain", "V16"),
        ("crc", "<u4"),
    ]
)


def read_store(path):
    """Yield (columns of the episode as a dict of arrays, terminated) for each episode; the arrays are views of the mapped files."""
    path = Path(path)
    schema = json.loads((path / "schema.json").read_text())
    with open(path / "episodes.log", "rb") as file:
        header = file.read(64)  # the later of its two slots is current
        slots = [struct.unpack_from("<qq4xI", header, at) for at in (16, 40)]
        oldest = max(
            (committed, kept)
            for (kept, committed, crc), at in zip(slots, (16, 40), strict=True)
            if crc == zlib.crc32(header[:16] + header[at : at + 20])
        )[1]
        file.seek(64 * (1 + oldest))  # a bounded store has dropped the episodes before this one
        log = file.read()
    records = np.frombuffer(log, RECORD, count=len(log) // 64)
    rows = int(records["first_row"][-1] + records["steps"][-1]) + 1 if len(records) else 0
    columns = {}
    for column in schema["columns"]:
        if rows:
            columns[column["column"]] = np.memmap(
                path / "columns" / f"{column['column']}.bin", column["dtype"], "r", shape=(rows, *column["shape"])
            )
    for first, steps, flags in records[["first_row", "steps", "flags"]]:
        observed = steps + 1 - (flags >> 1 & 1)  # T+1 observations, or T if the final one is missing
        yield (
            {name: rows[first : first + (observed if name.startswith("observation") else steps)] for name, rows in columns.items()},
            bool(flags & 1),
        )


if __name__ == "__main__":
    for number, (episode, terminated) in enumerate(read_store(sys.argv[1])):
        print(number, len(episode["reward"]), episode["reward"].sum(dtype=float), "terminated" if terminated else "truncated")
