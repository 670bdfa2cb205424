"""Import d3rlpy's ``.h5`` files: version 1 (flat arrays, by ``MDPDataset.dump``) and version 2 (arrays per episode, by
``ReplayBuffer.dump``).

Version 1: ``observations``, ``actions``, ``rewards``, ``terminals``, ``episode_terminals`` (1 at every end of an episode),
``discrete_action``, ``version``. Version 2: ``columns``, ``num_episodes``, ``version``, then ``observations_i``, ``actions_i``,
``rewards_i``, ``terminated_i`` for episode i. Tuple observations are ``observations_i_j`` and become the fields ``observation_j``. Neither
version holds final observations.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py

from offrl_store.errors import EmptyStore, InvalidInput
from offrld.importers import hdf5
from offrld.importers.columns import Column
from offrld.importers.described import NAME as MARK
from offrld.importers.described import Described, restored
from offrld.importers.episodic import Recording, episodic_source
from offrld.importers.flat import FlatArrays, flat_source
from offrld.importers.source import BadEpisodes, Format, Source
from offrld.importers.spaces import ActionSpace, probe_environment

NEEDS = (
    "version 1: observations, actions, rewards, terminals, episode_terminals, discrete_action; "
    "version 2: columns, num_episodes, observations_0, ..."
)

#: The only layout of version 2 that is read; "2.0" was different.
LAYOUT = "2.1"


def detect(path: Path) -> bool:
    if not hdf5.is_hdf5(path):
        return False
    keys = hdf5.keys(path)
    return {"columns", "num_episodes"} <= keys or (
        {"observations", "actions"} <= keys and bool(keys & {"episode_terminals", "discrete_action"})
    )


def open_file(path: Path, bad: BadEpisodes) -> Source:
    """Open a file of either version. Raises `InvalidInput` for any other file."""
    with ExitStack() as resources:
        file = resources.enter_context(hdf5.open_hdf5(path))
        of_version = _open_v2 if {"num_episodes", "columns"} & set(hdf5.names(file, path.name)) else _open_v1
        source = of_version(file, path.name, bad)
        source.resources = resources.pop_all()
        return source


def _open_v1(file: h5py.File, name: str, bad: BadEpisodes) -> Source:
    observations, actions, rewards, terminals = (
        hdf5.need_column(file, key, name, NEEDS) for key in ("observations", "actions", "rewards", "terminals")
    )
    discrete = hdf5.scalar(file, "discrete_action", name)
    messages: list[str] = []
    attributes = hdf5.attributes(file)
    env_id = attributes.get("env_id") if isinstance(attributes.get("env_id"), str) else None
    described = Described.read(attributes.pop(MARK, None))
    restored_observations = described.fields({"observation": observations}) if described is not None else None
    arrays = FlatArrays(
        observations if restored_observations is None else restored_observations,
        actions,
        rewards,
        terminals,
        hdf5.column(file, "episode_terminals", name),
    )
    return flat_source(
        arrays,
        bad,
        format="d3rlpy",
        env_id=env_id,
        space=_space(described, env_id, name, messages),
        attributes=attributes,
        messages=messages,
        discrete=None if discrete is None else bool(discrete),
        version=str(hdf5.scalar(file, "version", name) or "1"),
    )


def _open_v2(file: h5py.File, name: str, bad: BadEpisodes) -> Source:
    version, count = hdf5.scalar(file, "version", name), hdf5.scalar(file, "num_episodes", name)
    if str(version) != LAYOUT:
        raise InvalidInput(f"{name} has the layout version {version}; expected {LAYOUT}", hint="dump it again with d3rlpy 2.3 or later")
    if not isinstance(count, int) or count < 0:
        raise InvalidInput(f"{name}: num_episodes is {count!r}", hint="the file is damaged; dump it again")
    if count == 0:
        raise EmptyStore(f"{name} holds no episodes", hint="dump a buffer with at least one episode")
    messages: list[str] = []
    columns = hdf5.texts(file, "columns", name)
    extra = [each for each in columns if each not in ("observations", "actions", "rewards", "terminated")]
    if extra:
        messages.append(f"not imported: {hdf5.listed(extra)}")
    attributes: dict[str, Any] = hdf5.attributes(file)
    described = Described.read(attributes.pop(MARK, None))
    env_id = attributes.get("env_id") if isinstance(attributes.get("env_id"), str) else None

    def recording(number: int) -> Recording | None:
        actions, rewards = (hdf5.need_column(file, f"{key}_{number}", name, NEEDS) for key in ("actions", "rewards"))
        terminated = hdf5.scalar(file, f"terminated_{number}", name)
        if terminated is None:
            raise InvalidInput(f"{name} holds no 'terminated_{number}'", hint=f"needed: {NEEDS}")
        if not actions.rows:
            return None
        observations = _observations(file, number, name)
        plain = Recording(observations, actions, rewards, [(actions.rows, bool(terminated))])
        named = observations if isinstance(observations, dict) else {"observation": observations}
        return restored(described, plain, named, {})

    return episodic_source(
        recording,
        count,
        bad,
        file=name,
        format="d3rlpy",
        env_id=env_id,
        space=_space(described, env_id, name, messages),
        attributes=attributes,
        messages=messages,
        version=LAYOUT,
    )


def _space(described: Described | None, env_id: str | None, name: str, messages: list[str]) -> ActionSpace | None:
    """Return the action space of the record, or else the environment's."""
    declared = described.space if described is not None else None
    return declared if declared is not None else probe_environment(env_id, name, messages).space


def _observations(file: h5py.File, number: int, name: str) -> Column | dict[str, Column]:
    """Return the column ``observations_i``, or those of a tuple: ``observations_i_0``, ``observations_i_1``, ..."""
    one = hdf5.column(file, f"observations_{number}", name)
    fields: dict[str, Column] = {}
    while one is None and (part := hdf5.column(file, f"observations_{number}_{len(fields)}", name)) is not None:
        fields[f"observation_{len(fields)}"] = part
    return fields or one or hdf5.need_column(file, f"observations_{number}", name, NEEDS)


FORMAT = Format("d3rlpy", ".h5 file of d3rlpy, version 1 or 2", NEEDS, detect, open_file)
