"""Export as TorchRL dumps a replay buffer over a ``LazyMemmapStorage``: raw files, one row per step, with next observations.

``ReplayBuffer(storage=LazyMemmapStorage(n)).loads(folder)`` loads it, with n the number of steps. Discrete actions are numbers, not
one-hot. Each step holds both observations, so images take twice the space.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from offrl_store import Field
from offrl_store.errors import EmptyStore
from offrld.importers.described import NAME, record
from offrld.importers.exporting import (
    CutCount,
    Export,
    action_shape,
    free_names,
    named_observations,
    one_action,
    say_left_out,
    usable_steps,
)
from offrld.importers.torchrl import FLAGS, TRAJECTORIES

#: Keys at the root that TorchRL, its buffers or ``meta.json`` use for other purposes than a field.
RESERVED = ("action", "reward", "next", "collector", "index", "_weight", "shape", "device", "_type", *TRAJECTORIES)


def write(export: Export) -> None:
    """Write ``storage/``, ``writer/`` and ``buffer_metadata.json``."""
    store, schema = export.store, export.store.schema
    action = one_action(export, "torchrl")
    named = named_observations(schema.observation)
    keys = {name: _observation_key(export, name, named) for name in named}
    extras = free_names(export, schema.extra, lambda name: name in (*RESERVED, *keys.values()) or name in FLAGS)
    fields: dict[str, Field] = {keys[name]: each for name, each in named.items()}
    flag = Field("bool", (1,))
    leaves = fields | {"action": Field(action.dtype, action_shape(action))} | {extras[name]: each for name, each in schema.extra.items()}
    following = fields | {"reward": Field(schema.reward.dtype, (1,)), "done": flag, "terminated": flag, "truncated": flag}
    folders: dict[str, dict[str, Field]] = {"": leaves, "collector": {"traj_ids": Field("int64")}, "next": following}
    storage = export.path / "storage"
    counts, rows, trajectory = CutCount(), 0, 0
    left_out: set[str] = set()
    files: dict[str, BinaryIO] = {}
    try:
        for folder, named in folders.items():
            (storage / folder).mkdir(parents=True, exist_ok=True)
            for name in named:
                files[f"{folder}/{name}"] = open(storage / folder / f"{name}.memmap", "wb")  # noqa: SIM115  closed below
        for number, episode in enumerate(store.episodes):
            left_out |= store.episode_metadata(number).keys()
            steps = usable_steps(episode)
            counts.add(episode, steps)
            if steps:
                for key, array in _rows(episode, steps, trajectory, keys, extras).items():
                    files[key].write(np.ascontiguousarray(array).data.cast("B"))
                rows, trajectory = rows + steps, trajectory + 1
            export.progress(number + 1, len(store))
    finally:
        for file in files.values():
            file.close()
    if not rows:
        raise EmptyStore("no episode has a step with its next observation", hint="export it as 'd4rl' or 'npz'")
    for folder, named in folders.items():
        inner = {each: {"type": "TensorDict"} for each in folders if each and not folder}
        _write(
            storage / folder / "meta.json",
            {
                **{
                    name: {"device": "cpu", "shape": [rows, *each.shape], "dtype": f"torch.{each.dtype.name}", "is_nested": False}
                    for name, each in named.items()
                },
                **inner,
                "shape": [rows],
                "device": "cpu",
                "_type": "<class 'tensordict._td.TensorDict'>",
            },
        )
    _write(storage / "storage_metadata.json", {"metadata": {}, "is_pytree": False, "len": rows})
    (export.path / "writer").mkdir()
    _write(export.path / "writer" / "metadata.json", {"cursor": 0, "write_count": rows})
    _write(export.path / "buffer_metadata.json", {"batch_size": None, "consume_after_n_samples": None})
    known = {f"observation.{name}" if name else "observation": key for name, key in keys.items()}
    known |= {f"extra.{name}": key for name, key in extras.items()}
    _write(export.path / f"{NAME}.json", record(store, known))
    counts.say(export)
    say_left_out(export, left_out, "TorchRL has no place for metadata of episodes")


def _observation_key(export: Export, name: str, named: dict[str, Field]) -> str:
    """Choose the key of an observation field: its name, or another one if the format uses the name itself."""
    key = name or "observation"
    while key in (*RESERVED, *FLAGS) or (key != name and name and key in named):
        key = f"observation.{key}"
    if name and key != name:
        export.message(f"the observation field {name!r} is written as {key!r}: the format uses the name {name!r} itself")
    return key


def _rows(episode: Any, steps: int, trajectory: int, keys: dict[str, str], extras: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the first steps of an episode by file."""
    last = np.arange(1, steps + 1) == steps
    rows: dict[str, np.ndarray] = {}
    for name, each in named_observations(episode.observation).items():
        following = each[1 : steps + 1]
        if len(following) < steps:  # after a terminal, so no learner uses it
            following = np.concatenate([following, each[-1:]])
        rows[f"/{keys[name]}"], rows[f"next/{keys[name]}"] = each[:steps], following
    rows |= {f"/{extras[name]}": each[:steps] for name, each in episode.extra.items()}
    rows |= {
        "/action": episode.action[:steps],
        "next/reward": episode.reward[:steps],
        "next/done": last,
        "next/terminated": last & episode.terminated,
        "next/truncated": last & (not episode.terminated),
        "collector/traj_ids": np.full(steps, trajectory, np.int64),
    }
    return rows


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))
