"""Writing the layout of the Atari DQN replay data: epochs of four gzipped ``.npy`` files, for d4rl-atari, Dopamine's readers and ours.

The steps of all episodes follow each other, as a logging agent keeps them, and are cut into epochs of equal size, in the middle of episodes
too. The layout has no final observations, and no mark for an episode that was cut: only the last one may be, unless the cuts are to be
written as terminals (as Dopamine logs its time limit).
"""

from __future__ import annotations

import gzip
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from offrl.environments import games
from offrl_store import EpisodeStore
from offrl_store.disk import disk_errors, sync_folder
from offrl_store.errors import EmptyStore, InvalidInput

from .atari import ELEMENTS, logged_name

DTYPES = {"observation": np.dtype(np.uint8), "action": np.dtype(np.int32), "reward": np.dtype(np.float32), "terminal": np.dtype(np.uint8)}


def write_replay(
    store: EpisodeStore, root: str | os.PathLike[str], game: str, index: int = 1, *, first_epoch: int = 1, epochs: int = 1,
    bucket: bool = True, cuts_are_terminals: bool = False,
) -> list[Path]:  # fmt: skip
    """Writes a store of single frames ``[1, 84, 84]`` below ``root``; gives the files in order.

    Args:
        game: its name, ``space-invaders``; with ``index``, the run, it names the folder.
        first_epoch, epochs: the steps are cut into so many epochs, numbered from the first on; what does not fill an epoch is left out.
        bucket: the bucket's names (``GAME/INDEX/replay_logs/$store$_observation_ckpt.EPOCH.gz``), else d4rl-atari's.
        cuts_are_terminals: truncated episodes end with a terminal.

    Raises:
        InvalidInput: there is no such game, the frames have another form, or an episode but the last one was cut.
        EmptyStore: there are fewer steps than epochs.
        DiskFull: nothing of the epoch that was being written is left.
    """
    field, steps = store.schema.observation, store.step_count // max(1, epochs)
    if (
        isinstance(field, dict)
        or field.dtype != np.uint8
        or len(field.shape) != 3
        or field.shape[0] != 1
        or not store.schema.action.discrete
    ):
        raise InvalidInput(f"{store.path.name} holds no single grey frames with discrete actions", hint="collect it in offrld/GAME-v0")
    if steps < 1:
        raise EmptyStore(f"{store.step_count} steps make no {epochs} epochs", hint="give fewer epochs")
    folder = Path(root) / games.camel(games.check(game)) / str(index)
    rows, files = _rows(store, cuts_are_terminals), []
    for epoch in range(first_epoch, first_epoch + epochs):
        inner = folder / "replay_logs" if bucket else folder / str(epoch)
        names = {each: inner / (logged_name(each, epoch) if bucket else f"{each}.gz") for each in ELEMENTS}
        _write_epoch(rows, names, steps, field.shape[1:])
        files += names.values()
    return files


def _write_epoch(rows: Iterator[dict[str, bytes]], names: dict[str, Path], steps: int, size: tuple[int, ...]) -> None:
    folder = names["observation"].parent
    with disk_errors(folder), ExitStack() as opened:
        folder.mkdir(parents=True, exist_ok=True)
        partial = {each: path.with_name(f".{path.name}.{secrets.token_hex(4)}") for each, path in names.items()}
        for path in partial.values():
            opened.callback(path.unlink, missing_ok=True)
        streams: dict[str, BinaryIO] = {}
        for each, path in partial.items():
            streams[each] = opened.enter_context(gzip.open(path, "wb", compresslevel=6))
            shape = (steps, *size) if each == "observation" else (steps,)
            header = {"descr": np.lib.format.dtype_to_descr(DTYPES[each]), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(streams[each], header)
        for _ in range(steps):
            row = next(rows)
            for each, stream in streams.items():
                stream.write(row[each])
        for stream in streams.values():
            stream.close()
        for each, path in names.items():
            os.replace(partial[each], path)
        sync_folder(folder)


def _rows(store: EpisodeStore, cuts_are_terminals: bool) -> Iterator[dict[str, bytes]]:
    """Every step's bytes, episode after episode."""
    for number, episode in enumerate(store.episodes):
        if not (episode.terminated or cuts_are_terminals or number == len(store) - 1):
            raise InvalidInput(f"episode {number} was cut, which the files cannot say", hint="write cuts as terminals, or leave it out")
        ends = episode.terminated or cuts_are_terminals
        for t in range(episode.steps):
            yield {
                "observation": np.ascontiguousarray(episode.observation[t]).tobytes(),
                "action": np.int32(episode.action[t]).tobytes(), "reward": np.float32(episode.reward[t]).tobytes(),
                "terminal": np.uint8(ends and t == episode.steps - 1).tobytes(),
            }  # fmt: skip
