"""Small operations on files of the state folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from offrl_store.disk import write_atomic
from offrld.json_safe import json_safe


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file durably (`write_atomic`); numbers that JSON cannot hold become null."""
    write_atomic(path, (json.dumps(json_safe(value), indent=1, allow_nan=False) + "\n").encode())


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it. A path that does not exist is not an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
