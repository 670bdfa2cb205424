"""Run by the Python of Minari, TorchRL and d3rlpy: reads what we exported, writes it again with its own writer.

``peer_a.py LIBRARY ROOT NAMES``: for each name ``ROOT/NAME`` is read; what was seen goes to ``ROOT/NAME.npz``, the copy to
``ROOT/NAME-back``. A line of JSON per name says what failed.
"""

import json
import os
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")


def flat(value, prefix):
    if isinstance(value, dict):
        return {key: each for name, inner in value.items() for key, each in flat(inner, f"{prefix}/{name}").items()}
    return {prefix: np.asarray(value)}


def minari(root, name):
    import minari as library
    from minari.data_collector import EpisodeBuffer

    data, arrays, buffers = library.load_dataset(name), {}, []
    for i, episode in enumerate(data.iterate_episodes()):
        arrays |= flat(episode.observations, f"{i}/observation") | {f"{i}/action": episode.actions, f"{i}/reward": episode.rewards}
        arrays |= {f"{i}/terminated": episode.terminations[-1], f"{i}/truncated": episode.truncations[-1]}
        for t in range(len(episode.rewards) + 1):
            rows = episode.observations
            seen = {key: each[t] for key, each in rows.items()} if isinstance(rows, dict) else rows[t]
            assert data.observation_space.contains(seen), f"{data.observation_space} does not contain {seen!r}"
        for t in range(len(episode.rewards)):
            assert data.action_space.contains(episode.actions[t]), f"{data.action_space} does not contain {episode.actions[t]!r}"
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=episode.observations,
                actions=episode.actions,
                rewards=list(episode.rewards),
                terminations=list(episode.terminations),
                truncations=list(episode.truncations),
                infos=episode.infos or {},
            )
        )
    for form in ("hdf5", "parquet"):
        library.create_dataset_from_buffers(
            name.replace("-v0", f"-{form}-v0"),
            buffers,
            env=None,
            observation_space=data.observation_space,
            action_space=data.action_space,
            data_format=form,
            author="a",
            description="d",
            algorithm_name="r",
            code_permalink="c",
            author_email="e",
        )
    return arrays


def torchrl(root, name):
    from torchrl.data import LazyMemmapStorage, ReplayBuffer

    count = json.loads((root / name / "storage" / "storage_metadata.json").read_text())["len"]
    buffer = ReplayBuffer(storage=LazyMemmapStorage(count))
    buffer.loads(root / name)
    rows = buffer[:]
    larger = ReplayBuffer(storage=LazyMemmapStorage(count + 7))
    larger.extend(rows)
    larger.dumps(root / f"{name}-back")
    return {"/".join(key) if isinstance(key, tuple) else key: value.numpy() for key, value in rows.items(True, True)}


def d3rlpy(root, name):
    from d3rlpy.dataset import InfiniteBuffer, ReplayBuffer

    with open(root / name, "rb") as file:
        buffer = ReplayBuffer.load(file, InfiniteBuffer())
    arrays = {}
    for i, episode in enumerate(buffer.episodes):
        seen, key = episode.observations, f"{i}/observation"
        arrays |= {f"{key}/{j}": each for j, each in enumerate(seen)} if isinstance(seen, (list, tuple)) else {key: seen}
        arrays |= {f"{i}/action": episode.actions, f"{i}/reward": episode.rewards, f"{i}/terminated": np.asarray(episode.terminated)}
    buffer.sample_transition_batch(4)
    with open(root / f"{name}-back", "w+b") as file:
        buffer.dump(file)
    return arrays


def main():
    library, root, names = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    for name in names:
        try:
            np.savez(root / f"{name}.npz", **globals()[library](root, name))
            print("RESULT", json.dumps({name: ""}), flush=True)
        except Exception:
            print("RESULT", json.dumps({name: traceback.format_exc()[-1500:]}), flush=True)


main()
