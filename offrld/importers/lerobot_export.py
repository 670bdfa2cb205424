"""Export as a LeRobot dataset of version v3.0: Parquet files with one row group per episode, images as PNG.

LeRobot keeps as many observations as actions, so final observations are left out. ``next.terminated``, beside LeRobot's own ``next.done``,
keeps how an episode ended. A single observation becomes ``observation.state`` (pixels: ``observation.image``), a field becomes
``observation.NAME``. Extra fields keep their names unless LeRobot uses the name itself. The statistics per episode and in total are
LeRobot's own, so that it can record further episodes into the folder. Data that came from LeRobot get their original features.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from offrl_store import Episode, EpisodeStore, Field
from offrl_store.errors import InvalidInput
from offrld.importers import arrow
from offrld.importers.described import NAME, record
from offrld.importers.exporting import (
    Export,
    action_shape,
    channels_last,
    free_names,
    named_observations,
    one_action,
    say_left_out,
    source_attributes,
)
from offrld.importers.lerobot import DERIVED, ENDS, REWARDS

FPS = 30  # if the data do not state it
DATA_BYTES = 100 << 20  # a data file that exceeds this size gets no further episode
FILES_PER_CHUNK = 1000
MAX_DIMENSIONS = 5  # LeRobot's limit for a row
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def write(export: Export) -> None:
    """Write ``meta/`` and ``data/``.

    Frames per second, tasks, robot and names of joints are those of the source. Without them it is 30 frames per second, and the task is
    the name of the environment.
    """
    store = export.store
    pa, parquet = arrow.need("pyarrow", "'lerobot'"), arrow.need("pyarrow.parquet", "'lerobot'")
    plan = _Plan(export)
    known, fields, images = plan.known, plan.fields, plan.images
    fps = known.get("fps") if isinstance(known.get("fps"), (int, float)) and known["fps"] > 0 else None
    if fps is None:
        export.message(f"the dataset does not state its steps per second: {FPS} are written")
        fps = FPS
    features = fields | {key: Field("float32" if key == "timestamp" else "int64", (1,)) for key in DERIVED}
    described = pa.schema([pa.field(key, _type(pa, each, key in images)) for key, each in features.items()])
    described = described.with_metadata({b"huggingface": json.dumps({"info": {"features": _hugging(features, images)}}).encode()})
    data = _DataFiles(export.path, parquet, described)
    index = _EpisodesFile(export.path, pa, parquet)
    total: dict[str, dict[str, np.ndarray]] = {}
    tasks: dict[str, int] = {}
    left_out: set[str] = set()
    row = 0
    try:
        for number, episode in enumerate(store.episodes):
            steps, metadata = episode.steps, store.episode_metadata(number)
            left_out |= metadata.keys() - {"tasks"}
            named = metadata.get("tasks")
            named = [str(each) for each in named] if isinstance(named, list) and named else [str(store.metadata.get("env_id") or "task")]
            for each in named:
                tasks.setdefault(each, len(tasks))
            columns = plan.rows(episode) | {
                "timestamp": np.arange(steps) / fps,
                "frame_index": np.arange(steps),
                "episode_index": np.full(steps, number),
                "index": np.arange(row, row + steps),
                "task_index": np.full(steps, tasks[named[0]]),
            }
            arrays = [_array(pa, columns[key], features[key], described.field(key).type, key in images) for key in features]
            chunk, file = data.write(pa.Table.from_arrays(arrays, schema=described))
            statistics = {key: _statistics(np.asarray(columns[key], features[key].dtype), key in images) for key in features}
            total = {key: _joined(total[key], each) if total else each for key, each in statistics.items()}
            index.write(
                {
                    "episode_index": number,
                    "tasks": named,
                    "length": steps,
                    "data/chunk_index": chunk,
                    "data/file_index": file,
                    "dataset_from_index": row,
                    "dataset_to_index": row + steps,
                    **{f"stats/{key}/{name}": value.tolist() for key, each in statistics.items() for name, value in each.items()},
                    "meta/episodes/chunk_index": 0,
                    "meta/episodes/file_index": 0,
                }
            )
            row += steps
            export.progress(number + 1, len(store))
    finally:
        try:
            data.close()
        finally:
            index.close()
    meta = export.path / "meta"
    parquet.write_table(_tasks(pa, tasks), meta / "tasks.parquet")
    shown = {key: {name: value.tolist() for name, value in each.items()} for key, each in total.items()}
    (meta / "stats.json").write_text(json.dumps(shown, indent=4))
    (meta / "info.json").write_text(
        json.dumps(
            {
                "codebase_version": "v3.0",
                "robot_type": known.get("robot_type"),
                "total_episodes": len(store),
                "total_frames": row,
                "total_tasks": len(tasks),
                "chunks_size": FILES_PER_CHUNK,
                "data_files_size_in_mb": DATA_BYTES >> 20,
                "video_files_size_in_mb": 200,
                "fps": fps,
                "splits": {"train": f"0:{len(store)}"},
                "data_path": DATA_PATH,
                "video_path": None,
                "features": {key: _feature(each, key in images, plan.names(key, each)) for key, each in features.items()},
            },
            indent=4,
        )
    )
    (meta / f"{NAME}.json").write_text(json.dumps(record(store, plan.keys)))
    say_left_out(export, left_out, "of an episode's metadata LeRobot keeps only the tasks")
    _say(export)


class _Plan:
    """Which features are written, and their rows.

    Attributes:
        known: the ``info.json`` that the data came with, or {}.
        fields: every feature except those that follow from the position of a row (`DERIVED`).
        images: the features that are written as images.
        keys: the schema's columns -> the features that hold them.
    """

    def __init__(self, export: Export) -> None:
        store, schema = export.store, export.store.schema
        self.known = source_attributes(store, "lerobot")
        features = self.known.get("features")
        self._features: dict[str, Any] = features if isinstance(features, dict) else {}
        action = one_action(export, "lerobot")
        observed = named_observations(schema.observation)
        self._observation = {name: _name(name, each) for name, each in observed.items()}
        self._extra = free_names(export, schema.extra, _taken)
        self._reward = next((key for key in REWARDS if key in self._features), REWARDS[0])
        self._ends = self._written_ends(store)
        fields = {self._observation[name]: each for name, each in observed.items()}
        self.images = {key for key, each in fields.items() if channels_last(each)}
        fields["action"] = Field(action.dtype, action_shape(action))
        if self._reward in self._features or not self._features or any(each.reward.any() for each in store.episodes):
            fields[self._reward] = Field(schema.reward.dtype)
        fields |= {key: Field("bool") for key in self._ends}
        fields |= {self._extra[name]: each for name, each in schema.extra.items()}
        self.fields = {key: Field(each.dtype, each.shape or (1,)) for key, each in fields.items()}
        for key, each in self.fields.items():
            if len(each.shape) > MAX_DIMENSIONS and key not in self.images:
                raise InvalidInput(f"{key!r} has rows of shape {each.shape}", hint=f"LeRobot takes at most {MAX_DIMENSIONS} dimensions")
        self.keys = {f"observation.{name}" if name else "observation": key for name, key in self._observation.items()}
        self.keys |= {f"extra.{name}": key for name, key in self._extra.items()}
        if list(self._observation.values()) == ["observation.state"] and "" not in self._observation:
            export.message("LeRobot cannot mark a single named observation: other readers see 'observation.state'")

    def _written_ends(self, store: EpisodeStore) -> list[str]:
        """Return the flags of ends to write: those of the source, and ``next.terminated`` if an import would otherwise read a wrong end."""
        if not self._features:
            return ["next.done", "next.terminated"]
        ends = [key for key in ENDS if key in self._features]
        if "next.terminated" not in ends:
            success = "next.success" in self._features
            ended = (
                bool(np.any(each.extra["next.success"][-1:])) if success and "next.success" in each.extra else False
                for each in store.episodes
            )
            if any(each.terminated != end for each, end in zip(store.episodes, ended, strict=True)):
                ends.append("next.terminated")
        return ends

    def rows(self, episode: Episode) -> dict[str, np.ndarray]:
        """Return the rows of every feature, ``[T, ...]`` each."""
        steps = episode.steps
        last = np.arange(1, steps + 1) == steps
        flags = {"next.done": last, "next.terminated": last & episode.terminated, "next.truncated": last & (not episode.terminated)}
        rows = {self._observation[name]: each[:steps] for name, each in named_observations(episode.observation).items()}
        rows |= {"action": episode.action, self._reward: episode.reward, **flags}
        rows |= {self._extra[name]: each for name, each in episode.extra.items()}
        return {key: rows[key] for key in self.fields}

    def names(self, key: str, field: Field) -> Any:
        """Return the source's names of the parts of a row (joints, coordinates), or None if it has none."""
        feature = self._features.get(key)
        if not isinstance(feature, dict) or feature.get("shape") != list(field.shape) or feature.get("dtype") != field.dtype.name:
            return None
        return feature.get("names")


def _taken(name: str) -> bool:
    """Return whether LeRobot uses a name itself. Its policies treat every name that starts with ``action`` or ``observation`` as such."""
    return name in (*DERIVED, *REWARDS, *ENDS, "task") or name.startswith(("action", "observation"))


def _say(export: Export) -> None:
    flags = export.store.episode_table["flags"]
    kept, lost = int((flags & 2 == 0).sum()), int((flags & 3 == 0).sum())
    if kept:
        export.message(
            f"LeRobot keeps no final observations: those of {kept} episodes are left out, "
            f"and with them the last transition of {lost} truncated ones"
        )


def _name(name: str, field: Field) -> str:
    """Return the feature of an observation field; a single unnamed one gets LeRobot's usual name."""
    if name:
        return f"observation.{name}"
    return "observation.image" if channels_last(field) else "observation.state"


def _feature(field: Field, image: bool, names: Any) -> dict[str, Any]:
    if image:
        return {"dtype": "image", "shape": [*field.shape[1:], field.shape[0]], "names": ["height", "width", "channels"]}
    return {"dtype": field.dtype.name, "shape": list(field.shape), "names": names}


def _type(pa: Any, field: Field, image: bool) -> Any:
    """Return the Arrow type of a feature: a number, a list of fixed length for a vector, a list of lists for a matrix."""
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
    """Encode an image ``[C, H, W]`` without loss."""
    image = arrow.need("PIL.Image", "'lerobot'")
    out = io.BytesIO()
    image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, -1))).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _hugging(features: dict[str, Field], images: set[str]) -> dict[str, Any]:
    """Describe the features as the library ``datasets`` records them in a Parquet file."""
    described: dict[str, Any] = {}
    for key, field in features.items():
        if key in images:
            described[key] = {"_type": "Image"}
            continue
        value: dict[str, Any] = {"dtype": field.dtype.name, "_type": "Value"}
        for size in reversed(field.shape if field.shape != (1,) else ()):
            value = {"feature": value, "length": size, "_type": "List"}
        described[key] = value
    return described


def _tasks(pa: Any, tasks: dict[str, int]) -> Any:
    """Return a table of tasks. Their names are the index, in the metadata that pandas writes."""
    table = pa.table({"task_index": pa.array(list(tasks.values()), pa.int64()), "__index_level_0__": pa.array(list(tasks), pa.string())})
    column = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    index = {"pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    described = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "pandas_version": "2.2.0",
        "attributes": {},
        "columns": [
            {"name": "task_index", "field_name": "task_index", **column},
            {"name": None, "field_name": "__index_level_0__", **index},
        ],
    }
    return table.replace_schema_metadata({b"pandas": json.dumps(described).encode()})


class _DataFiles:
    """The data files; a new one starts when the last has reached `DATA_BYTES`."""

    def __init__(self, root: Path, parquet: Any, schema: Any) -> None:
        self._root, self._parquet, self._schema = root, parquet, schema
        self._number = -1
        self._sink: BinaryIO | None = None
        self._writer: Any = None

    def write(self, table: Any) -> tuple[int, int]:
        """Write one row group. Returns the indices of chunk and file."""
        if self._sink is None or self._sink.tell() > DATA_BYTES:
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


class _EpisodesFile:
    """``meta/episodes``: one row per episode, with its statistics in the columns that LeRobot writes."""

    BLOCK = 100  # rows per write

    def __init__(self, root: Path, pa: Any, parquet: Any) -> None:
        self._pa, self._parquet = pa, parquet
        self._path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        self._path.parent.mkdir(parents=True)
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == self.BLOCK:
            self._flush()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        table = self._pa.Table.from_pylist(rows, None if self._writer is None else self._writer.schema)
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        try:
            self._flush()
        finally:
            if self._writer is not None:
                self._writer.close()


QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def _statistics(rows: np.ndarray, image: bool) -> dict[str, np.ndarray]:
    """Compute LeRobot's statistics of an episode, for each entry of the last dimension.

    For images they are per channel, as LeRobot reads them (three channels in [0, 1]), over every 16th frame.
    """
    count = len(rows)
    if image:
        rows = rows[::16, :3]
        count = len(rows)
        rows = np.moveaxis(np.broadcast_to(rows, (count, 3, *rows.shape[2:])), 1, -1).reshape(-1, 3) / 255.0
    else:
        rows = rows.reshape(-1, rows.shape[-1] if rows.ndim > 1 else 1)
    wide = rows.astype(np.float64)
    summary = {"min": rows.min(0), "max": rows.max(0), "mean": wide.mean(0), "std": wide.std(0)}
    if not image and rows.dtype.kind == "f":
        summary |= {"min": wide.min(0), "max": wide.max(0)}
    elif rows.dtype == np.uint64:  # LeRobot writes int64
        summary |= {key: np.minimum(summary[key], np.iinfo(np.int64).max).astype(np.int64) for key in ("min", "max")}
    quantiles = dict(zip(QUANTILES, np.quantile(wide, list(QUANTILES.values()), axis=0), strict=True))
    shaped = {key: value.reshape(-1, 1, 1) if image else value for key, value in summary.items()}
    return shaped | {"count": np.array([count])} | {key: each.reshape(-1, 1, 1) if image else each for key, each in quantiles.items()}


def _joined(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join the statistics of two sets of rows. Quantiles become their weighted mean, as in LeRobot."""
    count = left["count"] + right["count"]
    share = {"left": left["count"] / count, "right": right["count"] / count}
    mean = left["mean"] * share["left"] + right["mean"] * share["right"]
    square = sum((each["std"] ** 2 + (each["mean"] - mean) ** 2) * share[side] for side, each in (("left", left), ("right", right)))
    return {
        "min": np.minimum(left["min"], right["min"]),
        "max": np.maximum(left["max"], right["max"]),
        "mean": mean,
        "std": np.sqrt(square),
        "count": count,
        **{key: left[key] * share["left"] + right[key] * share["right"] for key in QUANTILES},
    }
