"""Datasets by name: the known names, their kinds, and the environment of each. This module neither fetches nor imports data.

Four kinds. ``collected``: ``cartpole-random``, ``cartpole-replay``, ``pendulum-random``, ``pendulum-replay``. ``atari``: the DQN replay
data by d4rl-atari's ids, ``GAME-{mixed,medium,expert}-v{0..4}`` (epoch 1, 10, 50), ``GAME-epoch-{1..50}-v{0..4}``, and
``GAME-transitions-v{0..4}``, a share of every epoch (d3rlpy's ``get_atari_transitions``). ``d4rl``: D4RL's and d4rl-pybullet's. ``minari``:
every id with a namespace, ``D4RL/pointmaze/umaze-v2``. `offrld.datasets` creates or fetches them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from offrl.environments import atari_id, games
from offrl.errors import Unknown, nearest

Kind = Literal["collected", "atari", "d4rl", "minari"]

COLLECTED = {
    "cartpole-random": "CartPole-v1", "cartpole-replay": "CartPole-v1", "pendulum-random": "Pendulum-v1", "pendulum-replay": "Pendulum-v1",
}  # fmt: skip
EPOCHS = {"mixed": 1, "medium": 10, "expert": 50}
LAST_EPOCH = 50
ATARI = re.compile(r"(?P<game>[a-z][a-z-]*?)-(?:(?P<level>mixed|medium|expert|transitions)|epoch-(?P<epoch>[1-9][0-9]?))-v(?P<v>[0-4])")
MINARI = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)*/[A-Za-z0-9][\w.-]*-v\d+")
#: Form of a name. Anything else is the path of a file.
PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$"

_MUJOCO = {"halfcheetah": "HalfCheetah-v4", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4", "ant": None}
_LEVELS = ("random", "medium", "expert", "medium-replay", "medium-expert")
_ANTMAZE = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
_MAZE2D = ("umaze", "medium", "large")
_BULLET = ("halfcheetah", "hopper", "ant", "walker2d")


def _d4rl_names() -> dict[str, str | None]:
    """Return the known names of D4RL and d4rl-pybullet, each with the gymnasium environment that has the same observations and actions."""
    names: dict[str, str | None] = {}
    for robot, env_id in _MUJOCO.items():
        names |= {f"{robot}-{level}-v0": env_id for level in _LEVELS}
        names |= {f"{robot}-{level}-v2": env_id for level in (*_LEVELS, "full-replay")}
    names |= {f"antmaze-{maze}-v{v}": None for maze in _ANTMAZE for v in (0, 2)}
    names |= {f"maze2d-{maze}{dense}-v1": None for maze in _MAZE2D for dense in ("", "-dense")}
    names |= {
        f"{hand}-{level}-v{v}": None
        for hand in ("pen", "hammer", "relocate", "door")
        for level in ("human", "cloned", "expert")
        for v in (0, 1)
    }
    names |= {f"kitchen-{level}-v0": None for level in ("complete", "partial", "mixed")}
    names |= {f"bullet-{robot}-{level}-v0": None for robot in _BULLET for level in _LEVELS}
    names |= {f"bullet-maze2d-{maze}-v0": None for maze in ("open", *_MAZE2D)}
    return names | {f"{robot}-bullet-{level}-v0": None for robot in _BULLET for level in ("random", "medium", "mixed")}


D4RL = _d4rl_names()


@dataclass(frozen=True)
class Named:
    """A dataset's name and its meaning.

    Attributes:
        name, kind: as above.
        env_id: the gymnasium environment of the data; None if no environment with the same observations and actions is known.
        game, index, epoch: for Atari data: the game, the run (1 to 5) and the epoch (0: a share of every epoch).
    """

    name: str
    kind: Kind
    env_id: str | None = None
    game: str = ""
    index: int = 0
    epoch: int = 0


def may_be_name(text: str) -> bool:
    """Whether a text that is not a path here could be the name of a dataset."""
    return re.fullmatch(PATTERN, text) is not None and not text.lower().endswith((".hdf5", ".h5", ".npz", ".csv", ".parquet", ".zip"))


def find(name: str) -> Named:
    """Look a name up. Raises `Unknown` with the nearest known name. Only Minari's server knows which of its ids exist."""
    if name in COLLECTED:
        return Named(name, "collected", COLLECTED[name])
    if name in D4RL:
        return Named(name, "d4rl", D4RL[name])
    match = ATARI.fullmatch(name)
    if match and match["game"] in games.GAMES and int(match["epoch"] or 1) <= LAST_EPOCH:
        epoch = int(match["epoch"]) if match["epoch"] else EPOCHS.get(match["level"], 0)
        return Named(name, "atari", atari_id(match["game"]), match["game"], int(match["v"]) + 1, epoch)
    if MINARI.fullmatch(name):
        return Named(name, "minari")
    hint = nearest(name, names())
    if (game := name.partition("-")[0].lower()) in games.GAMES:
        hint = f"{game}-mixed-v0, {game}-medium-v0, {game}-expert-v0, or {game}-epoch-1-v0 to {game}-epoch-{LAST_EPOCH}-v0"
    raise Unknown(f"no dataset is named {name!r}", hint=hint)


def names() -> list[str]:
    """Return all names except Minari's ids and the Atari epochs other than 1, 10 and 50."""
    atari = [f"{game}-{level}-v{v}" for game in games.GAMES for level in (*EPOCHS, "transitions") for v in range(5)]
    return [*COLLECTED, *D4RL, *atari]


__all__ = ["ATARI", "COLLECTED", "D4RL", "EPOCHS", "LAST_EPOCH", "MINARI", "PATTERN", "Kind", "Named", "find", "may_be_name", "names"]
