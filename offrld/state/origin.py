"""The job that made a dataset, noted in the dataset's folder."""

from __future__ import annotations

import json
from pathlib import Path

from offrld.state.files import write_json

FILE = "import.json"


def write(dataset: Path, job: str) -> None:
    """Note that ``job`` made the dataset."""
    write_json(dataset / FILE, {"job": job})


def made_by(dataset: Path) -> str | None:
    """Return the job that made a dataset; None if none is noted."""
    try:
        return str(json.loads((dataset / FILE).read_bytes())["job"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
