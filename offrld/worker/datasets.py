"""What a worker tells about a dataset, and where the bytes of an import come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl.job import ImportSpec
from offrl_store import EpisodeStore, Field
from offrld import import_roots
from offrld.plain import json_safe
from offrld.worker.runfolder import StateFolder


def dataset_info(name: str, store: EpisodeStore) -> dict[str, Any]:
    """The fields of the wire's DatasetInfo but for ``pinned_by``."""
    returns = np.asarray(store.returns, np.float64)
    statistics = {"mean": returns.mean(), "std": returns.std(), "min": returns.min(), "max": returns.max()} if len(returns) else {}
    info = {
        "name": name,
        "episodes": len(store),
        "transitions": int(store.transition_count),
        "bytes": int(store.nbytes),
        "fields": {column.name: _describe(column.role, column.field) for column in store.schema.columns},
        "snapshot": str(store.snapshot()),
        "returns": {key: float(value) for key, value in statistics.items()},
        "metadata": dict(store.metadata),
    }
    return json_safe(info)


def _describe(role: str, field: Field) -> dict[str, Any]:
    described: dict[str, Any] = {"role": role, "dtype": field.dtype.name, "shape": list(field.shape)}
    if field.discrete:
        return described | {"n": field.n}
    return described | {key: getattr(field, key) for key in ("low", "high") if getattr(field, key) is not None}


def source_path(spec: ImportSpec, state: StateFolder, roots: tuple[Path, ...]) -> Path:
    """The file or folder that an import reads.

    Raises `NotAllowed` for a path outside the import roots or through a symbolic link, `InvalidInput` where nothing is there.
    """
    if spec.upload is not None:
        files = state.uploads / spec.upload / "files"
        entries = sorted(files.iterdir()) if files.is_dir() else []
        if not entries:
            raise InvalidInput(f"upload {spec.upload!r} is not there any more", hint="upload the data again: `offrl datasets add`")
        return entries[0] if len(entries) == 1 else files
    assert spec.path is not None
    path = import_roots.checked(spec.path, roots)
    if path.is_dir():
        import_roots.check_tree(path)
    return path
