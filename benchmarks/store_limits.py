"""The limits that the store is compared with: the same memory traffic in plain C, and the same bytes in plain writes.

`Rows` only copies as many random rows, with one memcpy each; the row numbers are drawn beforehand, and a run repeats none of them. Without
a C compiler it uses NumPy's take. `Tree` adds the minimal memory traffic of a sum tree with eight children per node. One thread.
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

/* Reads the nodes on the path to each leaf, level by level, so that cache misses overlap; sets the leaves; recomputes the sums above. */
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
    """Compile the C functions above; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    (folder / "limits.c").write_text(SOURCE)
    subprocess.run([compiler, "-O3", "-shared", "-fPIC", "-o", folder / "limits.so", folder / "limits.c"], check=True)
    library = ctypes.CDLL(str(folder / "limits.so"))
    library.tree.restype = ctypes.c_double
    return library


class Rows:
    """Copies of random rows. Call k copies the rows at rows[k] of each part (column, number of rows, offset) into ``outs``."""

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
    """The memory traffic of a prioritized draw and update, without the copies of rows: call k uses the leaves rows[k].

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
    """Do the minimum that opening a store needs: parse the schema, read the log and check it by one CRC, map the columns."""
    opened: list[Any] = [json.loads((path / "schema.json").read_bytes()), zlib.crc32((path / "episodes.log").read_bytes())]
    for file in (path / "columns").iterdir():
        with open(file, "rb") as handle:
            opened.append(mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ))
    return opened
