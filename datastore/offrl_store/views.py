"""Functions known from other libraries: split stores by episode or transition; join, extend and copy stores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import numpy as np

from offrl_store.errors import InvalidInput, InvalidSchema
from offrl_store.store import EpisodeList, EpisodeStore
from offrl_store.transitions import TransitionList

Part = TypeVar("Part", EpisodeList, TransitionList)


@overload
def train_test_split(store: EpisodeStore, share: float = 0.2, seed: int = 0) -> tuple[EpisodeList, EpisodeList]: ...


@overload
def train_test_split(store: Part, share: float = 0.2, seed: int = 0) -> tuple[Part, Part]: ...


def train_test_split(store: EpisodeStore | EpisodeList | TransitionList, share: float = 0.2, seed: int = 0) -> tuple[Any, Any]:
    """Split the episodes into a training list and a random test list of ``share`` of them (0 to 1, at least one), both in order.

    For ``store.episodes.transitions`` it splits by transition; steps of one episode may then be in both lists. Samplers accept a list as
    ``episodes`` (or ``rows``): ``store.transitions(256, seed=0, episodes=train)``. Raises InvalidInput.
    """
    parts = store.episodes if isinstance(store, EpisodeStore) else store
    count = len(parts)
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise InvalidInput(f"share {share!r} is not a number between 0 and 1")
    if count < 2:
        kind = "transitions" if isinstance(parts, TransitionList) else "episodes"
        raise InvalidInput(f"{count} {kind} cannot be split", hint="a split needs two")
    tested = min(max(round(share * count), 1), count - 1)
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    test, train = np.sort(order[:tested]), np.sort(order[tested:])
    return parts.take(train), parts.take(test)


def copy(store: EpisodeStore, path: str | os.PathLike[str], episodes: Any = None, **limit: Any) -> EpisodeStore:
    """Make a new store with the same fields and these episodes (numbers; default all). Raises StoreExists, InvalidInput."""
    return concat(path, [store if episodes is None else store.episodes.take(np.asarray(episodes))], **limit)


def concat(path: str | os.PathLike[str], parts: Sequence[EpisodeStore | EpisodeList], **limit: Any) -> EpisodeStore:
    """Make a new store with the episodes of several stores, one after the other. Raises InvalidSchema if their fields differ.

    The schema's metadata are those of the first store; each episode keeps its own. ``limit``: as for ``EpisodeStore.create``. After an
    error no store is left.
    """
    lists = _lists(parts)
    if not lists:
        raise InvalidInput("there is no store to join", hint="pass at least one store")
    _check_fields(lists[0].store, lists)
    joined = EpisodeStore.create(path, lists[0].store.schema, **limit)
    try:
        extend(joined, lists)
    except BaseException:
        joined.remove()
        raise
    return joined


def extend(store: EpisodeStore, parts: Sequence[EpisodeStore | EpisodeList]) -> int:
    """Append the episodes of other stores to this one, with their metadata: all or none. Returns their number.

    Raises InvalidSchema (other fields; nothing is changed), StoreLocked, DiskFull.
    """
    lists = _lists(parts)
    _check_fields(store, lists)
    with store.writer() as writer:
        try:
            for part in lists:
                for i, number in enumerate(part.numbers):
                    writer.append(part[i], metadata=part.store.episode_metadata(int(number)) or None)
        except BaseException:
            writer.abort()
            raise
    return sum(len(part) for part in lists)


def _lists(parts: Sequence[EpisodeStore | EpisodeList]) -> list[EpisodeList]:
    if isinstance(parts, (EpisodeStore, EpisodeList)):
        raise InvalidInput("parts is one store, not a list of stores", hint="put it in brackets")
    return [part.episodes if isinstance(part, EpisodeStore) else part for part in parts]


def _check_fields(store: EpisodeStore, lists: Sequence[EpisodeList]) -> None:
    for part in lists:
        if not part.store.schema.same_fields(store.schema):
            raise InvalidSchema(
                f"{part.store.path} has other fields than {store.path}", hint="names, dtypes, shapes and bounds must be equal"
            )
