"""Exporting pixel episodes as gen_dgrl keeps them: a folder with one ``.npz`` per episode, named by the published grammar.

What the format has no place for: whether an episode was terminated or cut (``dones`` ends with 1 either way), final observations (row T
is the first observation of the next episode there, too), extra fields.
"""

from __future__ import annotations

import time

import numpy as np

from offrl_store import Field
from offrl_store.errors import InvalidInput

from .exporting import Export, one_action


def write_gen_dgrl(export: Export) -> None:
    """One file per episode. Index, level and time come from the episode's metadata, else from its number, -1 and now."""
    store, schema = export.store, export.store.schema
    action = one_action(export, "gen_dgrl")
    if not action.discrete:
        raise InvalidInput("the dataset has continuous actions", hint="'gen_dgrl' holds discrete ones; export as 'd4rl' or 'store'")
    if not isinstance(schema.observation, Field) or schema.observation.dtype != np.uint8 or len(schema.observation.shape) != 3:
        raise InvalidInput(f"the observations are {schema.observation!r}", hint="'gen_dgrl' holds one uint8 image [C, H, W] per step")
    export.path.mkdir()
    now = time.strftime("%Y%m%dT%H%M%S")
    for number, episode in enumerate(store.episodes):
        known = store.episode_metadata(number)
        following = number + 1 if number + 1 < len(store) else number
        last = store.episodes[following].observation[:1]
        ret = float(np.sum(episode.reward, dtype=np.float64))
        index, level = (known.get(key, least) for key, least in (("index", number), ("level_seed", -1)))
        name = f"{known.get('time', now)}_{index}_{episode.steps}_{level}_{ret:.2f}.npz"
        if "/" in name or (export.path / name).exists():  # written down twice: its number tells it from the other
            name = f"{now}_{number}_{episode.steps}_{level}_{ret:.2f}.npz"
        np.savez_compressed(
            export.path / name,
            observations=np.concatenate([episode.observation[: episode.steps], last]).astype(np.float32),
            actions=episode.action.astype(np.int64).reshape(-1, 1),
            rewards=episode.reward.astype(np.float32).reshape(-1, 1),
            dones=(np.arange(1, episode.steps + 1) == episode.steps).astype(np.float32),
        )
        export.progress(number + 1, len(store))
    flags = store.episode_table["flags"]
    cut, final = int((flags & 1 == 0).sum()), int((flags & 2 == 0).sum())
    if cut:
        export.message(f"{cut} truncated episodes end like terminated ones: the format does not tell them apart")
    if final:
        export.message(f"the final observations of {final} episodes are left out: the format has no place for them")
    if schema.extra:
        export.message(f"not exported: {', '.join(schema.extra)} (gen_dgrl has no place for them)")
