"""Exporting as a store of this project, which an import reads back without loss."""

from __future__ import annotations

from offrld.importers import native
from offrld.importers.exporting import Export
from offrld.importers.ingest import import_into


def write(export: Export) -> None:
    """Append the episodes of the store's snapshot to a new store. Each is checked, and the source may grow meanwhile."""
    import_into(native.open_store(export.store, export.store.path.name), export.path, progress=export.progress)
