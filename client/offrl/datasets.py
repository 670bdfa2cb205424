"""`client.datasets`: add, append, list, show, remove and export datasets; sources are paths, names, arrays or episodes."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offrl import download, named, outfile, upload, wire
from offrl.errors import Conflict, InvalidInput, OffrlError, StoreExists, Unknown
from offrl.explained import build
from offrl.export_formats import FOLDERS
from offrl.job import NAME_PATTERN, DatasetExportSpec, ImportSpec
from offrl.jobs import Job, enqueue, own_error
from offrl.session import Session

FILE_ENDINGS = (".hdf5", ".h5", ".npz", ".csv", ".parquet")
EXPORT_FORMATS = {".hdf5": "d4rl", ".h5": "d4rl", ".npz": "npz"}  # anything else: a store's folder
#: Endings of files that no exporter writes: a user who gives one does not expect a folder of that name.
_NO_EXPORTS = (".csv", ".tsv", ".parquet", ".arrow", ".feather", ".json", ".jsonl", ".zip", ".tar", ".gz", ".pkl", ".pt", ".mat")


def export_format(out: str | os.PathLike[str], format: str | None) -> str:
    """Return the format of an export: the given one, else the one that the ending of its path implies."""
    ending = Path(out).suffix.lower()
    if format is None and ending in _NO_EXPORTS:
        raise InvalidInput(
            f"cannot write {out}: a dataset is not exported as {ending}",
            hint=f"end the name with {', '.join(EXPORT_FORMATS)}, or name the format",
        )
    return format if format is not None else EXPORT_FORMATS.get(ending, "store")


Events = Any  # Callable[[wire.Event], None]


class Datasets:
    """The datasets of a daemon."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __repr__(self) -> str:
        try:
            infos = self.ls()
        except OffrlError as error:
            return f"Datasets({self._session.url!r}: {error.message})"
        names = ", ".join(info.name for info in infos[:10])
        return f"Datasets({self._session.url!r}, {len(infos)}: {names}{', ...' * (len(infos) > 10)})"

    def add(
        self,
        name: str,
        source: Any,
        format: str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        skip_bad: bool = False,
        on_daemon: bool = False,
        progress: upload.Progress | None = None,
        follow: Events = None,
    ) -> wire.DatasetInfo:
        """Upload ``source``, import it as the new dataset ``name``, and wait for the import.

        Args:
            source: the path of a file or folder; a dict of arrays (observations, actions, rewards, terminals, timeouts: one row per step);
                an iterable of `offrl_store.Episode`; or an `offrl_store.EpisodeStore`. Or a name (`offrl.named`): ``cartpole-replay``,
                ``breakout-mixed-v0``, ``hopper-medium-v2``, ``D4RL/pointmaze/umaze-v2``, which the daemon creates or fetches.
            format: one of the daemon's importers; by default detected from the content.
            options: options of the format by name (docs/datasets.md).
            skip_bad: skip bad episodes and list them in the result's ``skipped``; by default a bad episode is an error.
            on_daemon: ``source`` is a path on the daemon's machine, below one of its ``import_roots``; nothing is uploaded.
            progress: called with the bytes uploaded and their total.
            follow: called with every event of the import job.

        Raises:
            Conflict: a dataset of that name exists.
            InvalidInput: a missing or bad file; nothing is left behind.
            Unknown: the source is neither a file nor the name of a published dataset.
            DownloadFailed: the daemon could not fetch a file; the downloaded part is kept for the next attempt.
            DiskFull: the disk here or the daemon's disk is full.
        """
        how = {"format": format, "append": False, "options": dict(options or {}), "skip_bad": skip_bad}
        return self._import(name, source, how, on_daemon, progress, follow)

    def append(
        self,
        name: str,
        source: Any,
        format: str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        skip_bad: bool = False,
        on_daemon: bool = False,
        progress: upload.Progress | None = None,
        follow: Events = None,
    ) -> wire.DatasetInfo:
        """Append the episodes of ``source`` to the dataset ``name``, all or none. Arguments and errors are those of `add`."""
        how = {"format": format, "append": True, "options": dict(options or {}), "skip_bad": skip_bad}
        return self._import(name, source, how, on_daemon, progress, follow)

    def ls(self) -> list[wire.DatasetInfo]:
        """List all datasets by name. `show` returns the metadata that is too long for a list (``trimmed``)."""
        part = self._session.request(wire.ListDatasets())
        infos = part.datasets
        while part.next is not None:
            part = self._session.request(wire.ListDatasets(after=part.next))
            infos = infos + part.datasets
        return infos

    def show(self, name: str) -> wire.DatasetInfo:
        """Get one dataset: size, fields, snapshot, returns. Raises `Unknown`."""
        return self._session.request(build(wire.GetDataset, name=name))

    def rm(self, name: str) -> None:
        """Delete a dataset. Raises `Unknown`, and `Conflict` if an unfinished job uses it."""
        self._session.request(build(wire.RemoveDataset, name=name))

    def export(
        self, name: str, out: str | os.PathLike[str], format: str | None = None, *, force: bool = False, follow: Events = None
    ) -> Path:
        """Write a dataset to ``out``: ``.hdf5`` or ``.h5`` as D4RL writes it, ``.npz``, otherwise a store's folder (which must not exist).

        Args:
            out: target path. Links are followed, pipes are written into (`offrl.outfile`).
            format: one of the daemon's exporters, for any ending (docs/datasets.md).
            force: replace a file that has different content; a folder is never replaced.
            follow: called with every event of the export job.

        Raises `Unknown`, `InvalidInput` (``out`` cannot be written), `Conflict` (``out`` has different content), `DiskFull`.
        """
        out = Path(out)
        format = export_format(out, format)
        if format in FOLDERS and os.path.lexists(out):
            raise InvalidInput(f"{out} exists", hint=f"{format} is exported into a new folder; for a file end the name with .hdf5 or .npz")
        outfile.place(out)  # before the export is made
        job = enqueue(self._session, build(DatasetExportSpec, dataset=name, format=format))
        try:
            self._finish(job, follow)
            request = wire.OpenArtifact(job=job.id, kind="dataset")
            if format not in FOLDERS:
                return job.download(request, out, force=force)[0]
            with tempfile.TemporaryDirectory(prefix=f".{out.name[:100]}.", dir=out.parent) as folder:
                archive, _ = job.download(request, Path(folder) / "store.tar")
                unpacked = download.unpack(archive, Path(folder) / "store")
                inner = list(unpacked.iterdir())
                whole = inner[0] if len(inner) == 1 and inner[0].is_dir() else unpacked
                whole.rename(out)
            return out
        finally:
            with contextlib.suppress(OffrlError):
                job.rm()  # it holds a second copy of the dataset

    def resolve(self, dataset: str | os.PathLike[str]) -> str:
        """Return the name of a dataset: ``dataset`` itself, or the name of the file or folder at this path, imported if it is new."""
        if isinstance(dataset, str):
            is_name = re.fullmatch(NAME_PATTERN, dataset) is not None
            if is_name and not os.path.exists(dataset) and not dataset.endswith(FILE_ENDINGS):
                return dataset
            if is_name and self._exists(dataset):
                return dataset
            if is_name and not os.path.exists(dataset):
                raise Unknown(f"there is neither a dataset nor a file {dataset!r}", hint="see `offrl datasets ls`, or correct the path")
        elif not isinstance(dataset, os.PathLike):
            raise InvalidInput(
                f"dataset is a {type(dataset).__name__}: {dataset!r:.80}", hint="pass a dataset's name or the path of a file"
            )
        files = upload.scan(dataset)
        name = upload.content_name(files, dataset)
        if not self._exists(name):
            try:
                self._import_files(name, files, {}, None, None)
            except (Conflict, StoreExists):  # another client imports the same content now
                self._await_import(name)
                self.show(name)
        return name

    # ---------------------------------------------------------------------------------------------------------------- plumbing
    def _import(
        self, name: str, source: Any, how: dict[str, Any], on_daemon: bool, progress: upload.Progress | None, follow: Events
    ) -> wire.DatasetInfo:
        """Import or append a source. ``how``: further fields of the job's specification."""
        build(ImportSpec, dataset=name, **how)  # refuse a bad name before a gigabyte is sent
        schema = None
        if how["append"]:
            info = self.show(name)
            if not isinstance(source, str | os.PathLike | Mapping):
                schema = _schema_from(info)
        elif self._exists(name):
            raise Conflict(
                f"dataset {name!r} exists", hint=f"remove it with `offrl datasets rm {name}`, append to it, or choose another name"
            )
        if on_daemon:
            path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
            if path is None:
                raise InvalidInput(f"a path on the daemon's machine is a text, not {type(source).__name__}", hint="leave on_daemon out")
            return self._run(build(ImportSpec, dataset=name, path=path, **how), follow)
        if how["format"] is None and isinstance(source, str) and not os.path.exists(source) and named.may_be_name(source):
            try:
                named.find(source)
            except Unknown as error:
                hint = error.hint if error.hint.startswith("did you mean") else "pass the path of a file or a folder"
                raise Unknown(f"there is neither a file nor a dataset by the name of {source!r}", hint=hint) from None
            return self._run(build(ImportSpec, dataset=name, named=source, **how), follow)
        with _as_files(source, schema) as files:
            return self._import_files(name, files, how, progress, follow)

    def _import_files(
        self, name: str, files: list[upload.SourceFile], how: dict[str, Any], progress: upload.Progress | None, follow: Events
    ) -> wire.DatasetInfo:
        connection = self._session.connect()  # a separate one: other threads may use the client meanwhile
        try:
            sent = upload.deliver(connection, files, progress)
        finally:
            connection.close()
        return self._run(build(ImportSpec, dataset=name, upload=sent, **how), follow)

    def _run(self, spec: ImportSpec, follow: Events) -> wire.DatasetInfo:
        self._finish(enqueue(self._session, spec), follow)
        return self.show(spec.dataset)

    def _finish(self, job: Job, follow: Events) -> None:
        for event in job.follow():
            if follow is not None:
                follow(event)
        if (info := job.info()).state != "succeeded":
            raise own_error(info)

    def _exists(self, name: str) -> bool:
        try:
            self.show(name)
        except Unknown:
            return False
        return True

    def _await_import(self, name: str) -> None:
        for info in self._session.request(wire.ListJobs(kind="import")).jobs:
            if info.dataset == name and not info.state.ended:
                Job(self._session, info.job).wait(check=False)


@contextmanager
def _as_files(source: Any, schema: Any) -> Iterator[list[upload.SourceFile]]:
    """Yield the files of a source. Arrays and episodes are first written to a temporary file or store."""
    if isinstance(source, str | os.PathLike):
        yield upload.scan(source)
        return
    with tempfile.TemporaryDirectory(prefix="offrl-") as folder:
        if isinstance(source, Mapping):
            path = Path(folder, "arrays.npz")
            _write_arrays(path, source)
        elif hasattr(source, "episode_table") and hasattr(source, "schema"):
            path = Path(folder, "store")
            _write_episodes(path, source.episodes, source.schema)
        elif isinstance(source, Iterable) and not isinstance(source, bytes | bytearray):
            path = Path(folder, "store")
            _write_episodes(path, source, schema)
        else:
            raise InvalidInput(f"a {type(source).__name__} is not a source of data", hint="pass a path, a dict of arrays, or episodes")
        yield upload.scan(path)


def _write_arrays(path: Path, source: Mapping[str, Any]) -> None:
    import numpy as np

    from offrl_store.exact_numbers import numbers

    arrays: dict[str, Any] = {}
    for name, value in source.items():
        if not isinstance(name, str):
            raise InvalidInput(f"{name!r} is not a key of a dataset", hint="keys: observations, actions, rewards, terminals, timeouts")
        inner = {f"{name}/{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
        for key, item in inner.items():
            if key in arrays:
                raise InvalidInput(f"two arrays are called {key!r}: one by its own key, one inside {name!r}", hint="rename one of them")
            if key == "file":
                raise InvalidInput("'file' is not a key of a dataset", hint="keys: observations, actions, rewards, terminals, timeouts")
            text = isinstance(item, str) or (isinstance(item, np.ndarray) and item.ndim == 0 and item.dtype.kind == "U")
            arrays[key] = np.asarray(item) if text else numbers(item, key)  # env_id is a text
    if not arrays:
        raise InvalidInput("the dict of arrays is empty", hint="keys: observations, actions, rewards, terminals, timeouts")
    np.savez(path, **arrays)


def _write_episodes(path: Path, episodes: Iterable[Any], schema: Any) -> None:
    from offrl_store import Episode, EpisodeStore

    if schema is None:
        every = list(episodes)  # only all of them together show the number of discrete actions
        episodes, schema = every, _schema_of(every) if every else None
    writer = None
    try:
        for number, episode in enumerate(episodes):
            if not isinstance(episode, Episode):
                raise InvalidInput(f"item {number} is a {type(episode).__name__}, not an Episode", hint="pass offrl_store.Episode objects")
            if writer is None:
                writer = EpisodeStore.create(path, schema).writer()
            writer.append(episode)
        if writer is None:
            raise InvalidInput("there is no episode", hint="pass at least one")
        writer.commit()
    finally:
        if writer is not None:
            writer.close()


def _schema_of(episodes: list[Any]) -> Any:
    """Infer the schema of episodes: dtypes and shapes of the first one's arrays; float64 for lists of numbers, which it holds exactly.

    Actions that are whole numbers of shape () become choices from 0 to the highest one seen. Continuous bounds stay open: the importer
    infers them.
    """
    import numpy as np

    from offrl_store import Episode, Field, Schema
    from offrl_store.exact_numbers import numbers, untyped

    def fields(role: str, value: Any, whole: bool = False) -> Any:
        if isinstance(value, Mapping):
            return {name: fields(f"{role}.{name}", item) for name, item in value.items()}
        array = numbers(value, f"episode 0, field {role}")
        if not array.ndim:
            raise InvalidInput(f"episode 0, field {role} is {value!r:.60}, not one row per step", hint="pass an array, or a list")
        return Field("float64" if untyped(value) and array.dtype.kind in "iu" and not whole else array.dtype, array.shape[1:])

    first = episodes[0]
    if not isinstance(first, Episode):
        raise InvalidInput(f"item 0 is a {type(first).__name__}, not an Episode", hint="pass offrl_store.Episode objects")
    actions = [
        numbers(episode.action, f"episode {number}, field action")
        for number, episode in enumerate(episodes)
        if isinstance(episode, Episode) and not isinstance(episode.action, Mapping)
    ]
    whole = bool(actions) and all(array.dtype.kind in "iu" for array in actions)
    action = fields("action", first.action, whole)
    if isinstance(action, Field) and action.dtype.kind in "iu" and action.shape == ():
        action = Field(action.dtype, (), low=0, high=max(int(np.max(array, initial=0)) for array in actions))
    return Schema(fields("observation", first.observation), action, fields("reward", first.reward), fields("extra", dict(first.extra)))


def _schema_from(info: wire.DatasetInfo) -> Any:
    """Return the fields of a dataset as a schema without continuous bounds; the daemon checks appended data against them."""
    from offrl_store import Field, Schema

    roles: dict[str, Any] = {"extra": {}}
    for name, described in info.fields.items():
        role, _, key = name.partition(".")
        choices = {"low": 0, "high": described["n"] - 1} if "n" in described else {}
        field = Field(described["dtype"], tuple(described["shape"]), **choices)
        if key:
            roles.setdefault(role, {})[key] = field
        else:
            roles[role] = field
    return Schema(**roles)


__all__ = ["EXPORT_FORMATS", "Datasets", "export_format"]
