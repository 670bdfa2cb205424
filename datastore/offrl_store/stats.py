"""stats: statistics of a store, computed once per snapshot and cached in its folder."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zlib
from typing import Any

import numpy as np

from offrl_store import format as layout
from offrl_store.errors import EmptyStore
from offrl_store.reader import StoreReader
from offrl_store.schema import Column

STATS_FILE = "stats.json"
VERSION = 2  # version of the cached file; another version is recomputed
CHUNK_BYTES = 4 << 20
LARGEST_ROW = 1024  # elements; a larger row (an image) gets statistics over all of its elements
BINS = 20


def stats(store: StoreReader) -> dict[str, Any]:
    """Compute mean, std, min and max of returns, lengths and every field, without padding.

    Returns {"episodes", "steps", "transitions": n, "return", "length": {mean, std, min, max, histogram: [counts of 20 bins], edges: [21]},
    "fields": {column: {mean, std, min, max}}}. The values of a field are lists of its shape (numbers for an image), computed in float64;
        std
    is that of the population. A discrete field also has "counts" of its values; a reward and each dimension of a continuous action have
    "histogram" and "edges" like returns. Raises EmptyStore.
    """
    if not len(store):
        raise EmptyStore(f"{store.path} has no episode")
    key = str(store.snapshot())
    cached = load(store)
    if cached is not None and cached["snapshot"] == key and cached.get("version") == VERSION:
        return cached["stats"]
    table = store.episode_table
    result: dict[str, Any] = {"episodes": len(store), "steps": store.step_count, "transitions": store.transition_count}
    for name, values in (("return", store.returns), ("length", table["steps"].astype(np.float64))):
        counts, edges = np.histogram(values, BINS)
        result[name] = {
            "mean": float(values.mean()),
            "std": float(values.std()),
            "min": float(values.min()),
            "max": float(values.max()),
            "histogram": counts.tolist(),
            "edges": edges.tolist(),
        }
    result["fields"] = {column.name: _field(store, column, table) for column in store.schema.columns}
    store.check_alive()
    _save(store, key, result)
    return result


def load(store: StoreReader) -> dict[str, Any] | None:
    """Return the cached statistics with their snapshot; None if they are missing or damaged."""
    try:
        body = json.loads((store.path / STATS_FILE).read_bytes())
        crc = body.pop("crc")
        return body if crc == _checksum(body) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _checksum(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def _save(store: StoreReader, key: str, result: dict[str, Any]) -> None:
    body = {"version": VERSION, "snapshot": key, "stats": result}
    body["crc"] = _checksum(body)
    temporary = store.path / f".{STATS_FILE}.{secrets.token_hex(4)}"
    try:
        temporary.write_text(json.dumps(body))
        os.replace(temporary, store.path / STATS_FILE)
    except OSError:  # read-only folder or full disk: the next call computes them again
        with contextlib.suppress(OSError):
            temporary.unlink()


def _field(store: StoreReader, column: Column, table: np.ndarray) -> dict[str, Any]:
    """Compute the statistics of a column in one pass; means and squares of chunks are joined as in Chan, Golub and LeVeque (1979)."""
    start = int(table["first_row"][0])
    last = table["first_row"] + table["steps"] - start
    valid = np.ones(int(last[-1]) + 1, bool)
    valid[last if column.role != "observation" else last[table["flags"] & layout.FINAL_MISSING != 0]] = False
    field, rows = column.field, store.column(column.name)[start : start + len(valid)]
    whole = int(np.prod(field.shape, dtype=np.int64)) > LARGEST_ROW
    step = max(1, CHUNK_BYTES // field.row_bytes)
    count, mean, squares, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    values: dict[int, int] = {}
    for at in range(0, len(valid), step):
        part = rows[at : at + step][valid[at : at + step]].astype(np.float64)
        if whole:
            part = part.reshape(-1)
        if not len(part):
            continue
        with np.errstate(all="ignore"):  # extras may hold NaN and infinities
            here = part.mean(axis=0)
            delta, total = here - mean, count + len(part)
            squares = squares + np.square(part - here).sum(axis=0) + np.square(delta) * (count * len(part) / total)
            mean, count = mean + delta * (len(part) / total), total
            low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
        if field.discrete:
            for value, times in zip(*np.unique(part.astype(np.int64), return_counts=True), strict=True):
                values[int(value)] = values.get(int(value), 0) + int(times)
    with np.errstate(all="ignore"):
        summary = {"mean": mean, "std": np.sqrt(squares / max(count, 1)), "min": low, "max": high}
    summary = {name: np.asarray(value).tolist() for name, value in summary.items()}
    if field.discrete:
        summary["counts"] = [values.get(i, 0) for i in range(field.n)]
    elif column.role in ("reward", "action") and not whole and count:
        summary |= _histograms(rows, valid, step, np.asarray(low), np.asarray(high))
    return summary


def _histograms(rows: np.ndarray, valid: np.ndarray, step: int, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    """Count 20 bins from the smallest to the largest value, for each dimension of a row."""
    shape = low.shape
    low, high = low.reshape(-1), high.reshape(-1)
    edges = np.stack([np.histogram_bin_edges([], BINS, (a, b)) for a, b in zip(low, high, strict=True)])
    counts = np.zeros((len(low), BINS), np.int64)
    for at in range(0, len(valid), step):
        part = rows[at : at + step][valid[at : at + step]].astype(np.float64).reshape(-1, len(low))
        for place in range(len(low)):
            counts[place] += np.histogram(part[:, place], edges[place])[0]
    return {"histogram": counts.reshape(*shape, BINS).tolist(), "edges": edges.reshape(*shape, BINS + 1).tolist()}
