"""Export to d3rlpy, version 1: flat arrays, as ``MDPDataset.dump`` writes them.

`d3rlpy_export` lists what d3rlpy has no place for.
"""

from __future__ import annotations

import contextlib
import json

import h5py
import numpy as np

from offrl_store import Field
from offrl_store.errors import InvalidInput
from offrld.importers.calm_file import CalmFile
from offrld.importers.d3rlpy_file import rows_of, say_unkept, set_env_id
from offrld.importers.described import NAME, record
from offrld.importers.exporting import Export, action_shape, one_action, set_attributes


def write(export: Export) -> None:
    """Write the flat arrays of version 1's ``MDPDataset.dump``: flags as float32, discrete actions as int32 ``[N]``."""
    store, schema = export.store, export.store.schema
    action = one_action(export, "d3rlpy-v1")
    if not isinstance(schema.observation, Field):
        raise InvalidInput(
            f"the dataset has several observation fields ({', '.join(schema.observation)})", hint="d3rlpy 1 has one; export it as 'd3rlpy'"
        )
    say_unkept(export)
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
            arrays["observations"][start:stop] = rows_of(episode.observation[: episode.steps])
            arrays["actions"][start:stop] = episode.action.reshape(episode.steps, *action_shape(action))
            arrays["rewards"][start:stop] = episode.reward
            calm.check()
            export.progress(i + 1, len(store))
        for key, stops in (("terminals", ends[terminated]), ("episode_terminals", ends)):
            flags = np.zeros(count, np.float32)
            flags[stops - 1] = 1
            file[key] = flags
        file["discrete_action"] = action.discrete
        file["version"] = "1.0"
        set_env_id(file, store)
        set_attributes(file, {NAME: json.dumps(record(store, {"observation": "observation"}))})
        file.close()  # flushes HDF5
        calm.check()
