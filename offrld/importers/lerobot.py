"""Import LeRobot: a folder of codebase version v3.0 with ``meta/``, ``data/`` and ``videos/``, read with pyarrow, Pillow and av alone.

``meta/info.json`` lists the features, ``meta/episodes/**.parquet`` the place of each episode in the data files and videos, ``meta/tasks``
the tasks. ``observation.NAME`` features become the fields of the observation (a single one becomes the observation itself), with images and
videos channel first. The reward is ``next.reward`` or ``reward``; without either it is zero. Other numbers are kept with each step, the
tasks with each episode. There are no final observations.

``next.done`` does not distinguish termination from truncation. An episode counts as truncated unless ``next.terminated`` or
``next.success`` is set at its end, or the option ``done`` states that it terminated.
"""

from __future__ import annotations

import contextlib
import math
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store.errors import EmptyStore, InvalidInput
from offrl_store.schema import DTYPES
from offrld.importers import arrow, hdf5
from offrld.importers.columns import Column
from offrld.importers.described import NAME as MARK
from offrld.importers.described import Described, restored
from offrld.importers.episodic import Recording, episodic_source
from offrld.importers.frames import MODES, EncodedImages, VideoFrames, picture_dtype
from offrld.importers.reading import read_json
from offrld.importers.source import BadEpisodes, Format, Source, field_names, named_keys

NEEDS = "a folder with meta/info.json, meta/episodes/ and data/ of LeRobot v3.0"

DERIVED = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # features that follow from the position of a row
REWARDS = ("next.reward", "reward")
ENDS = ("next.done", "next.terminated", "next.truncated")


def detect(path: Path) -> bool:
    return path.is_dir() and (path / "meta" / "info.json").is_file()


def open_folder(path: Path, bad: BadEpisodes, *, done: Any = "truncated", drop: Any = ()) -> Source:
    """Open a dataset. Raises `InvalidInput` if the folder is not a dataset of version 3 or is damaged."""
    name = path.resolve().name
    if done not in ("truncated", "terminated"):
        raise InvalidInput(f"done is {done!r}", hint="pass the meaning of an episode's end: truncated or terminated")
    arrow.need("pyarrow", name)
    info = _info(path, name)
    left_out = named_keys("drop", drop, info.get("features") or {}, name)
    features = {key: each for key, each in _features(info, name).items() if key not in left_out}
    episodes = _episodes(path, name)
    described = Described.read(path / "meta" / f"{MARK}.json")
    observed = {key: each for key, each in features.items() if key.startswith("observation.") or key == "observation"}
    if not observed or "action" not in features:
        missing = "action" if observed else "observation.NAME"
        raise InvalidInput(f"{name} has no feature {missing!r} (it has {hdf5.listed(features)})", hint=f"needed: {NEEDS}")
    messages: list[str] = []
    reward = next((key for key in REWARDS if key in features), None)
    if reward is None:
        messages.append("the dataset has no rewards: every step gets 0")
    if "next.terminated" not in features and done == "truncated":
        messages.append(
            "next.done does not say whether the task ended: episodes count as truncated unless next.success is set at their end"
        )
    used = {*observed, "action", *REWARDS, *ENDS, *DERIVED}
    extra = {key: each for key, each in features.items() if key not in used and each.dtype in DTYPES}
    left_out = sorted({*left_out, *(key for key in features if key not in used and key not in extra)})
    if left_out:
        messages.append(f"not imported: {hdf5.listed(left_out)}")
    names = field_names((key.partition(".")[2] or "observation" for key in observed), messages, "observation field")
    extras = field_names(extra, messages, "extra field")
    with ExitStack() as resources:
        reader = _Reader(path, name, info, features, episodes)
        resources.callback(reader.close)
        reader.look_at_pictures()
        single = len(observed) == 1

        def recording(number: int) -> Recording | None:
            steps = reader.go(number)
            if not steps:
                return None
            columns, kept = {key: reader.column(key) for key in observed}, {key: reader.column(key) for key in extra}
            fields = {names[key.partition(".")[2] or "observation"]: column for key, column in columns.items()}
            rewards = reader.column(reward) if reward else Column(name, "reward", np.zeros(steps, np.float32))
            plain = Recording(
                next(iter(fields.values())) if single else fields,
                reader.column("action"),
                rewards,
                [(steps, done == "terminated" or reader.ended())],
                {extras[key]: column for key, column in kept.items()},
                reader.metadata(),
            )
            return restored(described, plain, columns, kept)

        attributes = hdf5.plain({key: value for key, value in info.items() if key not in ("splits", "data_path", "video_path")})
        source = episodic_source(
            recording,
            len(episodes),
            bad,
            file=name,
            format="lerobot",
            env_id=described.env_id if described else None,
            space=described.space if described else None,
            attributes=attributes,
            messages=messages,
            version=str(info["codebase_version"]),
        )
        if reader.reordered:
            messages.append(f"the frames of {reader.reordered} episodes are sorted by their frame_index")
        source.resources = resources.pop_all()
        return source


class Feature:
    """A feature of ``info.json``: its dtype (``image`` and ``video`` count as dtypes) and the shape of a row, with images channel first."""

    def __init__(self, key: str, described: Any, file: str) -> None:
        shape = described.get("shape") if isinstance(described, dict) else None
        if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
            raise InvalidInput(f"{file}: meta/info.json gives {key!r} no shape", hint="the dataset is damaged; copy it again")
        self.dtype, names = str(described.get("dtype")), described.get("names") or []
        self.shape = tuple(shape)
        self.pixels = np.dtype(np.uint8)  # dtype of an image's pixels
        inner = described.get("info") if isinstance(described.get("info"), dict) else {}
        self.depth = any(bool(each) for key, each in inner.items() if str(key).endswith("is_depth_map"))
        if self.picture:
            first = isinstance(names, list) and len(names) == 3 and str(names[0]).startswith("channel")
            if len(shape) != 3 or (shape[0] if first else shape[2]) not in MODES:
                raise InvalidInput(f"{file}: {key!r} are pictures of the shape {shape}", hint="[H, W, C] with 1, 3 or 4 channels is read")
            self.shape = self.shape if first else (shape[2], *shape[:2])

    @property
    def picture(self) -> bool:
        return self.dtype in ("image", "video")


class _Reader:
    """Moves from episode to episode and reads columns on demand."""

    def __init__(self, root: Path, name: str, info: dict[str, Any], features: dict[str, Feature], episodes: list[dict[str, Any]]) -> None:
        self._root, self._name, self._info, self._features, self._episodes = root, name, info, features, episodes
        self._fps = float(info.get("fps") or 0)
        bases: dict[tuple[int, int], int] = {}  # data file -> index of its first row in the dataset
        for each in episodes:
            key = (each["data/chunk_index"], each["data/file_index"])
            bases[key] = min(bases.get(key, each["dataset_from_index"]), each["dataset_from_index"])
        self._bases = bases
        self._data: _DataFile | None = None
        self._videos = ExitStack()
        self._order: np.ndarray | None = None  # rows of the episode in order of time; None if the file has that order
        self._reordered: set[int] = set()

    @property
    def reordered(self) -> int:
        """Number of episodes so far whose rows are not in order of time."""
        return len(self._reordered)

    @property
    def _open_data(self) -> _DataFile:
        """The data file of the current episode, which `go` opens."""
        if self._data is None:
            raise RuntimeError("go() comes first")
        return self._data

    def look_at_pictures(self) -> None:
        """Set the dtype of each image feature from its first image: uint8 or 16-bit distances.

        Raises `InvalidInput` for depth in a video.
        """
        for key, feature in self._features.items():
            if feature.dtype == "video" and feature.depth:
                raise InvalidInput(
                    f"{self._name}: {key!r} is depth in a video, which cannot hold exact distances",
                    hint=f"leave it out (--option drop={key}), or record depth as images",
                )
            if feature.dtype == "video" and feature.shape[0] != 3:
                raise InvalidInput(f"{self._name}: {key!r} is a video of {feature.shape[0]} channels", hint="videos of 3 channels are read")
        number = next((i for i, each in enumerate(self._episodes) if each["length"]), None)
        pictures = [key for key, feature in self._features.items() if feature.dtype == "image"]
        if number is None or not pictures:
            return
        with contextlib.suppress(InvalidInput):  # the import itself reports a damaged episode
            self.go(number)
            for key in pictures:
                first = self._open_data.images(key, self._start, self._start + 1, self._file)[0]
                self._features[key].pixels = picture_dtype(first, self._features[key].shape[0], self._file, key)

    def close(self) -> None:
        self._videos.close()
        if self._data is not None:
            self._data.close()

    def go(self, number: int) -> int:
        """Go to an episode. Returns its number of steps."""
        self._videos.close()
        each = self._episodes[number]
        chunk, index, length = each["data/chunk_index"], each["data/file_index"], each["length"]
        self._file = f"{self._name}, episode {each['episode_index']}"
        path = self._path("data_path", chunk, index)
        if self._data is None or self._data.path != path:
            if self._data is not None:
                self._data.close()
            self._data = None  # in case the next one cannot be opened
            self._data = _DataFile(path, self._name)
        data = self._data
        self._start, self._steps, self._episode = each["dataset_from_index"] - self._bases[chunk, index], length, each
        if length < 1:
            return 0
        if each["dataset_to_index"] - each["dataset_from_index"] != length or self._start + length > data.rows:
            raise InvalidInput(
                f"{self._file} has {length} rows from {self._start} on, {path.name} has {data.rows}",
                hint="the dataset is incomplete; copy it again",
            )
        ids = data.read("episode_index", self._start, self._start + length, self._file)
        wrong = np.flatnonzero(ids.reshape(-1) != each["episode_index"])
        if len(wrong):
            raise InvalidInput(
                f"{self._file}: row {int(wrong[0])} is one of episode {ids.reshape(-1)[wrong[0]]}",
                hint="the dataset is damaged; copy it again",
            )
        self._order = self._frame_order(number, length)
        return length

    def _frame_order(self, number: int, length: int) -> np.ndarray | None:
        """Return the order of the episode's rows by time, or None if the file has that order. Raises `InvalidInput` for a missing frame."""
        if "frame_index" not in self._features:
            return None
        frames = self._open_data.read("frame_index", self._start, self._start + length, self._file).reshape(-1)
        if np.array_equal(frames, np.arange(length)):
            return None
        order = np.argsort(frames, kind="stable")
        wrong = np.flatnonzero(frames[order] != np.arange(length))
        if len(wrong):
            raise InvalidInput(
                f"{self._file}: frame_index lacks {int(wrong[0])} of {length} frames", hint="the dataset is damaged; copy it again"
            )
        self._reordered.add(number)
        return order

    def column(self, key: str) -> Column:
        """Return the rows of a feature in order of time."""
        column = self._column(key)
        if self._order is None or self._features[key].dtype == "video":  # videos are in order of time
            return column
        return Column(column.file, key, column.read(0, column.rows)[self._order])

    def _column(self, key: str) -> Column:
        feature, file, start = self._features[key], self._file, self._start
        data, steps = self._open_data, self._steps
        shape = (steps, *feature.shape)
        if feature.dtype == "image":
            images = lambda low, high: data.images(key, start + low, start + high, file)  # noqa: E731
            return Column(file, key, EncodedImages(images, shape, file, key, dtype=feature.pixels))
        if feature.dtype == "video":
            each, prefix = self._episode, f"videos/{key}"
            if any(each.get(f"{prefix}/{part}") is None for part in ("chunk_index", "file_index", "from_timestamp")) or not self._fps:
                raise InvalidInput(f"{file}: meta/episodes does not say where the video of {key!r} is", hint="copy the dataset again")
            path = self._path("video_path", each[f"{prefix}/chunk_index"], each[f"{prefix}/file_index"], key)
            frames = VideoFrames(path, shape, float(each[f"{prefix}/from_timestamp"]), self._fps, file, key)
            self._videos.callback(frames.close)
            return Column(file, key, frames)
        if feature.dtype not in DTYPES:
            raise InvalidInput(f"{file}: {key!r} holds {feature.dtype}, not numbers", hint="pass numbers")
        return Column(file, key, _Numbers(data, key, start, shape, np.dtype(feature.dtype), file))

    def ended(self) -> bool:
        """Return whether the task ended with the episode."""
        key = next((key for key in ("next.terminated", "next.success") if key in self._features), None)
        return key is not None and bool(np.any(self.column(key).read(self._steps - 1, self._steps)))

    def metadata(self) -> dict[str, Any] | None:
        tasks = self._episode.get("tasks")
        return {"tasks": [str(each) for each in tasks]} if tasks else None

    def _path(self, key: str, chunk: int, index: int, video: str = "") -> Path:
        """Fill in the template of a path, which may hold only these three fields and may not lead out of the folder.

        Raises `InvalidInput`.
        """
        template = self._info.get(key)
        values = {"chunk_index": chunk, "file_index": index, "video_key": video}

        def fill(match: re.Match[str]) -> str:
            return str(values[match[1]]).zfill(int(match[2] or 0))

        path = re.sub(r"\{(chunk_index|file_index|video_key)(?::0(\d)d)?\}", fill, template) if isinstance(template, str) else ""
        if not path or "{" in path or Path(path).is_absolute() or ".." in Path(path).parts:
            raise InvalidInput(f"{self._name}: meta/info.json has the {key} {template!r}", hint="the dataset is damaged; copy it again")
        if not (self._root / path).is_file():
            raise InvalidInput(f"{self._name} holds no {path}", hint="the dataset is incomplete; copy it again")
        return self._root / path


class _DataFile:
    """A Parquet file that is read by row group; memory keeps the last group of each column."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self._pa, self._file = arrow.need("pyarrow", name), arrow.open_parquet(path, f"{name}, {path.name}")
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._stops = np.cumsum(counts, dtype=np.int64)
        self.rows = int(self._stops[-1]) if counts else 0
        self._groups: dict[str, tuple[int, Any]] = {}  # column -> its last row group

    def close(self) -> None:
        self._file.close()

    def array(self, key: str, start: int, stop: int, file: str) -> Any:
        """Return rows of a column as an Arrow array."""
        parts = []
        group = int(np.searchsorted(self._stops, start, side="right"))
        while start < stop:
            first = int(self._stops[group - 1]) if group else 0
            end = min(stop, int(self._stops[group]))
            parts.append(self._group(key, group, file).slice(start - first, end - start))
            start, group = end, group + 1
        return self._pa.chunked_array([chunk for part in parts for chunk in part.chunks])

    def _group(self, key: str, group: int, file: str) -> Any:
        if self._groups.get(key, (-1, None))[0] != group:
            try:
                self._groups[key] = (group, self._file.read_row_group(group, columns=[key], use_threads=False)[key])
            except (OSError, KeyError, self._pa.ArrowException) as error:
                raise InvalidInput(
                    f"{file}: {key!r} cannot be read: {arrow.line(error)}", hint="the file is damaged or cut short; copy it again"
                ) from None
        return self._groups[key][1]

    def read(self, key: str, start: int, stop: int, file: str) -> np.ndarray:
        return arrow.to_numpy(self.array(key, start, stop, file), file, key)

    def images(self, key: str, start: int, stop: int, file: str) -> list[bytes]:
        rows = self.array(key, start, stop, file).to_pylist()
        return [row.get("bytes") or b"" if isinstance(row, dict) else row or b"" for row in rows]


class _Numbers:
    """Rows of a feature of numbers, as the data of a column."""

    def __init__(self, data: _DataFile, key: str, start: int, shape: tuple[int, ...], dtype: np.dtype, file: str) -> None:
        self._data, self._key, self._start, self._file = data, key, start, file
        single = shape[1:] == (1,) and key not in ("action",) and not key.startswith("observation")
        self.shape, self.dtype = (shape[:1] if single else shape), dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        block = self._data.read(self._key, self._start + rows.start, self._start + rows.stop, self._file)
        shape = (len(block), *self.shape[1:])
        if math.prod(block.shape) != math.prod(shape):
            raise InvalidInput(
                f"{self._file}: {self._key!r} has rows of {block.shape[1:]}, meta/info.json says {self.shape[1:]}",
                hint="the dataset is damaged; copy it again",
            )
        return block.reshape(shape).astype(self.dtype, copy=False)


def _info(path: Path, name: str) -> dict[str, Any]:
    info = read_json(path / "meta" / "info.json", f"{name}: meta/info.json")
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if not str(version).startswith("v3"):
        raise InvalidInput(
            f"{name} has LeRobot's version {version}; expected v3", hint="convert it with LeRobot's convert_dataset_v21_to_v30"
        )
    return info


def _features(info: dict[str, Any], name: str) -> dict[str, Feature]:
    features = info.get("features")
    if not isinstance(features, dict):
        raise InvalidInput(f"{name}: meta/info.json has no features", hint=f"needed: {NEEDS}")
    return {key: Feature(key, described, name) for key, described in features.items()}


def _episodes(path: Path, name: str) -> list[dict[str, Any]]:
    """Read the rows of meta/episodes in order of the episodes, without the statistics."""
    parquet = arrow.need("pyarrow.parquet", name)
    needed = ("episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
    rows: list[dict[str, Any]] = []
    for file in sorted((path / "meta" / "episodes").glob("**/*.parquet")):
        try:
            columns = [each for each in parquet.read_schema(file).names if not each.startswith("stats/")]
        except (OSError, arrow.need("pyarrow", name).ArrowException) as error:
            raise InvalidInput(f"{name}, {file.name} cannot be read: {arrow.line(error)}", hint="it is damaged; copy it again") from None
        missing = [each for each in needed if each not in columns]
        if missing:
            raise InvalidInput(f"{name}: meta/episodes has no column {missing[0]!r}", hint=f"needed: {NEEDS}")
        rows += arrow.read_table(file, f"{name}, meta/episodes/{file.name}", columns).to_pylist()
    if not rows:
        raise EmptyStore(f"{name} holds no episodes", hint="record at least one, and finish the dataset (finalize)")
    for row in rows:
        if not all(isinstance(row[key], int) and row[key] >= 0 for key in needed):
            raise InvalidInput(f"{name}: meta/episodes is incomplete for episode {row['episode_index']}", hint="copy the dataset again")
    return sorted(rows, key=lambda row: row["episode_index"])


FORMAT = Format(
    "lerobot",
    "folder of a LeRobot dataset, version v3",
    NEEDS,
    detect,
    open_folder,
    {"done": "meaning of an episode's end if the data do not state it: truncated or terminated", "drop": "features to leave out"},
)
