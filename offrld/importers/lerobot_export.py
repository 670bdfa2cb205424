"""Exporting as a LeRobot dataset of version v3.0: Parquet files with one row group per episode, images as PNG.

LeRobot keeps as many observations as actions, so final observations are left out. How an episode ended is kept beside its own
``next.done`` as ``next.terminated``. A single observation becomes ``observation.state`` (of pixels ``observation.image``), fields
``observation.NAME``. Statistics are mean, std, min, max and count of every feature; quantiles, which a few policies want, are not made.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store import Field

from . import arrow
from .exporting import Export, action_shape, channels_last, named_observations, one_action

FPS = 30  # where the data do not say
DATA_BYTES = 100 << 20  # a data file is closed above this size
FILES_PER_CHUNK = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def write_lerobot(export: Export) -> None:
    """``meta/`` and ``data/``. Frames per second and tasks are those that the data came with, else 30 and the environment's name."""
    store, schema = export.store, export.store.schema
    pa, parquet = arrow.need("pyarrow", "'lerobot'"), arrow.need("pyarrow.parquet", "'lerobot'")
    action = one_action(export, "lerobot")
    fields = {_name(name, each): each for name, each in named_observations(schema.observation).items()}
    images = {key for key, each in fields.items() if channels_last(each)}
    fields |= {"action": Field(action.dtype, action_shape(action) or (1,)), "next.reward": Field(schema.reward.dtype, (1,))}
    fields |= {"next.done": Field("bool", (1,)), "next.terminated": Field("bool", (1,))}
    fields |= {name: Field(each.dtype, each.shape or (1,)) for name, each in schema.extra.items()}
    index = {"timestamp": Field("float32", (1,))} | {
        key: Field("int64", (1,)) for key in ("frame_index", "episode_index", "index", "task_index")
    }
    known = store.metadata.get("source_attributes")
    fps = known.get("fps") if isinstance(known, dict) and isinstance(known.get("fps"), (int, float)) and known["fps"] > 0 else None
    if fps is None:
        export.message(f"the dataset does not say how many steps there are in a second: {FPS} are written")
        fps = FPS
    features = fields | index
    described = pa.schema([pa.field(key, _type(pa, each, key in images)) for key, each in features.items()])
    described = described.with_metadata({b"huggingface": json.dumps({"info": {"features": _hugging(features, images)}}).encode()})
    data = _DataFiles(export.path, parquet, described)
    statistics = {key: _Statistics(key in images) for key in features}
    tasks: dict[str, int] = {}
    episodes: list[dict[str, Any]] = []
    row = 0
    try:
        for number, episode in enumerate(store.episodes):
            steps, metadata = episode.steps, store.episode_metadata(number)
            named = metadata.get("tasks")
            named = [str(each) for each in named] if isinstance(named, list) and named else [str(store.metadata.get("env_id") or "task")]
            for each in named:
                tasks.setdefault(each, len(tasks))
            last = np.arange(1, steps + 1) == steps
            columns = {_name(key, each): rows[:steps] for (key, rows), each in zip(
                named_observations(episode.observation).items(), named_observations(schema.observation).values(), strict=True)}  # fmt: skip
            columns |= {
                "action": episode.action, "next.reward": episode.reward, "next.done": last, "next.terminated": last & episode.terminated,
                **episode.extra, "timestamp": np.arange(steps) / fps, "frame_index": np.arange(steps),
                "episode_index": np.full(steps, number), "index": np.arange(row, row + steps),
                "task_index": np.full(steps, tasks[named[0]]),
            }  # fmt: skip
            for key, rows in columns.items():
                statistics[key].add(rows)
            arrays = [_array(pa, columns[key], features[key], described.field(key).type, key in images) for key in features]
            chunk, file = data.write(pa.Table.from_arrays(arrays, schema=described))
            episodes.append({
                "episode_index": number, "tasks": named, "length": steps, "data/chunk_index": chunk, "data/file_index": file,
                "dataset_from_index": row, "dataset_to_index": row + steps, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
            })  # fmt: skip
            row += steps
            export.progress(number + 1, len(store))
    finally:
        data.close()
    meta = export.path / "meta"
    (meta / "episodes" / "chunk-000").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(episodes), meta / "episodes" / "chunk-000" / "file-000.parquet")
    parquet.write_table(_tasks(pa, tasks), meta / "tasks.parquet")
    (meta / "stats.json").write_text(json.dumps({key: each.values() for key, each in statistics.items()}, indent=4))
    (meta / "info.json").write_text(json.dumps({
        "codebase_version": "v3.0", "robot_type": known.get("robot_type") if isinstance(known, dict) else None,
        "total_episodes": len(store), "total_frames": row, "total_tasks": len(tasks), "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": DATA_BYTES >> 20, "video_files_size_in_mb": 200, "fps": fps, "splits": {"train": f"0:{len(store)}"},
        "data_path": DATA_PATH, "video_path": None,
        "features": {key: _feature(each, key in images) for key, each in features.items()},
    }, indent=4))  # fmt: skip
    _say(export)


def _say(export: Export) -> None:
    flags = export.store.episode_table["flags"]
    kept, lost = int((flags & 2 == 0).sum()), int((flags & 3 == 0).sum())
    if kept:
        export.message(f"LeRobot keeps no final observations: those of {kept} episodes are left out, "
                       f"and with them the last transition of {lost} truncated ones")  # fmt: skip


def _name(name: str, field: Field) -> str:
    """The feature of an observation field; one alone has LeRobot's usual name."""
    if name:
        return f"observation.{name}"
    return "observation.image" if channels_last(field) else "observation.state"


def _feature(field: Field, image: bool) -> dict[str, Any]:
    if image:
        return {"dtype": "image", "shape": [*field.shape[1:], field.shape[0]], "names": ["height", "width", "channels"]}
    return {"dtype": field.dtype.name, "shape": list(field.shape), "names": None}


def _type(pa: Any, field: Field, image: bool) -> Any:
    """One number stands alone, a vector is a list of known length, a matrix a list of lists."""
    if image:
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind = pa.from_numpy_dtype(field.dtype)
    if field.shape == (1,):
        return kind
    for size in reversed(field.shape):
        kind = pa.list_(kind, size)
    return kind


def _array(pa: Any, rows: np.ndarray, field: Field, kind: Any, image: bool) -> Any:
    if image:
        pictures = [{"bytes": _png(each), "path": f"frame-{t:06d}.png"} for t, each in enumerate(rows)]
        return pa.array(pictures, kind)
    if field.shape == (1,):
        return pa.array(np.ascontiguousarray(rows.reshape(-1), field.dtype))
    values = pa.array(np.ascontiguousarray(rows, field.dtype).reshape(-1))
    for size in reversed(field.shape):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


def _png(pixels: np.ndarray) -> bytes:
    """One image ``[C, H, W]`` without loss."""
    image = arrow.need("PIL.Image", "'lerobot'")
    out = io.BytesIO()
    image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, -1))).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _hugging(features: dict[str, Field], images: set[str]) -> dict[str, Any]:
    """The features as the library ``datasets`` notes them in a Parquet file."""
    noted: dict[str, Any] = {}
    for key, field in features.items():
        if key in images:
            noted[key] = {"_type": "Image"}
            continue
        value: dict[str, Any] = {"dtype": field.dtype.name, "_type": "Value"}
        for size in reversed(field.shape if field.shape != (1,) else ()):
            value = {"feature": value, "length": size, "_type": "List"}
        noted[key] = value
    return noted


def _tasks(pa: Any, tasks: dict[str, int]) -> Any:
    """A table whose index, as pandas notes it, are the tasks."""
    table = pa.table({"task_index": pa.array(list(tasks.values()), pa.int64()), "__index_level_0__": pa.array(list(tasks), pa.string())})
    column = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    index = {"pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    noted = {
        "index_columns": ["__index_level_0__"], "column_indexes": [], "pandas_version": "2.2.0", "attributes": {},
        "columns": [{"name": "task_index", "field_name": "task_index", **column},
                    {"name": None, "field_name": "__index_level_0__", **index}],
    }  # fmt: skip
    return table.replace_schema_metadata({b"pandas": json.dumps(noted).encode()})


class _DataFiles:
    """The data files, a new one when the last is large enough."""

    def __init__(self, root: Path, parquet: Any, schema: Any) -> None:
        self._root, self._parquet, self._schema = root, parquet, schema
        self._number, self._sink, self._writer = -1, None, None

    def write(self, table: Any) -> tuple[int, int]:
        """Writes one row group; returns chunk and file."""
        if self._writer is None or self._sink.tell() > DATA_BYTES:
            self.close()
            self._number += 1
            chunk, file = divmod(self._number, FILES_PER_CHUNK)
            path = self._root / DATA_PATH.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = open(path, "wb")  # noqa: SIM115  closed by close()
            self._writer = self._parquet.ParquetWriter(self._sink, self._schema)
        self._writer.write_table(table, row_group_size=table.num_rows)
        return divmod(self._number, FILES_PER_CHUNK)

    def close(self) -> None:
        writer, sink, self._writer, self._sink = self._writer, self._sink, None, None
        try:
            if writer is not None:
                writer.close()
        finally:
            if sink is not None:
                sink.close()


class _Statistics:
    """Mean, std, min and max of a feature over all rows; of images per channel, in [0, 1], over every 16th frame."""

    def __init__(self, image: bool) -> None:
        self._image, self._count, self._rows = image, 0, 0
        self._sum = self._square = self._least = self._most = np.zeros(0)

    def add(self, rows: np.ndarray) -> None:
        if self._image:
            rows = rows[::16] / 255.0
            self._rows += len(rows)
            rows = np.moveaxis(rows, 1, -1).reshape(-1, rows.shape[1])
        else:
            rows = rows.reshape(len(rows), *(rows.shape[1:] or (1,))).astype(np.float64)
            self._rows += len(rows)
        least, most, total, square = rows.min(0), rows.max(0), rows.sum(0), np.square(rows).sum(0)
        if self._count:
            least, most = np.minimum(least, self._least), np.maximum(most, self._most)
            total, square = total + self._sum, square + self._square
        self._least, self._most, self._sum, self._square = least, most, total, square
        self._count += len(rows)

    def values(self) -> dict[str, Any]:
        mean = self._sum / self._count
        found = {"min": self._least, "max": self._most, "mean": mean, "std": np.sqrt(np.maximum(self._square / self._count - mean**2, 0))}
        shaped = {key: (value.reshape(-1, 1, 1) if self._image else value).tolist() for key, value in found.items()}
        return shaped | {"count": [self._rows]}
