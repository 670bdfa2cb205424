"""Export to Minari: a folder with the HDF5 backend, written with h5py alone. Minari 0.5.4 reads the result.

Minari keeps T+1 observations per episode. If the final one is missing, a terminated episode repeats its last observation (which no learner
uses) and a truncated episode ends one step earlier.
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
from offrl_store.errors import EmptyStore
from offrld.importers.calm_file import CalmFile
from offrld.importers.exporting import (
    CutCount,
    Export,
    h5_dataset,
    named_observations,
    one_action,
    say_left_out,
    set_attributes,
    usable_steps,
)
from offrld.importers.minari_space import COMPUTED, Layout

#: The lowest version of Minari with this layout. Minari refuses data of a newer version than its own, so every 0.5 reads this one.
MINARI_VERSION = "0.5.0"


def write(export: Export) -> None:
    """Write ``data/main_data.hdf5`` and ``data/metadata.json``."""
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
                # Minari also keeps the infos of the reset: the first of T+1 rows belongs to no step.
                h5_dataset(export, group, f"infos/{name}", np.concatenate([np.zeros_like(rows[:1]), rows[:steps]]))
            written, steps_in_all = written + 1, steps_in_all + steps
            calm.check()
            export.progress(number + 1, len(store))
        file.close()  # flushes HDF5
        calm.check()
    if not written:
        raise EmptyStore("no episode has two observations, which Minari needs", hint="export it as 'd4rl' or 'npz'")
    counts.say(export)
    say_left_out(export, left_out, "HDF5 cannot hold such metadata of episodes")
    size = (folder / "main_data.hdf5").stat().st_size
    (folder / "metadata.json").write_text(json.dumps(_minari_metadata(export, layout, written, steps_in_all, size)))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested objects to ``outer/inner`` keys, as Minari keeps them in attributes; missing values are left out."""
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
    """Return the id under which Minari finds the folder: its path below Minari's root, or else its name, with a version."""
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or os.path.expanduser("~/.minari/datasets"))
    path = Path(os.path.abspath(path))
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return name if re.search(r"-v\d+$", name) else f"{name}-v0"


def _environment_spec(env_id: Any) -> str | None:
    """Return gymnasium's specification of an environment as JSON; None if it is unknown. Ids with a module are not imported."""
    if not isinstance(env_id, str) or ":" in env_id:
        return None
    import gymnasium

    environments.register()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gymnasium.spec(env_id).to_json()
    except (gymnasium.error.Error, TypeError, ValueError):
        return None  # not registered here, or its arguments have no JSON form; the dataset is complete without it
