"""Turn whatever in-process training accepts as a dataset into a store: a store, a part of one, a path, episodes, arrays or tensors."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offrl.errors import InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrl_store.errors import StoreNotFound
from offrl_store.store import EpisodeList
from offrl_store.temporary import create_temporary, infer_schema

_ACCEPTED = "give a store or its path, a file that can be imported, episodes, a dict of arrays, or a table"


def opened(source: Any, schema: Schema | None = None) -> tuple[EpisodeStore, np.ndarray | None]:
    """Open a dataset as a store; return the store and the numbers of the chosen episodes (None: all).

    Other sources are copied into a temporary store, whose folder is removed with the object.

    Args:
        source: an `EpisodeStore`; a part of ``store.episodes``; a store's path, or a file's that can be imported; any iterable of
            `Episode`; a dict of flat arrays (``observations``, ``actions``, ``rewards``, ``terminals``, ...); or a table of pandas,
            polars or pyarrow with a row per step.
        schema: schema for episodes; None: inferred from them, with the range of their actions as bounds.

    Raises:
        InvalidInput: the source is something else, has no episode, or has values that cannot be stored.
        StoreNotFound: the path does not exist.
    """
    if isinstance(source, EpisodeStore):
        return source, None
    if isinstance(source, EpisodeList):
        return source.store, source.numbers
    if isinstance(source, str | os.PathLike):
        return _of_path(source), None
    if isinstance(source, Mapping):
        return _imported({name: _array(value) for name, value in source.items()}), None
    if _is_table(source):
        return _imported(source), None
    if isinstance(source, Iterable) and not isinstance(source, np.ndarray | torch.Tensor | bytes):
        return store_of(source, schema), None
    raise InvalidInput(f"{type(source).__name__} is not a dataset", hint=_ACCEPTED)


def is_dataset(source: Any) -> bool:
    """Return whether `opened` accepts a source, judged by its type alone."""
    if isinstance(source, EpisodeStore | EpisodeList | str | os.PathLike | Mapping) or _is_table(source):
        return True
    return isinstance(source, Iterable) and not isinstance(source, np.ndarray | torch.Tensor | bytes)


def _is_table(source: Any) -> bool:
    """Return whether a source is a table of pandas, polars or pyarrow."""
    return hasattr(source, "__arrow_c_stream__")


def store_of(episodes: Iterable[Episode], schema: Schema | None = None) -> EpisodeStore:
    """Write episodes into a temporary store; for arguments and errors see `opened`."""
    copies = []
    for episode in episodes:
        if not isinstance(episode, Episode):
            raise InvalidInput(f"expected episodes, got {type(episode).__name__}", hint=_ACCEPTED)
        arrays = {field.name: getattr(episode, field.name) for field in dataclasses.fields(episode) if field.init}
        copies.append(Episode(**{name: _array(value) for name, value in arrays.items()}))
    if not copies:
        raise InvalidInput("there is no episode to train on", hint=_ACCEPTED)
    store = create_temporary(schema or _inferred(copies))
    with store.writer() as writer:
        for episode in copies:
            writer.append(episode)
    return store


def _inferred(episodes: list[Episode]) -> Schema:
    """Infer a schema: the fields of the first episode, with the range of all episodes' actions as bounds."""
    schema = infer_schema(episodes[0])
    if isinstance(schema.action, dict):
        return schema
    actions = np.concatenate([np.asarray(episode.action) for episode in episodes])
    low, high = actions.min(axis=0), actions.max(axis=0)
    if actions.ndim == 1 and actions.dtype.kind in "iu":
        action = Field("int64", low=0, high=int(high))
    else:
        action = Field(schema.action.dtype, schema.action.shape, low=low, high=high)
    return Schema(schema.observation, action, schema.reward, schema.extra, {**schema.metadata, "bounds": "inferred"})


def _of_path(path: str | os.PathLike[str]) -> EpisodeStore:
    try:
        return EpisodeStore.open(path)
    except StoreNotFound as error:
        if not Path(path).exists():
            raise StoreNotFound(error.message, hint=f"{error.hint}; pass an environment's id as env=") from None
    return _imported(path)


def _imported(source: Any) -> EpisodeStore:
    from offrld.importers import import_into  # loads the packages of the formats, which a store does not need

    folder = tempfile.TemporaryDirectory(prefix="offrl-store-")
    store = import_into(source, Path(folder.name, "store"))
    weakref.finalize(store, folder.cleanup)
    return store


def _array(value: Any) -> Any:
    """Return tensors as arrays, also inside dicts; anything else unchanged."""
    if isinstance(value, Mapping):
        return {name: _array(item) for name, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16, whose values float32 holds


__all__ = ["is_dataset", "opened", "store_of"]
