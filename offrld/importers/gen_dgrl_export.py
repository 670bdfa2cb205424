"""Exporting pixel episodes as gen_dgrl keeps them: a folder with one ``.npz`` per completed episode, named by the published grammar.

What the format has no place for: episodes that were cut (gen_dgrl writes completed ones only, and ``dones`` ends with 1), final
observations (row T is the first observation of the next episode there, too), extra fields.
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
    """One file per completed episode. Index, level and time come from the episode's metadata, else from its number, -1 and now."""
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
        episode, known = store.episodes[number], store.episode_metadata(number)
        following = number + 1 if number + 1 < len(store) else number
        last = store.episodes[following].observation[:1]
        ret = float(np.sum(episode.reward, dtype=np.float64))
        index, level = (known.get(key, least) for key, least in (("index", number), ("level_seed", -1)))
        name = f"{known.get('time', now)}_{index}_{episode.steps}_{level}_{ret:.2f}.npz"
        if "/" in name or (export.path / name).exists():  # two episodes of one name: the number distinguishes them
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
    """What ``np.savez_compressed`` makes, whose level is always 6: on frames of coinrun level 1 takes a quarter of the time (180 us a step
    instead of 720) for files half as large again."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
