"""Export to d3rlpy, version 2 (layout 2.1), with h5py alone; d3rlpy 2.8 reads the result.

d3rlpy keeps T observations per episode. Final observations are left out, so a truncated episode loses its last transition. d3rlpy has no
place for extra fields and for metadata of episodes.
"""

from __future__ import annotations

import contextlib
import json

import h5py

from offrl_store import Field
from offrld.importers.calm_file import CalmFile
from offrld.importers.d3rlpy_file import rows_of, say_unkept, set_env_id
from offrld.importers.described import NAME, record
from offrld.importers.exporting import Export, action_shape, h5_dataset, named_observations, one_action, set_attributes


def write(export: Export) -> None:
    """Write layout 2.1 as ``ReplayBuffer.dump`` does: arrays per episode, and several observation fields as a tuple."""
    store, schema = export.store, export.store.schema
    action = one_action(export, "d3rlpy")
    fields = [] if isinstance(schema.observation, Field) else list(schema.observation)
    if fields:
        export.message(f"the observation fields {', '.join(fields)} become a tuple in this order")
    numbers = [name or "observation" for name, each in named_observations(schema.observation).items() if each.shape == ()]
    if numbers:
        export.message(f"{', '.join(numbers)}: one number per step, written as rows of one number, which d3rlpy needs")
    say_unkept(export)
    keys = {f"observation.{name}": f"observation_{j}" for j, name in enumerate(fields)} or {"observation": "observation"}
    with contextlib.closing(CalmFile(export.path)) as calm, h5py.File(calm, "w") as file:
        file["columns"] = ["observations", "actions", "rewards", "terminated"]
        file["num_episodes"] = len(store)
        for i, episode in enumerate(store.episodes):
            steps = episode.steps
            if fields:
                for j, name in enumerate(fields):
                    h5_dataset(export, file, f"observations_{i}_{j}", rows_of(episode.observation[name][:steps]))
            else:
                h5_dataset(export, file, f"observations_{i}", rows_of(episode.observation[:steps]))
            h5_dataset(export, file, f"actions_{i}", episode.action.reshape(steps, *(action_shape(action) or (1,))))
            h5_dataset(export, file, f"rewards_{i}", episode.reward.reshape(steps, 1))
            file[f"terminated_{i}"] = bool(episode.terminated)
            calm.check()
            export.progress(i + 1, len(store))
        file["version"] = "2.1"
        set_env_id(file, store)
        set_attributes(file, {NAME: json.dumps(record(store, keys))})
        file.close()  # flushes HDF5
        calm.check()
