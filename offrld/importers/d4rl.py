"""Import D4RL: one HDF5 file of flat arrays, one row per environment step.

Keys: ``observations``, ``actions``, ``rewards``, ``terminals``; optional: ``timeouts``, ``next_observations``, ``infos/...`` (kept with
each step if they have one row per step) and ``metadata/...`` (kept in the store's metadata). Observations may be a group of arrays (several
fields). A file without ``timeouts`` and ``next_observations`` is cut as D4RL cuts it: at the environment's time limit, or every 1000 steps
if the limit is unknown.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from offrl_store.errors import InvalidInput
from offrld.importers import hdf5
from offrld.importers.flat import FlatArrays, flat_source
from offrld.importers.source import BadEpisodes, Format, Source
from offrld.importers.spaces import ActionSpace, box, choices, kind_of, probe_environment

NEEDED = ("observations", "actions", "rewards", "terminals")
KNOWN = (*NEEDED, "timeouts", "next_observations", "next_observations_known", "infos", "metadata")
NEEDS = "observations, actions, rewards, terminals; optional: timeouts, next_observations, infos, metadata"

#: D4RL cuts episodes after this many steps if a file has no timeouts: the time limit of its locomotion tasks.
DEFAULT_LIMIT = 1000


def detect(path: Path) -> bool:
    return hdf5.is_hdf5(path) and hdf5.keys(path) >= {"observations", "actions"}


def open_file(path: Path, bad: BadEpisodes, env_id: str | None = None) -> Source:
    """Open a flat HDF5 file. Raises `InvalidInput` if it is not one or if its arrays do not fit each other.

    ``env_id``: the environment, used if the file does not name one. D4RL's own files do not.
    """
    if env_id is not None and not isinstance(env_id, str):
        raise InvalidInput(f"env_id is {env_id!r}", hint="pass the name of a gymnasium environment")
    with ExitStack() as resources:
        file = resources.enter_context(hdf5.open_hdf5(path))
        messages: list[str] = []
        name = path.name
        columns = {key: hdf5.need_column(file, key, name, NEEDS) for key in NEEDED[1:]}
        observations = hdf5.columns(file, "observations", name)
        if observations is None:
            raise InvalidInput(f"{name} holds no 'observations' (it holds {hdf5.listed(hdf5.names(file, name))})", hint=f"needed: {NEEDS}")
        attributes = hdf5.attributes(file)
        env_id = attributes["env_id"] if isinstance(attributes.get("env_id"), str) else env_id
        space = declared_space(file, name)
        environment = probe_environment(env_id, name, messages)
        extra, others = hdf5.extras(file, "infos", {columns["actions"].rows}, name)
        ignored = [key for key in hdf5.names(file, name) if key not in KNOWN] + others
        if ignored:
            messages.append(f"not imported: {hdf5.listed(ignored)}")
        arrays = FlatArrays(
            observations,
            **columns,
            timeouts=hdf5.column(file, "timeouts", name),
            next_observations=hdf5.columns(file, "next_observations", name),
            next_known=hdf5.column(file, "next_observations_known", name),
            limit=environment.limit or DEFAULT_LIMIT,
            extra=extra,
        )
        metadata = hdf5.values(file, "metadata", name)
        source = flat_source(
            arrays,
            bad,
            format="d4rl",
            env_id=env_id,
            space=space or environment.space,
            attributes=attributes,
            messages=messages,
            more={"source_metadata": metadata} if metadata else None,
        )
        source.resources = resources.pop_all()
        return source


def declared_space(file: h5py.File, name: str) -> ActionSpace | None:
    """Return the action space in the attributes ``action_n``, or ``action_low`` and ``action_high``, which our exports write; else None."""
    try:
        n, low, high = (file.attrs.get(key) for key in ("action_n", "action_low", "action_high"))
        if n is not None:
            return choices(np.asarray(n).item(), 0, "declared", name)
        if low is None and high is None:
            return None
        low, high = (np.asarray(no if bound is None else bound, float) for bound, no in ((low, -np.inf), (high, np.inf)))
        return box(low, high, "declared", name, kind_of({"action_space": {"kind": file.attrs.get("action_kind")}}))
    except (ValueError, TypeError, OSError) as error:
        raise InvalidInput(
            f"{name}: the attributes action_n, action_low, action_high cannot be read: {error}", hint="correct or remove them"
        ) from None


FORMAT = Format(
    "d4rl",
    "flat HDF5 file, one row per step",
    NEEDS,
    detect,
    open_file,
    {"env_id": "gymnasium environment of the data, if the file does not name it"},
)
