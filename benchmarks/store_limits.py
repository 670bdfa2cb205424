"""What the store is measured against: the same memory traffic in plain C, the same bytes in plain writes.

`Rows` copies as many random rows with one memcpy each and nothing else, the row numbers drawn beforehand and none of them twice in a run
(NumPy's take where no C compiler is). `Tree` adds what a sum tree of eight children per node cannot do without. One thread.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np

WIDE = 8  # children of a node
SOURCE = """
#include <stdint.h>
#include <string.h>

void copy(const int64_t *rows, long n, long parts, const char **source, char **out, const long *width, const long *count) {
    for (long p = 0; p < parts; p++)
        for (long i = 0; i < n; i++)
            memcpy(out[p] + i * width[p] * count[p], source[p] + rows[i] * width[p], width[p] * count[p]);
}

static double sum(const double *children) {
    double value = 0;
    for (int i = 0; i < 8; i++) value += children[i];
    return value;
}

/* Reads the nodes on the way to each leaf, level by level, so that the misses overlap; sets the leaves; sums the nodes above them anew. */
double tree(const int64_t *leaves, long n, double *nodes, long height, const long *level, const double *values) {
    double seen = 0;
    for (long h = height - 1; h >= 0; h--)
        for (long i = 0; i < n; i++) seen += sum(nodes + level[h] + (leaves[i] >> (3 * (h + 1))) * 8);
    for (long i = 0; i < n; i++) nodes[level[0] + leaves[i]] = values[i];
    for (long h = 0; h < height; h++)
        for (long i = 0; i < n; i++) {
            int64_t node = leaves[i] >> (3 * (h + 1));
            nodes[level[h + 1] + node] = sum(nodes + level[h] + node * 8);
        }
    return seen;
}
"""


def compile_limits(folder: Path) -> Any:
    """The C functions above; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    (folder / "limits.c").write_text(SOURCE)
    subprocess.run([compiler, "-O3", "-shared", "-fPIC", "-o", folder / "limits.so", folder / "limits.c"], check=True)
    library = ctypes.CDLL(str(folder / "limits.so"))
    library.tree.restype = ctypes.c_double
    return library


class Rows:
    """Copies of random rows: call k copies rows[k] of each (column, rows taken, rows on from the row drawn) into ``outs``."""

    def __init__(self, library: Any, rows: np.ndarray, parts: list[tuple[np.ndarray, int, int]]) -> None:
        self._library, self._rows, self._parts = library, rows, [(column[shift:], count) for column, count, shift in parts]
        size, n = rows.shape[1], len(parts)
        self.outs = [np.zeros((size, count, *column.shape[1:]), column.dtype) for column, count in self._parts]
        pointers, numbers = ctypes.c_void_p * n, ctypes.c_long * n
        self._arguments = (
            ctypes.c_long(size),
            ctypes.c_long(n),
            pointers(*[column.ctypes.data for column, _ in self._parts]),
            pointers(*[out.ctypes.data for out in self.outs]),
            numbers(*[column[0].nbytes for column, _ in self._parts]),
            numbers(*[count for _, count in self._parts]),
        )
        self._start, self._stride = rows.ctypes.data, rows.strides[0]

    def __call__(self, k: int) -> None:
        if self._library is not None:
            self._library.copy(ctypes.c_void_p(self._start + k * self._stride), *self._arguments)
            return
        for (column, count), out in zip(self._parts, self.outs, strict=True):
            for j in range(count):
                np.take(column, self._rows[k] + j, axis=0, out=out[:, j], mode="clip")


class Tree:
    """The memory traffic of one batch drawn by priority and updated, beside copying its rows: call k takes the leaves rows[k].

    The leaves are known beforehand: no random numbers, no search, no powers, no weights.
    """

    def __init__(self, library: Any, rows: np.ndarray, leaves: int, values: np.ndarray) -> None:
        lengths = [leaves]
        while lengths[-1] > 1:
            lengths[-1] = -(-lengths[-1] // WIDE) * WIDE
            lengths.append(lengths[-1] // WIDE)
        self.levels = np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int64)
        self.nodes = np.zeros(sum(lengths))
        self._library, self._height, self._values = library, ctypes.c_long(len(lengths) - 1), np.ascontiguousarray(values, np.float64)
        self._size, self._rows = ctypes.c_long(rows.shape[1]), rows

    def __call__(self, k: int) -> None:
        pointer = ctypes.c_void_p
        self._library.tree(
            pointer(self._rows[k].ctypes.data),
            self._size,
            pointer(self.nodes.ctypes.data),
            self._height,
            pointer(self.levels.ctypes.data),
            pointer(self._values.ctypes.data),
        )


def write_raw(files: list[tuple[int, np.ndarray]], piece: int = 1 << 23) -> None:
    """Write arrays to the files of these descriptors, 8 MiB at a time, then sync each."""
    for descriptor, array in files:
        raw, done = array.data.cast("B"), 0
        while done < len(raw):
            done += os.write(descriptor, raw[done : done + piece])
    for descriptor, _ in files:
        os.fsync(descriptor)


def open_raw(path: Path) -> list[Any]:
    """What opening a store cannot do without: its schema parsed, its log read and checked by one CRC, its columns mapped."""
    found: list[Any] = [json.loads((path / "schema.json").read_bytes()), zlib.crc32((path / "episodes.log").read_bytes())]
    for file in (path / "columns").iterdir():
        with open(file, "rb") as handle:
            found.append(mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ))
    return found
