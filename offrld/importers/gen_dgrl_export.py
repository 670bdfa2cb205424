"""Export pixel episodes as gen_dgrl keeps them: a folder with one ``.npz`` per completed episode, with the published file names.

The format has no place for truncated episodes (gen_dgrl writes completed ones only, so ``dones`` ends with 1), for final observations (row
T is the first observation of the next episode), and for extra fields.
"""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np

from offrl_store import Field
from offrl_store.errors import EmptyStore, InvalidInput
from offrld.importers.exporting import Export, one_action


def write(export: Export) -> None:
    """Write one file per completed episode. Index, level and time come from its metadata; without them they are its number, -1 and now."""
    store, schema = export.store, export.store.schema
    action = one_action(export, "gen_dgrl")
    if not action.discrete:
        raise InvalidInput("the dataset has continuous actions", hint="'gen_dgrl' holds discrete ones; export as 'd4rl' or 'store'")
    if not isinstance(schema.observation, Field) or schema.observation.dtype != np.uint8 or len(schema.observation.shape) != 3:
        raise InvalidInput(f"the observations are {schema.observation!r}", hint="'gen_dgrl' holds one uint8 image [C, H, W] per step")
    flags = store.episode_table["flags"]
    whole = np.flatnonzero(flags & 1).tolist()
    if not whole:
        raise EmptyStore(f"all {len(store)} episodes were cut", hint="'gen_dgrl' holds completed ones; export as 'store', or collect more")
    export.path.mkdir()
    now = time.strftime("%Y%m%dT%H%M%S")
    for number in whole:
        episode, metadata = store.episodes[number], store.episode_metadata(number)
        following = number + 1 if number + 1 < len(store) else number
        last = store.episodes[following].observation[:1]
        ret = float(np.sum(episode.reward, dtype=np.float64))
        index, level = (metadata.get(key, default) for key, default in (("index", number), ("level_seed", -1)))
        name = f"{metadata.get('time', now)}_{index}_{episode.steps}_{level}_{ret:.2f}.npz"
        if "/" in name or (export.path / name).exists():  # two episodes have the same name: use the number
            name = f"{now}_{number}_{episode.steps}_{level}_{ret:.2f}.npz"
        arrays = {
            "observations": np.concatenate([episode.observation[: episode.steps], last]).astype(np.float32),
            "actions": episode.action.astype(np.int64).reshape(-1, 1),
            "rewards": episode.reward.astype(np.float32).reshape(-1, 1),
            "dones": (np.arange(1, episode.steps + 1) == episode.steps).astype(np.float32),
        }
        _write(export.path / name, arrays, 6 if export.compress else 1)
        export.progress(number + 1, len(store))
    if len(whole) < len(store):
        export.message(f"{len(store) - len(whole)} cut episodes are left out: gen_dgrl's sets hold completed ones")
    if final := int((flags[whole] & 2 == 0).sum()):
        export.message(f"the final observations of {final} episodes are left out: the format has no place for them")
    if schema.extra:
        export.message(f"not exported: {', '.join(schema.extra)} (gen_dgrl has no place for them)")


def _write(path: Path, arrays: dict[str, np.ndarray], level: int) -> None:
    """Write a file as ``np.savez_compressed`` does, but with a choice of the compression level.

    NumPy always uses level 6. On frames of coinrun, level 1 takes a quarter of the time (180 us per step instead of 720), and the files are
    1.5 times as large.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
