"""Write the layout of the Atari DQN replay data: epochs of four gzipped ``.npy`` files that d4rl-atari, Dopamine and our importer read.

The steps of all episodes form one sequence, as in an agent's log. It is cut into epochs of equal size, also in the middle of an episode.
The layout holds no final observations and cannot mark a truncated episode, so only the last episode may be truncated. `write_replay`
refuses other truncated episodes unless it may write them as terminals, as Dopamine does at its time limit; an export leaves them out.
"""

from __future__ import annotations

import gzip
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from offrl.environments import games
from offrl_store import EpisodeStore, Field
from offrl_store.disk import disk_errors, sync_folder
from offrl_store.errors import EmptyStore, InvalidInput
from offrld.importers.atari import ELEMENTS, EPOCH_STEPS, logged_name
from offrld.importers.exporting import Export

DTYPES: dict[str, np.dtype] = {
    "observation": np.dtype(np.uint8),
    "action": np.dtype(np.int32),
    "reward": np.dtype(np.float32),
    "terminal": np.dtype(np.uint8),
}


def write_replay(
    store: EpisodeStore,
    root: str | os.PathLike[str],
    game: str,
    index: int = 1,
    *,
    first_epoch: int = 1,
    epochs: int = 1,
    bucket: bool = True,
    cuts_are_terminals: bool = False,
) -> list[Path]:
    """Write a store of single frames ``[1, 84, 84]`` below ``root``. Returns the paths of the files in order.

    Args:
        game: name of the game, such as ``space-invaders``. The folder is ``GAME/INDEX``.
        index: number of the run.
        first_epoch: number of the first epoch.
        epochs: how many epochs to write. Steps that do not fill an epoch are left out.
        bucket: use the bucket's names (``GAME/INDEX/replay_logs/$store$_observation_ckpt.EPOCH.gz``) instead of d4rl-atari's.
        cuts_are_terminals: write the end of a truncated episode as a terminal.

    Raises:
        InvalidInput: the game is unknown, the observations are not such frames, or an episode other than the last one is truncated.
        EmptyStore: there are fewer steps than epochs.
        DiskFull: the disk is full; no file of the unfinished epoch is left.
    """
    _check_frames(store)
    steps = store.step_count // max(1, epochs)
    if steps < 1:
        raise EmptyStore(f"{store.step_count} steps make no {epochs} epochs", hint="give fewer epochs")
    for number, episode in enumerate(store.episodes[: len(store) - 1]):
        if not (episode.terminated or cuts_are_terminals):
            raise InvalidInput(f"episode {number} was cut, which the files cannot say", hint="write cuts as terminals, or leave it out")
    folder = Path(root) / games.camel(games.check(game)) / str(index)
    rows = _rows(store, range(len(store)), cuts_are_terminals)
    files: list[Path] = []
    for epoch in range(first_epoch, first_epoch + epochs):
        inner = folder / "replay_logs" if bucket else folder / str(epoch)
        names = {each: inner / (logged_name(each, epoch) if bucket else f"{each}.gz") for each in ELEMENTS}
        _write_epoch(rows, names, steps, store.schema.observation.shape[1:])
        files += names.values()
    return files


def write(export: Export) -> None:
    """Write all steps in epochs of a million, under the names of the bucket.

    If the metadata name the game, the files lie below ``GAME/INDEX/replay_logs``, a mirror that d4rl-atari and our importer read; otherwise
    in the folder itself. The index and the number of the first epoch are those of the dataset's source, or 1.
    """
    store, source = export.store, export.store.metadata.get("source") or {}
    _check_frames(store)
    flags = store.episode_table["flags"]
    kept = [number for number in range(len(store)) if flags[number] & 1 or number == len(store) - 1]
    left = int(store.episode_table["steps"][kept].sum())
    game = games.from_camel(str(source.get("game", ""))) or games.of_id(store.metadata.get("env_id"))
    index, epoch = (source[key] if isinstance(source.get(key), int) else 1 for key in ("index", "epoch"))
    folder = export.path if game is None else export.path / games.camel(game) / str(index) / "replay_logs"
    rows = _rows(store, kept, False, lambda done: export.progress(done, len(store)))
    if left % EPOCH_STEPS:
        export.message(f"the last epoch holds {left % EPOCH_STEPS:,} steps: d4rl-atari itself takes epochs of {EPOCH_STEPS:,} only")
    while left:
        steps = min(left, EPOCH_STEPS)
        names = {each: folder / logged_name(each, epoch) for each in ELEMENTS}
        _write_epoch(rows, names, steps, store.schema.observation.shape[1:], level=6 if export.compress else 1)
        left, epoch = left - steps, epoch + 1
    if len(kept) < len(store):
        export.message(f"{len(store) - len(kept)} cut episodes are left out: the format marks the end of completed ones only")
    if final := int((flags[kept] & 2 == 0).sum()):
        export.message(f"the final observations of {final} episodes are left out: the format has no place for them")
    if game is None:
        export.message("the dataset does not name its game: the files are in the folder itself, not below GAME/INDEX")
    if store.schema.extra:
        export.message(f"not exported: {', '.join(store.schema.extra)} (the replay data have no place for them)")


def _check_frames(store: EpisodeStore) -> None:
    """Raise `InvalidInput` if the steps are not single grey frames with discrete actions."""
    field, action = store.schema.observation, store.schema.action
    frames = isinstance(field, Field) and field.dtype == np.uint8 and len(field.shape) == 3 and field.shape[0] == 1
    if not (frames and isinstance(action, Field) and action.discrete):
        raise InvalidInput(
            f"{store.path.name} holds no single grey frames with discrete actions: the observations are {field!r}",
            hint="collect it in offrld/GAME-v0",
        )


def _write_epoch(rows: Iterator[dict[str, bytes]], names: dict[str, Path], steps: int, size: tuple[int, ...], level: int = 6) -> None:
    folder = names["observation"].parent
    with disk_errors(folder), ExitStack() as opened:
        folder.mkdir(parents=True, exist_ok=True)
        partial = {each: path.with_name(f".{path.name}.{secrets.token_hex(4)}") for each, path in names.items()}
        for path in partial.values():
            opened.callback(path.unlink, missing_ok=True)
        streams: dict[str, gzip.GzipFile] = {}
        for each, path in partial.items():
            streams[each] = opened.enter_context(gzip.open(path, "wb", compresslevel=level))
            shape = (steps, *size) if each == "observation" else (steps,)
            header: dict[str, Any] = {"descr": np.lib.format.dtype_to_descr(DTYPES[each]), "fortran_order": False, "shape": shape}
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


def _rows(
    store: EpisodeStore, numbers: Iterable[int], cuts_are_terminals: bool, progress: Callable[[int], None] | None = None
) -> Iterator[dict[str, bytes]]:
    """Yield the bytes of every step of the episodes ``numbers``. Calls ``progress`` with the number of the next episode after each one."""
    for number in numbers:
        episode = store.episodes[number]
        ends = episode.terminated or cuts_are_terminals
        for t in range(episode.steps):
            yield {
                "observation": np.ascontiguousarray(episode.observation[t]).tobytes(),
                "action": np.int32(episode.action[t]).tobytes(),
                "reward": np.float32(episode.reward[t]).tobytes(),
                "terminal": np.uint8(ends and t == episode.steps - 1).tobytes(),
            }
        if progress is not None:
            progress(number + 1)
