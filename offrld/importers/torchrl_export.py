"""Exporting as TorchRL dumps a replay buffer over a ``LazyMemmapStorage``: raw files, one row per step, with the next observation beside.

``ReplayBuffer(storage=LazyMemmapStorage(n)).loads(folder)`` takes it, with n the number of steps. Discrete actions are numbers, not
one-hot. Each step holds both observations, so images take twice their room.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from offrl_store import Field
from offrl_store.errors import EmptyStore

from .exporting import CutCount, Export, action_shape, named_observations, one_action, usable_steps


def write_torchrl(export: Export) -> None:
    """``storage/``, ``writer/`` and ``buffer_metadata.json``."""
    store, schema = export.store, export.store.schema
    action = one_action(export, "torchrl")
    fields: dict[str, Field] = {name or "observation": each for name, each in named_observations(schema.observation).items()}
    flag = Field("bool", (1,))
    leaves = fields | {"action": Field(action.dtype, action_shape(action))} | dict(schema.extra)
    following = fields | {"reward": Field(schema.reward.dtype, (1,)), "done": flag, "terminated": flag, "truncated": flag}
    folders: dict[str, dict[str, Field]] = {"": leaves, "collector": {"traj_ids": Field("int64")}, "next": following}
    storage = export.path / "storage"
    counts, rows, trajectory = CutCount(), 0, 0
    files: dict[str, BinaryIO] = {}
    try:
        for folder, named in folders.items():
            (storage / folder).mkdir(parents=True, exist_ok=True)
            for name in named:
                files[f"{folder}/{name}"] = open(storage / folder / f"{name}.memmap", "wb")  # noqa: SIM115  closed below
        for number, episode in enumerate(store.episodes):
            steps = usable_steps(episode)
            counts.add(episode, steps)
            if steps:
                for key, array in _rows(episode, steps, trajectory).items():
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
        _write(storage / folder / "meta.json", {
            **{name: {"device": "cpu", "shape": [rows, *each.shape], "dtype": f"torch.{each.dtype.name}", "is_nested": False}
               for name, each in named.items()},
            **inner, "shape": [rows], "device": "cpu", "_type": "<class 'tensordict._td.TensorDict'>",
        })  # fmt: skip
    _write(storage / "storage_metadata.json", {"metadata": {}, "is_pytree": False, "len": rows})
    (export.path / "writer").mkdir()
    _write(export.path / "writer" / "metadata.json", {"cursor": 0, "write_count": rows})
    _write(export.path / "buffer_metadata.json", {"batch_size": None, "consume_after_n_samples": None})
    counts.say(export)


def _rows(episode: Any, steps: int, trajectory: int) -> dict[str, np.ndarray]:
    """The first steps of an episode by file."""
    last = np.arange(1, steps + 1) == steps
    rows: dict[str, np.ndarray] = {}
    for name, each in named_observations(episode.observation).items():
        following = each[1 : steps + 1]
        if len(following) < steps:  # of a terminated episode, where nobody uses it
            following = np.concatenate([following, each[-1:]])
        rows[f"/{name or 'observation'}"], rows[f"next/{name or 'observation'}"] = each[:steps], following
    rows |= {f"/{name}": each[:steps] for name, each in episode.extra.items()}
    rows |= {
        "/action": episode.action[:steps], "next/reward": episode.reward[:steps], "next/done": last,
        "next/terminated": last & episode.terminated, "next/truncated": last & (not episode.terminated),
        "collector/traj_ids": np.full(steps, trajectory, np.int64),
    }  # fmt: skip
    return rows


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))
