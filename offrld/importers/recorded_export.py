"""Exporting a store to Minari (HDF5 backend) and to d3rlpy, version 1 (flat) and version 2 (layout 2.1).

Written with h5py alone, so that the library that owns the format loads it (tried with Minari 0.5.4 and d3rlpy 2.8). Minari keeps T+1
observations per episode: where the final one is missing, a terminated episode gets its last observation in that place (which no learner
uses), a truncated one ends a step earlier. d3rlpy keeps T observations: final ones are left out, and with them the last transition of
truncated episodes. Extras are kept by Minari only (``infos``).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offrl import environments
from offrl_store import EpisodeStore, Field
from offrl_store.errors import EmptyStore, InvalidInput
from offrld.importers.calm_file import CalmFile
from offrld.importers.described import NAME, record
from offrld.importers.exporting import (
    CutCount,
    Export,
    action_shape,
    h5_dataset,
    named_observations,
    one_action,
    say_left_out,
    set_attributes,
    usable_steps,
)
from offrld.importers.minari_space import COMPUTED, Layout

#: The lowest version of Minari whose layout is written: every 0.5 reads it, and older ones than the writer refuse what is newer.
MINARI_VERSION = "0.5.0"


def write_minari(export: Export) -> None:
    """``data/main_data.hdf5`` and ``data/metadata.json`` of one dataset."""
    store = export.store
    layout = Layout(store, one_action(export, "minari"), export.message)
    folder = export.path / "data"
    folder.mkdir(parents=True)
    counts, written, steps_in_all = CutCount(), 0, 0
    left_out: set[str] = set()
    with contextlib.closing(CalmFile(folder / "main_data.hdf5")) as calm, h5py.File(calm, "w") as file:
        for number, episode in enumerate(store.episodes):
            steps = usable_steps(episode)
            counts.add(episode, steps)
            if not steps:
                continue
            group = file.create_group(f"episode_{written}")
            left_out |= set_attributes(group, _flat(store.episode_metadata(number)))
            group.attrs["id"], group.attrs["total_steps"] = written, steps
            for name, rows in named_observations(episode.observation).items():
                if episode.final_missing and episode.terminated:
                    rows = np.concatenate([rows, rows[-1:]])
                place = layout.places[name]
                h5_dataset(export, group, place.path, np.moveaxis(rows[: steps + 1], 1, -1) if place.turn else rows[: steps + 1])
            h5_dataset(export, group, "actions", episode.action[:steps].reshape(steps, *layout.action_shape))
            h5_dataset(export, group, "rewards", episode.reward[:steps])
            flags = np.arange(1, steps + 1) == steps
            h5_dataset(export, group, "terminations", flags & episode.terminated)
            h5_dataset(export, group, "truncations", flags & (not episode.terminated))
            for name, rows in episode.extra.items():
                # Minari keeps infos of the reset as well: the first row of T+1 is one without a step before it.
                h5_dataset(export, group, f"infos/{name}", np.concatenate([np.zeros_like(rows[:1]), rows[:steps]]))
            written, steps_in_all = written + 1, steps_in_all + steps
            calm.check()
            export.progress(number + 1, len(store))
        file.close()  # writes what HDF5 still holds
        calm.check()
    if not written:
        raise EmptyStore("no episode has two observations, which Minari needs", hint="export it as 'd4rl' or 'npz'")
    counts.say(export)
    say_left_out(export, left_out, "HDF5 has no place for such metadata of episodes")
    size = (folder / "main_data.hdf5").stat().st_size
    (folder / "metadata.json").write_text(json.dumps(_minari_metadata(export, layout, written, steps_in_all, size)))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as Minari keeps them in attributes: ``outer/inner``; missing values are left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}/")
        elif value is not None:
            flat[f"{prefix}{key}"] = np.asarray(value) if _numbers(value) else value
    return flat


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(each, (int, float)) and abs(each) < 2**63 for each in value)


def _minari_metadata(export: Export, layout: Layout, episodes: int, steps: int, size: int) -> dict[str, Any]:
    store = export.store
    known = store.metadata.get("source_attributes")
    words = ("author", "author_email", "algorithm_name", "code_permalink", "description", "ref_max_score", "ref_min_score")
    kept = {key: value for key, value in layout.known.items() if key not in COMPUTED and value is not None}
    if not layout.known and isinstance(known, dict):
        kept = {key: known[key] for key in words if key in known}
    specs = layout.specs(store.metadata.get("env_id"))
    if not specs and (spec := _environment_spec(store.metadata.get("env_id"))) is not None:
        specs = {"env_spec": spec}
    return kept | {
        "total_episodes": episodes,
        "total_steps": steps,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps(layout.observation),
        "action_space": json.dumps(layout.action),
        "dataset_id": _dataset_id(export.name),
        "minari_version": MINARI_VERSION,
        "dataset_size": round(size / 1e6, 1),
        **specs,
    }


def _dataset_id(path: Path) -> str:
    """The id under which Minari finds the folder: its path below Minari's root, else its name, with a version."""
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    path = Path(os.path.abspath(path))
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return name if re.search(r"-v\d+$", name) else f"{name}-v0"


def _environment_spec(env_id: Any) -> str | None:
    """What gymnasium's registry says of an environment; ids with a module are not imported."""
    if not isinstance(env_id, str) or ":" in env_id:
        return None
    import gymnasium

    environments.register()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gymnasium.spec(env_id).to_json()
    except (gymnasium.error.Error, TypeError, ValueError):
        return None  # not registered here, or made of what cannot be written down: the data stand without it


def write_d3rlpy(export: Export) -> None:
    """Layout 2.1, as ``ReplayBuffer.dump`` writes it: arrays of each episode; several observation fields as a tuple."""
    store, schema = export.store, export.store.schema
    action = one_action(export, "d3rlpy")
    fields = [] if isinstance(schema.observation, Field) else list(schema.observation)
    if fields:
        export.message(f"the observation fields {', '.join(fields)} become a tuple in this order")
    numbers = [name or "observation" for name, each in named_observations(schema.observation).items() if each.shape == ()]
    if numbers:
        export.message(f"{', '.join(numbers)}: one number per step, written as rows of one number, which d3rlpy needs")
    _say_unkept(export)
    keys = {f"observation.{name}": f"observation_{j}" for j, name in enumerate(fields)} or {"observation": "observation"}
    with contextlib.closing(CalmFile(export.path)) as calm, h5py.File(calm, "w") as file:
        file["columns"] = ["observations", "actions", "rewards", "terminated"]
        file["num_episodes"] = len(store)
        for i, episode in enumerate(store.episodes):
            steps = episode.steps
            if fields:
                for j, name in enumerate(fields):
                    h5_dataset(export, file, f"observations_{i}_{j}", _rows(episode.observation[name][:steps]))
            else:
                h5_dataset(export, file, f"observations_{i}", _rows(episode.observation[:steps]))
            h5_dataset(export, file, f"actions_{i}", episode.action.reshape(steps, *(action_shape(action) or (1,))))
            h5_dataset(export, file, f"rewards_{i}", episode.reward.reshape(steps, 1))
            file[f"terminated_{i}"] = bool(episode.terminated)
            calm.check()
            export.progress(i + 1, len(store))
        file["version"] = "2.1"
        _set_env_id(file, store)
        set_attributes(file, {NAME: json.dumps(record(store, keys))})
        file.close()  # writes what HDF5 still holds
        calm.check()


def write_d3rlpy_v1(export: Export) -> None:
    """The flat arrays of ``MDPDataset.dump`` of version 1: flags as float32, discrete actions as int32 ``[N]``."""
    store, schema = export.store, export.store.schema
    action = one_action(export, "d3rlpy-v1")
    if not isinstance(schema.observation, Field):
        raise InvalidInput(
            f"the dataset has several observation fields ({', '.join(schema.observation)})", hint="d3rlpy 1 has one; export it as 'd3rlpy'"
        )
    _say_unkept(export)
    steps = store.episode_table["steps"]
    ends, count = np.cumsum(steps), int(steps.sum())
    terminated = (store.episode_table["flags"] & 1) != 0
    options = {"compression": "gzip", "shuffle": True, "chunks": True} if export.compress else {}
    with contextlib.closing(CalmFile(export.path)) as calm, h5py.File(calm, "w") as file:
        arrays = {
            "observations": file.create_dataset(
                "observations", (count, *(schema.observation.shape or (1,))), schema.observation.dtype, **options
            ),
            "actions": file.create_dataset("actions", (count, *action_shape(action)), "i4" if action.discrete else action.dtype, **options),
            "rewards": file.create_dataset("rewards", (count,), schema.reward.dtype, **options),
        }
        for i, episode in enumerate(store.episodes):
            stop = int(ends[i])
            start = stop - episode.steps
            arrays["observations"][start:stop] = _rows(episode.observation[: episode.steps])
            arrays["actions"][start:stop] = episode.action.reshape(episode.steps, *action_shape(action))
            arrays["rewards"][start:stop] = episode.reward
            calm.check()
            export.progress(i + 1, len(store))
        for key, which in (("terminals", ends[terminated]), ("episode_terminals", ends)):
            flags = np.zeros(count, np.float32)
            flags[which - 1] = 1
            file[key] = flags
        file["discrete_action"] = action.discrete
        file["version"] = "1.0"
        _set_env_id(file, store)
        set_attributes(file, {NAME: json.dumps(record(store, {"observation": "observation"}))})
        file.close()  # writes what HDF5 still holds
        calm.check()


def _rows(rows: np.ndarray) -> np.ndarray:
    """Rows as arrays: one number per step becomes ``[T, 1]``."""
    return rows[:, None] if rows.ndim == 1 else rows


def _say_unkept(export: Export) -> None:
    if export.store.schema.extra:
        export.message(f"not exported: {', '.join(export.store.schema.extra)} (d3rlpy has no place for them)")
    say_left_out(
        export,
        {key for i in range(len(export.store)) for key in export.store.episode_metadata(i)},
        "d3rlpy has no place for metadata of episodes",
    )
    flags = export.store.episode_table["flags"]
    kept = int(((flags & 2) == 0).sum())
    if kept:
        lost = int(((flags & 3) == 0).sum())
        export.message(
            f"d3rlpy keeps no final observations: those of {kept} episodes are left out, "
            f"and with them the last transition of {lost} truncated ones"
        )


def _set_env_id(file: h5py.File, store: EpisodeStore) -> None:
    if isinstance(store.metadata.get("env_id"), str):
        file.attrs["env_id"] = store.metadata["env_id"]
