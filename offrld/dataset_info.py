"""Describe a dataset: for the worker that made it, and for the daemon if that worker died before it could."""

from __future__ import annotations

from typing import Any

import numpy as np

from offrl_store import EpisodeStore, Field
from offrld.json_safe import json_safe


def dataset_info(name: str, store: EpisodeStore) -> dict[str, Any]:
    """Return the fields of the wire's DatasetInfo except ``pinned_by``."""
    returns = np.asarray(store.returns, np.float64)
    statistics = {"mean": returns.mean(), "std": returns.std(), "min": returns.min(), "max": returns.max()} if len(returns) else {}
    info = {
        "name": name,
        "episodes": len(store),
        "transitions": int(store.transition_count),
        "steps": int(store.step_count),
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
