"""The DQN replay data by name: the files of an epoch, from d4rl-atari's cache, a mirror folder, or the bucket."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from offrl.environments import games
from offrl.named import LAST_EPOCH, Named
from offrl_store.errors import InvalidInput
from offrld.datasets import places
from offrld.datasets.download import Progress, fetch
from offrld.importers.atari import ELEMENTS, Epoch, logged_name, open_epochs
from offrld.importers.source import BadEpisodes, Source

FRACTION = 0.01  # share of each epoch's steps in ``GAME-transitions-vN``


def open_named(
    named: Named,
    bad: BadEpisodes,
    message: Callable[[str], None],
    progress: Progress | None = None,
    fraction: float | None = None,
    seed: int = 0,
    epochs: list[int] | None = None,
) -> Source:
    """Open the episodes of a name.

    Args:
        fraction: share of each epoch's steps; by default 1, for ``GAME-transitions-vN`` 0.01.
        seed: seed of the draw of episodes for a fraction.
        epochs: several epochs (1 to 50), joined in this order; they replace the epoch of the name.

    Raises `InvalidInput`, `DownloadFailed`, `DiskFull`.
    """
    numbers = epochs if epochs is not None else [named.epoch] if named.epoch else list(range(1, LAST_EPOCH + 1))
    if not isinstance(numbers, list) or not numbers or any(type(each) is not int or not 1 <= each <= LAST_EPOCH for each in numbers):
        raise InvalidInput(f"epochs is {numbers!r}", hint=f"pass a list of epochs, 1 to {LAST_EPOCH}")
    if fraction is None:
        fraction = 1.0 if named.epoch else FRACTION
    files = [find_epoch(named.game, named.index, number, message, progress) for number in numbers]
    return open_epochs(files, bad, fraction, seed)


def find_epoch(game: str, index: int, epoch: int, message: Callable[[str], None], progress: Progress | None = None) -> Epoch:
    """Find the files of an epoch: all four in the cache, or in a mirror folder, or downloaded into the cache."""
    name = games.camel(games.check(game))
    cache, source = places.d4rl_folder() / name / str(index) / str(epoch), places.atari_source()
    files = {each: cache / f"{each}.gz" for each in ELEMENTS}
    if not all(file.is_file() for file in files.values()):
        if not places.is_address(source):
            files = _mirrored(Path(os.path.expanduser(source)), name, index, epoch)
        else:
            places.check_downloads(f"epoch {epoch} of {name}, run {index}", cache)
            for each, file in files.items():
                url = f"{source.rstrip('/')}/{name}/{index}/replay_logs/{quote(logged_name(each, epoch), safe='$')}"
                if not file.is_file():
                    message(f"downloading {url}")
                    fetch(url, file, progress=progress)
    return Epoch(files, name, index, epoch)


def _mirrored(folder: Path, name: str, index: int, epoch: int) -> dict[str, Path]:
    """Return the files in a folder that mirrors the bucket or the cache. Raises `InvalidInput`."""
    run = folder / name / str(index)
    for files in (
        {each: run / "replay_logs" / logged_name(each, epoch) for each in ELEMENTS},
        {each: run / str(epoch) / f"{each}.gz" for each in ELEMENTS},
    ):
        if all(file.is_file() for file in files.values()):
            return files
    raise InvalidInput(
        f"{folder} holds no epoch {epoch} of {name}, run {index}", hint=f"put its files into {run}/replay_logs, named as in the bucket"
    )
