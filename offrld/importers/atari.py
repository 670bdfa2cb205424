"""Import the Atari DQN replay data: epochs of four gzipped ``.npy`` files, named as in Google's bucket or as d4rl-atari names them.

The bucket holds ``GAME/INDEX/replay_logs/$store$_ELEMENT_ckpt.EPOCH.gz``; d4rl-atari renames the files to ``GAME/INDEX/EPOCH/ELEMENT.gz``.
Elements: ``observation`` uint8 ``[N, 84, 84]`` (one grey frame per step, N = 1,000,000), ``action`` int32 ``[N]``, ``reward`` float32
``[N]``, ``terminal`` uint8 ``[N]`` (1 at game over). A folder with several epochs is joined in their order.

Each frame is stored once, channel first. Stacks are made while sampling (``frame_stack=4``) or as views (`offrl_store.FrameStacks`). A file
starts and ends in the middle of an episode. Files are not joined across that border, so a stack never mixes frames of two files. The path
names the game, and the game's environment gives the number of actions.

Source: Agarwal et al. 2020, "An Optimistic Perspective on Offline Reinforcement Learning".
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from offrl.environments import atari_id, games
from offrl_store import Episode, Field, Schema
from offrl_store.errors import InvalidInput
from offrld.importers.columns import Column
from offrld.importers.flat import FlatArrays, flat_source
from offrld.importers.npz import Member
from offrld.importers.source import BadEpisodes, Format, Source, SourceEpisode, make_metadata
from offrld.importers.spaces import ActionSpace, probe_environment

ELEMENTS = ("observation", "action", "reward", "terminal")
EPOCH_STEPS = 1_000_000  # of the published files
NEEDS = "a folder with observation.gz, action.gz, reward.gz and terminal.gz, or with $store$_observation_ckpt.N.gz and so on"
LOGGED = re.compile(r"\$store\$_observation_ckpt\.(\d+)\.gz")
BEGINS = "the first episode is incomplete: it began before the first step of the data"


def logged_name(element: str, epoch: int) -> str:
    """Return the name of a file in the bucket."""
    return f"$store$_{element}_ckpt.{epoch}.gz"


@dataclass(frozen=True)
class Epoch:
    """The four files of an epoch, and what their path states: folder name of the game, index of the run, number of the epoch."""

    files: dict[str, Path]
    game: str = ""
    index: int | None = None
    number: int | None = None

    @property
    def env_id(self) -> str | None:
        game = games.from_camel(self.game)
        return atari_id(game) if game is not None else None

    def place(self) -> dict[str, Any]:
        """Return game, index and epoch for the metadata; {} if the path does not state them."""
        return {} if self.index is None else {"game": self.game, "index": self.index, "epoch": self.number}


class GzipFiles:
    """Opens the files of an epoch as an archive opens its members."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    def open(self, name: str, /) -> IO[bytes]:
        return cast(IO[bytes], gzip.open(self._files[name], "rb"))


def epochs_in(path: Path) -> list[Epoch]:
    """Return the epochs of a folder in their order; [] if it holds none.

    The folder is one epoch, a run (``GAME/INDEX``), a ``replay_logs`` folder of the bucket, or a mirror that holds a single run.
    """
    if (path / "observation.gz").is_file():
        return [_renamed(path)]
    for folder in (path, path / "replay_logs"):
        found = [LOGGED.fullmatch(each.name) for each in folder.iterdir()] if folder.is_dir() else []
        numbers = sorted(int(match[1]) for match in found if match)
        if numbers:
            game, index = (folder.resolve().parts[-3:-1] + ("", ""))[:2]
            files = [{each: folder / logged_name(each, number) for each in ELEMENTS} for number in numbers]
            known = index.isdecimal()
            return [
                Epoch(each, game if known else "", int(index) if known else None, number)
                for each, number in zip(files, numbers, strict=True)
            ]
    inner = [each for each in path.iterdir() if each.name.isdecimal() and (each / "observation.gz").is_file()] if path.is_dir() else []
    if inner:
        return [_renamed(each) for each in sorted(inner, key=lambda each: int(each.name))]
    runs = [run for each in _folders(path) if games.from_camel(each.name) for run in _folders(each) if run.name.isdecimal()]
    return epochs_in(runs[0]) if len(runs) == 1 else []


def _folders(path: Path) -> list[Path]:
    return [each for each in path.iterdir() if each.is_dir()] if path.is_dir() else []


def _renamed(path: Path) -> Epoch:
    files = {each: path / f"{each}.gz" for each in ELEMENTS}
    game, index, number = (path.resolve().parts[-3:] + ("", "", ""))[:3]
    known = index.isdecimal() and number.isdecimal()
    return Epoch(files, game, int(index), int(number)) if known else Epoch(files)


def detect(path: Path) -> bool:
    return path.is_dir() and bool(epochs_in(path))


def open_folder(path: Path, bad: BadEpisodes, fraction: float = 1.0, seed: int = 0) -> Source:
    """Open the epochs of a folder. Raises `InvalidInput` if a file is missing or damaged, or if its dtype or shape is wrong."""
    epochs = epochs_in(path)
    if not epochs:
        raise InvalidInput(f"{path.resolve().name} holds no observation.gz", hint=f"needed: {NEEDS}")
    return open_epochs(epochs, bad, fraction, seed)


def open_epochs(epochs: Sequence[Epoch], bad: BadEpisodes, fraction: float = 1.0, seed: int = 0) -> Source:
    """Open epochs, joined in the given order.

    Args:
        fraction: share of each epoch's steps to import, as episodes drawn at random. They keep the order of the file; the last one drawn
            is cut to reach the exact number of steps.
        seed: seed of the draw.

    Raises `InvalidInput`.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
        raise InvalidInput(f"fraction is {fraction!r}", hint="pass the share of each epoch's steps: above 0, at most 1")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InvalidInput(f"seed is {seed!r}", hint="pass a whole number from 0")
    messages: list[str] = []
    env_id = epochs[0].env_id
    space = probe_environment(env_id, epochs[0].files["observation"].parent.name, messages).space  # once for all epochs
    if len(epochs) == 1 and fraction == 1:
        return _open_epoch(epochs[0], bad, space, [*messages, BEGINS])
    with ExitStack() as resources:
        sources = []
        for epoch in epochs:
            sources.append(resources.enter_context(_open_epoch(epoch, BadEpisodes(bad.skip, bad.common), space, [BEGINS])))
        shapes = {str(each.schema.observation.shape): epoch for each, epoch in zip(sources, epochs, strict=True)}
        if len(shapes) > 1:
            raise InvalidInput(f"frames of {' and '.join(shapes)} in one folder", hint="join epochs of the same form")
        drawn = [_drawn(epoch, fraction, seed) if fraction < 1 else None for epoch in epochs]
        first, last = epochs[0], max(int(each.schema.action.n) for each in sources)
        place = first.place()
        if place:
            place = {"game": place["game"], "index": place["index"], "epochs": [each.number for each in epochs]}
        if fraction < 1:
            place |= {"fraction": fraction, "seed": seed}
        metadata = make_metadata(
            env_id=env_id,
            bounds=sources[0].metadata["bounds"],
            format="atari",
            file=first.files["observation"].parent.name,
            attributes={},
            **place,
        )
        schema = Schema(
            sources[0].schema.observation, Field("int64", (), low=0, high=last - 1), sources[0].schema.reward, metadata=metadata
        )
        messages.append(f"{len(epochs)} epochs joined" + (f": {', '.join(str(each.number) for each in epochs)}" if place else ""))
        messages += dict.fromkeys(line for each in sources for line in each.messages)
        count = sum(each.count or 0 if sizes is None else len(sizes) for each, sizes in zip(sources, drawn, strict=True))
        source = Source("atari", schema, _joined(sources, epochs, drawn, bad), metadata, count, bad, messages)
        source.resources = resources.pop_all()
        return source


def _joined(
    sources: list[Source], epochs: Sequence[Epoch], drawn: Sequence[dict[int, int] | None], bad: BadEpisodes
) -> Iterator[SourceEpisode]:
    """Yield the episodes of all epochs with their epoch in the metadata: the drawn ones, cut to their size; all if ``drawn`` holds None."""
    before = 0
    for source, epoch, sizes in zip(sources, epochs, drawn, strict=True):
        total = (source.count or 0) + len(source.bad.skipped)
        for episode in source.episodes:
            steps = episode.steps if sizes is None else sizes.get(episode.number, 0)
            if steps:
                yield SourceEpisode(
                    **_cut(episode, steps), number=before + episode.number, metadata={"epoch": epoch.number} if epoch.number else None
                )
        for number, skipped in source.bad.skipped.items():
            bad.skipped[before + number] = replace(skipped, episode=before + number)
        before += total
        source.close()


def _cut(episode: Episode, steps: int) -> dict[str, Any]:
    """Return the first ``steps`` of an episode, with the observation after them if the episode has it."""
    whole = steps == episode.steps
    return {
        "observation": episode.observation if whole else episode.observation[: steps + 1],
        "action": episode.action[:steps],
        "reward": episode.reward[:steps],
        "terminated": episode.terminated and whole,
    }


def _drawn(epoch: Epoch, fraction: float, seed: int) -> dict[int, int]:
    """Draw episodes of an epoch until they hold ``fraction`` of its steps. Returns their number -> the steps to take."""
    terminal = Member(GzipFiles(epoch.files), "terminal").whole().reshape(-1)
    ends = np.flatnonzero(terminal) + 1
    stops = ends if len(ends) and ends[-1] == len(terminal) else np.append(ends, len(terminal))
    lengths, left, sizes = np.diff(stops, prepend=0), int(len(terminal) * fraction), {}
    for number in np.random.default_rng([seed, epoch.number or 0]).permutation(len(lengths)).tolist():
        if left <= 0:
            break
        sizes[number] = min(int(lengths[number]), left)
        left -= sizes[number]
    return sizes


def _open_epoch(epoch: Epoch, bad: BadEpisodes, space: ActionSpace | None, messages: list[str]) -> Source:
    name = epoch.files["observation"].parent.resolve().name
    missing = [file.name for file in epoch.files.values() if not file.is_file()]
    if missing:
        raise InvalidInput(f"{name} holds no {', '.join(missing)}", hint=f"needed: {NEEDS}")
    with ExitStack() as resources:
        columns: dict[str, Column] = {}
        for each, file in epoch.files.items():
            try:
                member = Member(GzipFiles(epoch.files), each)
            except (OSError, EOFError, ValueError, zlib.error) as error:
                raise InvalidInput(f"{name}: {file.name} cannot be read: {error}", hint="the file is damaged; download it again") from None
            resources.callback(member.close)
            if each == "observation":
                if len(member.shape) != 3 or member.dtype != "uint8":
                    raise InvalidInput(f"{name}: {file.name} is {member.dtype} {list(member.shape)}", hint="it holds uint8 [N, 84, 84]")
                member.shape = (member.shape[0], 1, *member.shape[1:])
            columns[each] = Column(name, each, member)
        arrays = FlatArrays(columns["observation"], columns["action"], columns["reward"], columns["terminal"])
        source = flat_source(
            arrays, bad, format="atari", env_id=epoch.env_id, space=space, attributes={}, messages=messages, discrete=True, **epoch.place()
        )
        source.resources = resources.pop_all()
        return source


FORMAT = Format(
    "atari",
    "folder of epochs of the Atari DQN replay data",
    NEEDS,
    detect,
    open_folder,
    {"fraction": "share of each epoch's steps, whole episodes drawn at random (0.01)", "seed": "seed of the draw"},
)
