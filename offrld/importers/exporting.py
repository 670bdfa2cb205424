"""The description of an export, and helpers that exporters share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offrl_store import Episode, EpisodeStore, Field
from offrl_store.errors import InvalidInput

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Export:
    """One export.

    Attributes:
        store: its episodes are written.
        path: temporary path to write to; it does not exist yet.
        name: final path; the result is renamed to it when it is complete.
        compress: use gzip in HDF5; a higher level in formats that are always compressed.
        progress: called with (episodes done, number of episodes).
        message: called with a line for everything that the format has no place for.
    """

    store: EpisodeStore
    path: Path
    name: Path
    compress: bool
    progress: Progress
    message: Callable[[str], None]


def one_action(export: Export, format: str) -> Field:
    """Return the action field. Raises `InvalidInput` if there are several."""
    action = export.store.schema.action
    if not isinstance(action, Field):
        raise InvalidInput(f"the dataset has several action fields ({', '.join(action)})", hint=f"{format!r} holds one; export as 'store'")
    return action


def free_names(export: Export, names: Iterable[str], taken: Callable[[str], bool]) -> dict[str, str]:
    """Choose names for extra fields that the format does not use itself. Returns field -> its own name, or ``extra.NAME`` if that is used.

    A message reports each field that is renamed.

    Args:
        taken: whether the format itself uses a name.
    """
    names = list(names)
    free: dict[str, str] = {}
    for name in names:
        other = name
        while taken(other) or other in free.values() or (other != name and other in names):
            other = f"extra.{other}"
        free[name] = other
        if other != name:
            export.message(f"the extra field {name!r} is written as {other!r}: the format uses the name {name!r} itself")
    return free


def say_left_out(export: Export, keys: Iterable[str], what: str) -> None:
    """Report in one line what the format has no place for, and why (``what``)."""
    shown = sorted(set(keys))
    if shown:
        listed = ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
        export.message(f"not exported: {listed} ({what})")


def source_attributes(store: EpisodeStore, format: str) -> dict[str, Any]:
    """Return the attributes of the source that the data came from; {} if it had another format."""
    source, attributes = store.metadata.get("source"), store.metadata.get("source_attributes")
    return attributes if isinstance(attributes, dict) and isinstance(source, dict) and source.get("format") == format else {}


def action_shape(field: Field) -> tuple[int, ...]:
    return () if field.discrete else field.shape or (1,)


def named_observations(value: Any) -> dict[str, Any]:
    """Return observation fields, or the arrays of an episode, by name; a single one has the name ""."""
    return value if isinstance(value, dict) else {"": value}


def usable_steps(episode: Episode) -> int:
    """Count the steps that a format with one next observation per step can hold: its next observation is known, or follows a terminal."""
    return episode.steps - (episode.final_missing and not episode.terminated)


class CutCount:
    """Counts episodes without the final observation that a format needs, and reports the counts at the end."""

    def __init__(self) -> None:
        self.cut = self.left_out = self.repeated = 0

    def add(self, episode: Episode, steps: int) -> None:
        self.cut += steps < episode.steps
        self.left_out += steps == 0
        self.repeated += episode.final_missing and episode.terminated

    def say(self, export: Export) -> None:
        if self.repeated:
            export.message(f"{self.repeated} terminated episodes lack their final observation: the last one is repeated there")
        if self.cut:
            export.message(
                f"{self.cut} truncated episodes lack their final observation: they end one step earlier"
                + (f", and {self.left_out} of one step are left out" if self.left_out else "")
            )


def h5_dataset(export: Export, group: h5py.Group, key: str, rows: np.ndarray) -> None:
    options = {"compression": "gzip", "shuffle": True, "chunks": True} if export.compress and rows.size else {}
    group.create_dataset(key, data=rows, **options)


#: Largest attribute in bytes. HDF5's own limit is 64 KiB.
MAX_ATTRIBUTE = 32 << 10


def set_attributes(node: Any, values: Any) -> set[str]:
    """Write texts, numbers and arrays of a dict as attributes. Returns the keys that HDF5 cannot hold (nested or very long values)."""
    left_out = set()
    for key, value in (values if isinstance(values, dict) else {}).items():
        too_large = isinstance(value, int) and not -(2**63) <= value < 2**63
        fits = isinstance(value, (str, bool, int, float, np.ndarray)) and not too_large
        if fits and key and len(key) <= 256 and _size(value) <= MAX_ATTRIBUTE and "\0" not in f"{key}{value}":
            node.attrs[key] = value
        else:
            left_out.add(key)
    return left_out


def _size(value: Any) -> int:
    return len(value.encode()) if isinstance(value, str) else getattr(value, "nbytes", 8)


def channels_last(field: Field) -> bool:
    """Return whether rows are images that the formats of robots keep with channels last: uint8 ``[C, H, W]`` of 1, 3 or 4 channels."""
    return field.dtype == np.uint8 and len(field.shape) == 3 and field.shape[0] in (1, 3, 4)
