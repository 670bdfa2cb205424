"""Importers and exporters: one file per dataset format and direction. An importer yields episodes; `import_into` stores them."""

from offrld.importers.bad_data import Skipped
from offrld.importers.dataset_export import EXPORTS, FOLDERS, dump_dataset, export_dataset
from offrld.importers.ingest import import_into
from offrld.importers.registry import FORMATS, detect, open_source
from offrld.importers.sb3 import from_sb3, to_sb3
from offrld.importers.source import Format, Source

__all__ = [
    "EXPORTS",
    "FOLDERS",
    "FORMATS",
    "Format",
    "Skipped",
    "Source",
    "detect",
    "dump_dataset",
    "export_dataset",
    "from_sb3",
    "import_into",
    "open_source",
    "to_sb3",
]  # fmt: skip
