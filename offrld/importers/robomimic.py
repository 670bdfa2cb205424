"""Import robomimic: one HDF5 file of demonstrations, with one group per trajectory.

``data`` (attributes ``total`` and ``env_args``, a JSON text with env_name, env_type, env_kwargs) holds ``demo_0``, ``demo_1``, ...
(attribute ``num_samples``) with ``actions``, ``rewards``, ``dones``, ``obs/KEY``, ``next_obs/KEY`` and often ``states``; ``mask/KEY`` lists
the demos of a split (train, valid). Source of the layout: https://robomimic.github.io/docs/datasets/overview.html.

A demo is one episode. It terminated if its last ``dones`` is 1; its final observation is the last of ``next_obs``. Images are turned to
channels first. h5py alone reads the file.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offrl.errors import Unknown, nearest
from offrl_store.errors import InvalidInput
from offrld.importers import hdf5
from offrld.importers.columns import Column, check_scalar_rows, same_length
from offrld.importers.described import NAME as MARK
from offrld.importers.described import Described, restored
from offrld.importers.episodic import Recording, episodic_source
from offrld.importers.reading import parse_json
from offrld.importers.source import BadEpisodes, Format, Source, field_names
from offrld.importers.spaces import probe_environment

NEEDS = "data/demo_0, data/demo_1, ... with actions, rewards, dones, obs/KEY; optional: next_obs/KEY, states, mask/KEY"
KNOWN = ("actions", "rewards", "dones", "obs", "next_obs")
DONE = ("dones", "reward", "truncated", "terminated")

#: robomimic's ``env_type`` of gymnasium environments.
GYM_TYPE = 2


def detect(path: Path) -> bool:
    if not hdf5.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            data = hdf5.node(file, "data", path.name)
            return isinstance(data, h5py.Group) and any(key.startswith("demo_") for key in data)
    except (InvalidInput, *hdf5.DAMAGE):
        return False


def open_file(path: Path, bad: BadEpisodes, *, mask: Any = None, done: Any = "dones") -> Source:
    """Open a file of demonstrations, all of them or those of a split (``mask``). Raises `InvalidInput` if it is not such a file."""
    name = path.name
    if done not in DONE:
        raise InvalidInput(f"done is {done!r}", hint=f"pass what ends the task: {', '.join(DONE)}")
    with ExitStack() as resources:
        file = resources.enter_context(hdf5.open_hdf5(path))
        data = hdf5.node(file, "data", name)
        demos = [key for key in hdf5.names(data, name) if key.startswith("demo_")] if isinstance(data, h5py.Group) else []
        if not demos:
            raise InvalidInput(f"{name} holds no demonstrations (it holds {hdf5.listed(hdf5.names(file, name))})", hint=f"needed: {NEEDS}")
        demos.sort(key=lambda key: (len(key), key))
        masks = _masks(file, name)
        if mask is not None:
            if not isinstance(mask, str) or mask not in masks:
                raise Unknown(f"{name} has no split {mask!r}", hint=nearest(str(mask), list(masks)) or f"it has: {hdf5.listed(masks)}")
            demos = [demo for demo in demos if demo in masks[mask]]
        attributes = hdf5.attributes(data)
        described = Described.read(hdf5.attributes(file).get(MARK))
        environment = _environment(attributes.get("env_args"))
        env_id = environment.get("env_name") if environment.get("env_type") == GYM_TYPE else None
        env_id = env_id if isinstance(env_id, str) and env_id else None
        messages: list[str] = []
        left_out: set[str] = set()
        inner: dict[int, int] = {}
        ends: dict[int, bool] = {}
        renamed: list[str] = []

        def recording(number: int) -> Recording | None:
            notes: list[str] = []
            made = _recording(data, demos[number], name, masks, left_out, inner, number, done, described, notes)
            renamed[:] = renamed or notes
            if made is not None:
                ends[number] = made.ends[-1][1]
            return made

        source = episodic_source(
            recording,
            len(demos),
            bad,
            file=name,
            format="robomimic",
            env_id=env_id,
            space=(described and described.space) or probe_environment(env_id, name, messages).space,
            attributes=attributes,
            messages=messages,
            **({"mask": mask} if mask is not None else {}),
        )
        if inner:
            messages.append(f"dones before the last step of {len(inner)} demos are ignored: a demo is one episode")
        messages += renamed
        if described is None and done == "dones" and all(ends.values()):
            messages.append(
                "every demo ends with dones = 1, which counts as the end of the task; if it only marks the end of a recording, "
                "give the option done = reward, truncated or terminated"
            )
        if left_out:
            messages.append(f"not imported: {hdf5.listed(left_out)}")
        source.resources = resources.pop_all()
        return source


def _recording(
    data: h5py.Group,
    demo: str,
    name: str,
    masks: dict[str, set[str]],
    left_out: set[str],
    inner: dict[int, int],
    number: int,
    done: str,
    described: Described | None,
    notes: list[str],
) -> Recording | None:
    group = hdf5.node(data, demo, name)
    if not isinstance(group, h5py.Group):
        raise InvalidInput(f"{name}: 'data/{demo}' is not a group", hint=f"needed: {NEEDS}")
    present = hdf5.names(group, name)
    if "obs" not in present and "states" in present:
        raise InvalidInput(
            f"{name}: 'data/{demo}' holds states and no observations", hint="make them with robomimic's dataset_states_to_obs.py"
        )
    actions, rewards, dones = (hdf5.need_column(group, key, name, NEEDS) for key in ("actions", "rewards", "dones"))
    observations = hdf5.columns(group, "obs", name)
    if not isinstance(observations, dict):
        raise InvalidInput(f"{name} holds no group 'data/{demo}/obs'", hint=f"needed: {NEEDS}")
    same_length(actions, rewards, dones, *observations.values())
    steps = actions.rows
    if not steps:
        return None
    following = hdf5.columns(group, "next_obs", name)
    if isinstance(following, dict):
        missing = [key for key in observations if key not in following]
        if missing:
            raise InvalidInput(f"{name}: 'data/{demo}/next_obs' holds no {missing[0]!r}", hint="it needs the fields of obs")
        same_length(actions, *following.values())
        observations = {key: Column(name, each.key, _WithFinal(each, following[key])) for key, each in observations.items()}
    observations = {key: Column(name, each.key, images(each.data)) for key, each in observations.items()}
    names = field_names(observations, notes, "observation field")
    flags = dones.read_flags(0, steps)
    if flags[:-1].any():
        inner[number] = 1
    extra: dict[str, Column] = {}
    for key in present:
        if key in KNOWN:
            continue
        node = hdf5.node(group, key, name)
        if isinstance(node, h5py.Group):
            kept, others = hdf5.extras(group, key, {steps}, name)
            extra |= {f"{key}.{each}": column for each, column in kept.items()}
            left_out |= {each.removeprefix(f"data/{demo}/") for each in others}
        elif hdf5.per_step(node, {steps}):
            extra[key] = Column(name, f"data/{demo}/{key}", node)
        else:
            left_out.add(key)
    extras = field_names(extra, notes, "extra field")
    attributes = hdf5.attributes(group)
    kept = {key: value for key, value in attributes.items() if key not in ("num_samples", "model_file")}
    if "model_file" in attributes:
        left_out.add("model_file")
    metadata = {"demo": demo, "masks": sorted(key for key, members in masks.items() if demo in members), **kept}
    terminated = {"dones": bool(flags[-1]), "terminated": True, "truncated": False}.get(done)
    if terminated is None:
        check_scalar_rows(rewards)
        terminated = bool(rewards.read(steps - 1, steps).reshape(1)[0] > 0)
    plain = Recording(
        {names[key]: each for key, each in observations.items()},
        actions,
        rewards,
        [(steps, terminated)],
        {extras[key]: each for key, each in extra.items()},
        metadata,
    )
    return restored(described, plain, observations, extra)


class _WithFinal:
    """The observations of a demo, followed by the last of its next observations, ``[T + 1, ...]``."""

    def __init__(self, observations: Column, following: Column) -> None:
        self._observations, self._following = observations, following
        self.shape, self.dtype = (observations.rows + 1, *observations.shape), observations.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        steps = self._observations.rows
        if rows.stop <= steps:
            return self._observations.read(rows.start, rows.stop)
        last = self._following.read(steps - 1, steps)
        return np.concatenate([self._observations.read(rows.start, steps), last]) if rows.start < steps else last


class _ChannelsFirst:
    """Images ``[N, H, W, C]`` as ``[N, C, H, W]``."""

    def __init__(self, data: Any) -> None:
        n, height, width, channels = data.shape
        self._data, self.shape, self.dtype = data, (n, channels, height, width), data.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(np.asarray(self._data[rows]), -1, 1))


def images(data: Any) -> Any:
    """Turn rows that are images with channels last (uint8 ``[H, W, C]`` of 1, 3 or 4 channels) to channels first; others stay."""
    return _ChannelsFirst(data) if data.dtype == np.uint8 and len(data.shape) == 4 and data.shape[3] in (1, 3, 4) else data


def _masks(file: h5py.File, name: str) -> dict[str, set[str]]:
    """Return split -> names of its demos."""
    group = hdf5.node(file, "mask", name)
    masks: dict[str, set[str]] = {}
    for key in hdf5.names(group, name) if isinstance(group, h5py.Group) else ():
        masks[key] = set(hdf5.texts(group, key, name))
    return masks


def _environment(text: Any) -> dict[str, Any]:
    try:
        value = parse_json(text, "env_args", infinite=True) if isinstance(text, str) else None
    except InvalidInput:
        return {}
    return value if isinstance(value, dict) else {}


FORMAT = Format(
    "robomimic",
    "HDF5 file of robomimic's demonstrations",
    NEEDS,
    detect,
    open_file,
    {
        "mask": "take the demos of this split only (mask/KEY)",
        "done": "whether the task ended at the last row: if dones is 1 (dones), if the reward is above 0 (reward), never (truncated), "
        "always (terminated)",
    },
)
