"""Export demonstrations as robomimic keeps them: ``data/demo_i`` with obs, next_obs, actions, rewards, dones; ``mask`` for splits.

Source of the layout: https://robomimic.github.io/docs/datasets/overview.html. ``dones`` is 1 only where the task ended, which distinguishes
termination from truncation. Images are written with channels last, extra fields beside the actions.
"""

from __future__ import annotations

import contextlib
import json

import h5py
import numpy as np

from offrl_store import Field
from offrl_store.errors import EmptyStore
from offrld.importers.calm_file import CalmFile
from offrld.importers.described import NAME, record
from offrld.importers.exporting import (
    CutCount,
    Export,
    action_shape,
    channels_last,
    free_names,
    h5_dataset,
    named_observations,
    one_action,
    say_left_out,
    set_attributes,
    usable_steps,
)
from offrld.importers.robomimic import GYM_TYPE, KNOWN


def write(export: Export) -> None:
    """Write one file. The splits come from ``masks`` in the metadata of the episodes."""
    store, schema = export.store, export.store.schema
    action = one_action(export, "robomimic")
    fields: dict[str, Field] = named_observations(schema.observation)
    keys = {name: name or "observation" for name in fields}  # no groups below obs: robomimic uses only the part after the first "/"
    extras = free_names(export, schema.extra, lambda name: name in KNOWN)
    left_out: set[str] = set()
    masks: dict[str, list[str]] = {}
    counts, written, steps_in_all = CutCount(), 0, 0
    with contextlib.closing(CalmFile(export.path)) as calm, h5py.File(calm, "w") as file:
        data = file.create_group("data")
        for number, episode in enumerate(store.episodes):
            metadata = store.episode_metadata(number)
            steps = usable_steps(episode)
            counts.add(episode, steps)
            if not steps:
                continue
            group = data.create_group(f"demo_{written}")
            left_out |= set_attributes(group, {key: value for key, value in metadata.items() if key not in ("demo", "masks")})
            group.attrs["num_samples"] = steps
            for mask in metadata.get("masks") or ():
                masks.setdefault(str(mask), []).append(f"demo_{written}")
            for name, rows in named_observations(episode.observation).items():
                if channels_last(fields[name]):
                    rows = np.moveaxis(rows, 1, -1)
                if rows.ndim == 1:  # robomimic's networks take vectors
                    rows = rows[:, None]
                key = keys[name]
                following = rows[1 : steps + 1]
                if len(following) < steps:  # after a terminal, so no learner uses it
                    following = np.concatenate([following, rows[-1:]])
                h5_dataset(export, group, f"obs/{key}", rows[:steps])
                h5_dataset(export, group, f"next_obs/{key}", following)
            h5_dataset(export, group, "actions", episode.action[:steps].reshape(steps, *action_shape(action)))
            h5_dataset(export, group, "rewards", episode.reward[:steps])
            h5_dataset(export, group, "dones", ((np.arange(1, steps + 1) == episode.steps) & episode.terminated).astype(np.int64))
            for name, rows in episode.extra.items():
                h5_dataset(export, group, extras[name], rows[:steps])
            written, steps_in_all = written + 1, steps_in_all + steps
            calm.check()
            export.progress(number + 1, len(store))
        data.attrs["total"] = steps_in_all
        data.attrs["env_args"] = _environment(export)
        known = {f"observation.{name}" if name else "observation": key for name, key in keys.items()}
        set_attributes(file, {NAME: json.dumps(record(store, known | {f"extra.{name}": key for name, key in extras.items()}))})
        for name, demos in masks.items():
            file[f"mask/{name}"] = np.array(demos, dtype=bytes)
        file.close()  # flushes HDF5
        calm.check()
    if not written:
        raise EmptyStore("no episode has a step with its next observation", hint="export it as 'd4rl' or 'npz'")
    counts.say(export)
    say_left_out(export, left_out, "HDF5 cannot hold such metadata of episodes")


def _environment(export: Export) -> str:
    known = export.store.metadata.get("source_attributes")
    if isinstance(known, dict) and isinstance(known.get("env_args"), str):
        return known["env_args"]
    return json.dumps({"env_name": export.store.metadata.get("env_id") or "", "env_type": GYM_TYPE, "env_kwargs": {}})
