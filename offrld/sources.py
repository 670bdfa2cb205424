"""What in-process training takes for a dataset, as a store: a store, a part of one, a path, episodes, or arrays (tensors of torch too)."""

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

_TAKEN = "give a store or its path, a file that can be imported, episodes, a dict of arrays, or a table"


def opened(source: Any, schema: Schema | None = None) -> tuple[EpisodeStore, np.ndarray | None]:
    """A dataset as a store, and the numbers of its episodes that are meant (None: all).

    What is not a store yet is copied into a temporary one, which goes when the object does.

    Args:
        source: an `EpisodeStore`; a part of ``store.episodes``; a store's path, or a file's that can be imported; any iterable of
            `Episode`; a dict of flat arrays (``observations``, ``actions``, ``rewards``, ``terminals``, ...); or a table of pandas,
            polars or pyarrow with a row per step.
        schema: of episodes; None: what they show, with the actions' range as their bounds.

    Raises:
        InvalidInput: something else, no episode, or values that cannot be stored.
        StoreNotFound: nothing lies at the path.
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
    raise InvalidInput(f"{type(source).__name__} is not a dataset", hint=_TAKEN)


def is_dataset(source: Any) -> bool:
    """Whether `opened` takes it, seen from its type alone."""
    if isinstance(source, EpisodeStore | EpisodeList | str | os.PathLike | Mapping) or _is_table(source):
        return True
    return isinstance(source, Iterable) and not isinstance(source, np.ndarray | torch.Tensor | bytes)


def _is_table(source: Any) -> bool:
    """A table of pandas, polars or pyarrow."""
    return hasattr(source, "__arrow_c_stream__")


def store_of(episodes: Iterable[Episode], schema: Schema | None = None) -> EpisodeStore:
    """A temporary store of episodes; arguments and errors as of `opened`."""
    kept = []
    for episode in episodes:
        if not isinstance(episode, Episode):
            raise InvalidInput(f"there is {type(episode).__name__} among the episodes", hint=_TAKEN)
        arrays = {field.name: getattr(episode, field.name) for field in dataclasses.fields(episode) if field.init}
        kept.append(Episode(**{name: _array(value) for name, value in arrays.items()}))
    if not kept:
        raise InvalidInput("there is no episode to train on", hint=_TAKEN)
    store = create_temporary(schema or _inferred(kept))
    with store.writer() as writer:
        for episode in kept:
            writer.append(episode)
    return store


def _inferred(episodes: list[Episode]) -> Schema:
    """The fields of the first episode, with the actions that all of them show as bounds."""
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
            raise StoreNotFound(error.message, hint=f"{error.hint}; an environment's id is given as env=") from None
    return _imported(path)


def _imported(source: Any) -> EpisodeStore:
    from offrld.importers import import_into  # the formats' packages: not needed for a store

    folder = tempfile.TemporaryDirectory(prefix="offrl-store-")
    store = import_into(source, Path(folder.name, "store"))
    weakref.finalize(store, folder.cleanup)
    return store


def _array(value: Any) -> Any:
    """Tensors of torch as arrays, those within dicts too; everything else as it is."""
    if isinstance(value, Mapping):
        return {name: _array(each) for name, each in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16; float32 holds it


__all__ = ["is_dataset", "opened", "store_of"]
