"""Export as flat HDF5 with the keys of D4RL. An import of the file restores the dataset without loss.

Bounds, the number of actions and ``env_id`` become attributes. Metadata of a D4RL source goes back below ``metadata/``.
"""

from __future__ import annotations

import contextlib
from typing import Any

import h5py

from offrld.importers.calm_file import CalmFile
from offrld.importers.exporting import Export, set_attributes
from offrld.importers.flat_export import declared, flat_columns, joined


def write(export: Export) -> None:
    """Write one file."""
    store, progress, columns, count = export.store, export.progress, flat_columns(export.store), len(export.store)
    options = {"compression": "gzip", "shuffle": True, "chunks": True} if export.compress else {}
    attributes = store.metadata.get("source_attributes")
    with contextlib.closing(CalmFile(export.path)) as calm, h5py.File(calm, "w") as file:
        set_attributes(file, attributes)
        set_attributes(file, declared(store))
        _set_metadata(file, "metadata", store.metadata.get("source_metadata"))
        for group in dict.fromkeys(column.key.rpartition("/")[0] for column in columns if "/" in column.key):
            file.create_group(group, track_order=True)  # fields keep their order, which is that of a network's input
        for done, column in enumerate(columns, start=1):
            dataset = file.create_dataset(column.key, (store.step_count, *column.field.shape), column.field.dtype, **options)
            start = 0
            for block in joined(column, count):
                dataset[start : start + len(block)] = block
                start += len(block)
                calm.check()
            progress(count * done // len(columns), count)
        file.close()  # flushes HDF5
        calm.check()


def _set_metadata(file: h5py.File, key: str, value: Any) -> None:
    """Write JSON values as datasets and objects as groups. Large arrays are left out: the import kept only their description."""
    if isinstance(value, dict):
        for name, each in value.items():
            _set_metadata(file, f"{key}/{name}", each)
    elif isinstance(value, (str, bool, int, float, list)) and not str(value).startswith("array of "):
        with contextlib.suppress(TypeError, ValueError):  # HDF5 cannot hold lists of different lengths
            file[key] = value
