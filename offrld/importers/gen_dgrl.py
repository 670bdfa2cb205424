"""Import gen_dgrl: a folder of Procgen episodes, one ``.npz`` per episode.

Arrays: ``observations`` ``[T+1, 3, 64, 64]`` (numbers from 0 to 255; row T is the first observation of the *next* episode, so it is left
out), ``actions`` ``[T, 1]``, ``rewards`` ``[T, 1]``, ``dones`` ``[T]``. File names are ``TIME_INDEX_STEPS_LEVEL_RETURN.npz``, for example
``20230329T092246_3161_1154_45_40.00.npz``: the 3161st episode, 1154 steps, level 45, return 40. The options select episodes as the loader
of the benchmark does: with a capacity or a percentile the best episodes first, and the last one cut to reach the exact number of steps.

Source: Mediratta et al. 2024, "The Generalization Gap in Offline Reinforcement Learning".
"""

from __future__ import annotations

import re
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store.errors import EmptyStore, InvalidInput
from offrld.importers.bad_data import BadRow
from offrld.importers.columns import Column, Rows, same_length
from offrld.importers.episodic import Recording, ends_of, episodic_source
from offrld.importers.hdf5 import listed
from offrld.importers.npz import Member, arrays_in
from offrld.importers.source import BadEpisodes, Format, Source
from offrld.importers.spaces import choices

NEEDS = "a folder of .npz files named TIME_INDEX_STEPS_LEVEL_RETURN.npz with observations, actions, rewards, dones"

NAME = re.compile(r"(?P<time>.+)_(?P<index>\d+)_(?P<steps>\d+)_(?P<level>-?\d+)_(?P<ret>-?\d+\.\d\d)\.npz")
GAMES = (
    "bigfish",
    "bossfight",
    "caveflyer",
    "chaser",
    "climber",
    "coinrun",
    "dodgeball",
    "fruitbot",
    "heist",
    "jumper",
    "leaper",
    "maze",
    "miner",
    "ninja",
    "plunder",
    "starpilot",
)
ACTIONS = 15  # of every game of Procgen


@dataclass(frozen=True)
class EpisodeFile:
    """A file and what its name states. ``keep``: the number of its steps to import."""

    path: Path
    time: str
    index: int
    steps: int
    level: int
    ret: float
    keep: int


def parse(path: Path) -> EpisodeFile | None:
    """Parse the name of a file; None if it does not have the published form."""
    match = NAME.fullmatch(path.name)
    if match is None:
        return None
    steps = int(match["steps"])
    return EpisodeFile(path, match["time"], int(match["index"]), steps, int(match["level"]), float(match["ret"]), steps)


def detect(path: Path) -> bool:
    return path.is_dir() and any(NAME.fullmatch(each.name) for each in path.iterdir())


def open_folder(
    path: Path,
    bad: BadEpisodes,
    *,
    capacity: Any = None,
    capacity_type: Any = "transitions",
    percentile: Any = 1.0,
    level_seed: Any = None,
    max_episodes: Any = None,
) -> Source:
    """Open a folder of episodes. Raises `InvalidInput` for an invalid option or a folder without such files."""
    name = path.resolve().name
    if not path.is_dir():
        raise InvalidInput(f"{path} is not a folder", hint=f"needed: {NEEDS}")
    episodes = sorted((each for each in map(parse, path.iterdir()) if each is not None), key=lambda each: (each.time, each.index))
    others = [each.name for each in path.iterdir() if each.suffix == ".npz" and parse(each) is None]
    if not episodes:
        hint = f"needed: {NEEDS}"
        if others:
            hint = f"{others[0]} has another name: the trainer's own save_dataset writes scaled observations, which are not read; {hint}"
        raise InvalidInput(f"{name} holds no episode of gen_dgrl", hint=hint)
    messages = [f"not imported, because their names are of another form: {listed(others)}"] if others else []
    files = _choose(episodes, capacity, capacity_type, percentile, level_seed, max_episodes)
    if not files:
        levels = listed(sorted({each.level for each in episodes}))
        raise EmptyStore(f"{name} holds no episode of level {level_seed}", hint=f"it holds the levels {levels}")
    if len(files) < len(episodes):
        messages.append(f"{len(files)} of {len(episodes)} episodes, {sum(each.keep for each in files)} steps, are taken")
    game: dict[str, Any] = {"game": name} if name in GAMES else {}
    with ExitStack() as resources:
        reader = _Reader(files)
        resources.callback(reader.close)
        source = episodic_source(
            reader.recording,
            len(files),
            bad,
            file=name,
            format="gen_dgrl",
            env_id=None,
            space=choices(ACTIONS, 0, "declared", name),
            attributes={},
            messages=messages,
            discrete=True,
            **game,
        )
        messages += [reader.notes[number] for number in sorted(reader.notes)[:3]]
        source.resources = resources.pop_all()
        return source


def _choose(
    files: list[EpisodeFile], capacity: Any, capacity_type: Any, percentile: Any, level_seed: Any, max_episodes: Any
) -> list[EpisodeFile]:
    """Choose the episodes that the options select: in order of collection, or the best first if there is a limit."""
    for key, value, least in (("capacity", capacity, 1), ("max_episodes", max_episodes, 1), ("level_seed", level_seed, -1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InvalidInput(f"{key} is {value!r}", hint=f"pass a whole number of at least {least}")
    if isinstance(percentile, bool) or not isinstance(percentile, (int, float)) or not 0 < percentile <= 1:
        raise InvalidInput(f"percentile is {percentile!r}", hint="pass the share of the capacity to take, above 0 and at most 1")
    if capacity_type not in ("transitions", "episodes"):
        raise InvalidInput(f"capacity_type is {capacity_type!r}", hint="pass 'transitions' or 'episodes'")
    files = [each for each in files if each.steps and level_seed in (None, each.level)]
    if capacity is None and percentile == 1:
        return files[:max_episodes]
    files = sorted(files, key=lambda each: -each.ret)[:max_episodes]
    if capacity_type == "episodes":
        return files[: max(1, int((capacity or len(files)) * percentile))]
    left = int((capacity or sum(each.steps for each in files)) * percentile)
    chosen = []
    for each in files:
        if left < 1:
            break
        chosen.append(EpisodeFile(**{**vars(each), "keep": min(left, each.steps)}))
        left -= each.steps
    return chosen


class _Reader:
    """Opens one file at a time."""

    def __init__(self, files: list[EpisodeFile]) -> None:
        self._files, self._open = files, ExitStack()
        self.notes: dict[int, str] = {}

    def close(self) -> None:
        self._open.close()

    def recording(self, number: int) -> Recording | None:
        self._open.close()
        file = self._files[number]
        name = file.path.name
        try:
            archive = self._open.enter_context(zipfile.ZipFile(file.path))
            arrays_in(archive, name)
            members = {key: Member(archive, f"{key}.npy") for key in ("observations", "actions", "rewards", "dones")}
        except KeyError as error:
            hint = "the trainer's own save_dataset writes other, scaled files: collect with its episode writer"
            raise InvalidInput(f"{name}: {error.args[0]}", hint=f"{hint}; needed: {NEEDS}") from None
        except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
            raise InvalidInput(f"{name} cannot be read: {error}", hint="the file is damaged; download it again") from None
        for member in members.values():
            self._open.callback(member.close)
        actions, rewards, dones = (Column(name, key, members[key]) for key in ("actions", "rewards", "dones"))
        same_length(actions, rewards, dones)
        frames = Column(name, "observations", members["observations"])
        if actions.rows != file.steps or frames.rows not in (file.steps, file.steps + 1):
            raise InvalidInput(
                f"{name} is named for {file.steps} steps and holds {actions.rows} actions and {frames.rows} observations",
                hint="the file is damaged, or was renamed",
            )
        total = float(rewards.read_finite(0, file.steps).sum(dtype=np.float64))
        if abs(total - file.ret) > 0.01 + 1e-5 * abs(total):
            raise InvalidInput(
                f"{name} is named for a return of {file.ret:.2f} and its rewards sum up to {total:.2f}",
                hint="the file is damaged, or was renamed",
            )
        flags = dones.read_flags(0, file.steps)[: file.keep]
        actions, rewards = (Column(name, column.key, Rows(column.data, 0, file.keep)) for column in (actions, rewards))
        # An episode that is cut here has its next observation: the following row belongs to it.
        observations = Column(name, "observations", _Frames(frames, file.keep + (file.keep < file.steps)))
        metadata = {"time": file.time, "index": file.index} | ({"level_seed": file.level} if file.level >= 0 else {})
        ends = ends_of(flags, np.zeros(file.keep, bool), name, number, self.notes)
        return Recording(observations, actions, rewards, ends, metadata=metadata)


class _Frames:
    """The first ``rows`` rows of pixels as uint8, whatever dtype the file stores them in."""

    dtype = np.dtype(np.uint8)

    def __init__(self, column: Column, rows: int) -> None:
        self._column, self.shape = column, (rows, *column.shape)

    def __getitem__(self, rows: slice) -> np.ndarray:
        block = self._column.read(rows.start, rows.stop)
        if block.dtype == np.uint8:
            return block
        with np.errstate(invalid="ignore"):
            pixels = block.astype(np.uint8)
        wrong = np.argwhere(pixels != block)
        if len(wrong):
            at = tuple(int(i) for i in wrong[0])
            row = rows.start + at[0]
            raise BadRow(
                f"{self._column.file}: {self._column.where(row, at[1:])} is {float(block[at]):.9g}, which is not a pixel",
                row,
                hint="pixels are whole numbers from 0 to 255; scaled observations are not read",
            )
        return pixels


FORMAT = Format(
    "gen_dgrl",
    "folder of Procgen episodes, one .npz each",
    NEEDS,
    detect,
    open_folder,
    {
        "capacity": "number of transitions (or episodes) to take, the best first",
        "capacity_type": "what the capacity counts: transitions or episodes",
        "percentile": "share of the capacity to take (of the whole folder without a capacity), the best episodes first",
        "level_seed": "take episodes of this level only",
        "max_episodes": "largest number of episodes to take",
    },
)
