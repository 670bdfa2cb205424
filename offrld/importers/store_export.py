"""Export as a store of this project; an import of it restores the dataset without loss."""

from __future__ import annotations

from offrld.importers import native
from offrld.importers.exporting import Export
from offrld.importers.ingest import import_into


def write(export: Export) -> None:
    """Append the episodes of the store's snapshot to a new store. Each episode is checked; the source may grow at the same time."""
    import_into(native.open_store(export.store, export.store.path.name), export.path, progress=export.progress)
