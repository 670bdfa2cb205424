"""Export a store to the formats of other libraries. The module ``NAME_export`` of this package writes the format ``NAME``."""

from __future__ import annotations

import importlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from offrl.errors import Unknown, nearest
from offrl.export_formats import FOLDERS, SUFFIXES
from offrl_store import EpisodeStore
from offrl_store.disk import disk_errors
from offrl_store.errors import DiskFull, EmptyStore, InvalidInput
from offrld.importers.exporting import Export, Progress

#: Format -> the function that writes it: ``write`` of the module NAME_export.
EXPORTS: dict[str, Callable[[Export], None]] = {
    name: importlib.import_module(f"offrld.importers.{name.replace('-', '_')}_export").write for name in SUFFIXES
}


def export_dataset(
    store: EpisodeStore,
    out_path: str | os.PathLike[str],
    format: str,
    *,
    compress: bool = False,
    progress: Progress | None = None,
    message: Callable[[str], None] | None = None,
) -> Path:
    """Export the episodes that ``store`` sees to ``out_path``, which must not exist. The result appears only when it is complete.

    Args:
        format: one of `EXPORTS`.
        compress: use gzip in HDF5 and deflate in ``.npz``. ``gen_dgrl`` and ``atari`` are always compressed; this option selects a higher
            level. ``store`` ignores it.
        progress: called with (episodes done, number of episodes). ``npz`` reads the episodes once per array.
        message: called with a line for everything that the format has no place for.

    Raises:
        Unknown: the format does not exist.
        InvalidInput: the path exists, the store is empty, or the format cannot hold its fields (several action fields).
        DiskFull: the disk is full; nothing is left at ``out_path``.
    """
    path = Path(out_path)
    if format not in EXPORTS:
        raise Unknown(f"unknown export format {format!r}", hint=nearest(format, list(EXPORTS)))
    if path.exists():
        raise InvalidInput(f"{path} already exists", hint="remove it or choose another name")
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent}", hint="make it first")
    if not len(store):
        raise EmptyStore("the dataset holds no episodes", hint="nothing was written")
    temporary = path.parent / f".{path.name}.partial-{secrets.token_hex(4)}"
    try:
        with disk_errors(path):
            EXPORTS[format](Export(store, temporary, path, compress, progress or _no_progress, message or _no_message))
            os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        if isinstance(error, DiskFull):
            raise DiskFull(f"no space left to write {path}", hint="free some space and export again; nothing was left there") from None
        raise
    return path


def dump_dataset(store: EpisodeStore, file: BinaryIO, format: str = "d3rlpy", **options: Any) -> None:
    """Export into a file that is open for writing ("wb"), as d3rlpy's ``dump`` does. Exports to a temporary folder and copies the result.

    Raises `InvalidInput` for a format that is a folder; other errors are those of `export_dataset`.
    """
    if format in FOLDERS:
        raise InvalidInput(f"{format!r} is a folder and does not go into a file", hint="export_dataset(store, path, format)")
    with tempfile.TemporaryDirectory(prefix="offrl-dump-") as folder:
        path = export_dataset(store, Path(folder) / "dump", format, **options)
        with disk_errors(Path(str(getattr(file, "name", "the file")))), open(path, "rb") as exported:
            shutil.copyfileobj(exported, file, 1 << 20)
            file.flush()


def _no_progress(done: int, total: int | None) -> None:
    """Ignore progress."""


def _no_message(line: str) -> None:
    """Ignore messages."""


__all__ = ["EXPORTS", "FOLDERS", "dump_dataset", "export_dataset"]
