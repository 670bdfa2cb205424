"""Importers: one file per dataset format, from its content to a stream of episodes and into a store; and the way back."""

from .dataset_export import EXPORTS, FOLDERS, dump_dataset, export_dataset
from .ingest import import_into
from .registry import FORMATS, detect, open_source
from .source import Format, Skipped, Source

__all__ = [
    "EXPORTS", "FOLDERS", "FORMATS", "Format", "Skipped", "Source", "detect", "dump_dataset", "export_dataset", "import_into",
    "open_source",
]  # fmt: skip
