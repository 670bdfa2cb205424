"""Export as ``.npz`` with the keys of D4RL; an import restores the dataset without loss. Bounds and ``env_id`` become small arrays."""

from __future__ import annotations

import zipfile

import numpy as np

from offrl_store.disk import reserve
from offrld.importers.exporting import Export
from offrld.importers.flat_export import declared, flat_columns, joined


def write(export: Export) -> None:
    """Write one file. Reads the episodes once per array."""
    store, progress, columns, count = export.store, export.progress, flat_columns(export.store), len(export.store)
    with zipfile.ZipFile(export.path, "w", zipfile.ZIP_DEFLATED if export.compress else zipfile.ZIP_STORED) as archive:
        for done, column in enumerate(columns, start=1):
            with archive.open(f"{column.key}.npy", "w", force_zip64=True) as member:
                header = {
                    "descr": np.lib.format.dtype_to_descr(column.field.dtype),
                    "fortran_order": False,
                    "shape": (store.step_count, *column.field.shape),
                }
                np.lib.format.write_array_header_1_0(member, header)
                for block in joined(column, count):
                    reserve(block.nbytes)
                    member.write(np.ascontiguousarray(block).data.cast("B"))
            progress(count * done // len(columns), count)
        for key, value in declared(store).items():
            with archive.open(f"{key}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
