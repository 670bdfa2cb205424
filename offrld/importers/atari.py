"""Atari: a folder of the DQN replay data as d4rl-atari keeps it, ``GAME/INDEX/EPOCH`` with four gzipped ``.npy`` files.

``observation.gz`` uint8 ``[N, 84, 84]`` (one grey frame per step, N a million), ``action.gz`` int32 ``[N]``, ``reward.gz`` float32 ``[N]``,
``terminal.gz`` uint8 ``[N]`` (1 at game over). Frames are stored once, channel first: stacks are made while sampling
(``frame_stack=4``), or as views (`offrl_store.FrameStacks`). A file begins and ends in the middle of an episode. The folder's place names
the game, and with it the environment, whose number of actions is that of the data. Agarwal et al. 2020, "An Optimistic Perspective on
Offline Reinforcement Learning".
"""

from __future__ import annotations

import gzip
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from offrl.environments import atari_id, games
from offrl_store.errors import InvalidInput

from .columns import Column
from .flat import FlatArrays, flat_source
from .npz import Member
from .source import BadEpisodes, Format, Source
from .spaces import probe_environment

ELEMENTS = ("observation", "action", "reward", "terminal")
NEEDS = "a folder with observation.gz, action.gz, reward.gz and terminal.gz"


class GzipFolder:
    """Opens the files of a folder as an archive opens its members."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, name: str) -> BinaryIO:
        return gzip.open(self._path / name, "rb")


def detect(path: Path) -> bool:
    return path.is_dir() and all((path / f"{name}.gz").is_file() for name in ELEMENTS)


def open_folder(path: Path, bad: BadEpisodes) -> Source:
    """Opens one epoch; raises `InvalidInput` when a file is missing, damaged, or of another form."""
    name = path.resolve().name
    missing = [f"{each}.gz" for each in ELEMENTS if not (path / f"{each}.gz").is_file()]
    if missing:
        raise InvalidInput(f"{name} holds no {', '.join(missing)}", hint=f"needed: {NEEDS}")
    with ExitStack() as resources:
        columns: dict[str, Column] = {}
        for each in ELEMENTS:
            try:
                member = Member(GzipFolder(path), f"{each}.gz")
            except (OSError, EOFError, ValueError, zlib.error) as error:
                raise InvalidInput(f"{name}: {each}.gz cannot be read: {error}", hint="the file is damaged; download it again") from None
            resources.callback(member.close)
            if each == "observation":
                if len(member.shape) != 3 or member.dtype != "uint8":
                    raise InvalidInput(f"{name}: observation.gz is {member.dtype} {list(member.shape)}", hint="it holds uint8 [N, 84, 84]")
                member.shape = (member.shape[0], 1, *member.shape[1:])
            columns[each] = Column(name, each, member)
        arrays = FlatArrays(columns["observation"], columns["action"], columns["reward"], columns["terminal"])
        messages = ["the first episode is the rest of one that began before: the data begin in the middle of it"]
        place = _place(path)
        game = games.from_camel(place.get("game", ""))
        env_id = atari_id(game) if game is not None else None
        space = probe_environment(env_id, name, messages).space
        source = flat_source(
            arrays, bad, format="atari", env_id=env_id, space=space, attributes={}, messages=messages, discrete=True, **place
        )  # fmt: skip
        source.resources = resources.pop_all()
        return source


def _place(path: Path) -> dict[str, Any]:
    """Game, run and epoch, where the folder lies as d4rl-atari keeps it."""
    game, index, epoch = (path.resolve().parts[-3:] + ("", "", ""))[:3]
    return {"game": game, "index": int(index), "epoch": int(epoch)} if index.isdecimal() and epoch.isdecimal() else {}


FORMAT = Format("atari", "folder of one epoch of the Atari DQN replay data", NEEDS, detect, open_folder)
