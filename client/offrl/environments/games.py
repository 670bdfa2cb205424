"""The games: 62 Atari games (gym's original list, as in d4rl-atari) and the 16 Procgen games with their modes.

An Atari game has three spellings: in ids, as a ROM, and in the data's bucket.
"""

from __future__ import annotations

import re
from typing import Any

from offrl.errors import Unknown, nearest

GAMES = (
    "adventure", "air-raid", "alien", "amidar", "assault", "asterix", "asteroids", "atlantis", "bank-heist", "battle-zone", "beam-rider",
    "berzerk", "bowling", "boxing", "breakout", "carnival", "centipede", "chopper-command", "crazy-climber", "defender", "demon-attack",
    "double-dunk", "elevator-action", "enduro", "fishing-derby", "freeway", "frostbite", "gopher", "gravitar", "hero", "ice-hockey",
    "jamesbond", "journey-escape", "kangaroo", "krull", "kung-fu-master", "montezuma-revenge", "ms-pacman", "name-this-game", "phoenix",
    "pitfall", "pong", "pooyan", "private-eye", "qbert", "riverraid", "road-runner", "robotank", "seaquest", "skiing", "solaris",
    "space-invaders", "star-gunner", "tennis", "time-pilot", "tutankham", "up-n-down", "venture", "video-pinball", "wizard-of-wor",
    "yars-revenge", "zaxxon",
)  # fmt: skip


_EXTREME = ("chaser", "dodgeball", "leaper", "starpilot")
_MEMORY = ("caveflyer", "dodgeball", "heist", "jumper", "maze", "miner")
_EXPLORATION = ("caveflyer", "climber", "coinrun", "heist", "jumper", "leaper", "maze", "ninja")
_SPECIAL = {"extreme": _EXTREME, "memory": _MEMORY, "exploration": _EXPLORATION}
PROCGEN = (
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot", "heist", "jumper", "leaper", "maze",
    "miner", "ninja", "plunder", "starpilot",
)  # fmt: skip
#: Game -> its distribution modes.
PROCGEN_MODES: dict[str, tuple[str, ...]] = {
    game: ("easy", "hard", *(mode for mode, games in _SPECIAL.items() if game in games)) for game in PROCGEN
}


def check_procgen(game: str) -> str:
    """Return the name of an existing Procgen game; raise `Unknown` with the nearest names otherwise."""
    if game not in PROCGEN:
        raise Unknown(f"there is no Procgen game {game!r}", hint=nearest(game, list(PROCGEN)))
    return game


def check(game: str) -> str:
    """Return the name of an existing Atari game; raise `Unknown` with the nearest names otherwise."""
    if game not in GAMES:
        raise Unknown(f"there is no Atari game {game!r}", hint=nearest(game, list(GAMES)))
    return game


def rom(game: str) -> str:
    """Return the name of a game's ROM in ale-py: ``space_invaders``."""
    return game.replace("-", "_")


def camel(game: str) -> str:
    """Return a game's name in the bucket and the cache of the replay data: ``SpaceInvaders``."""
    return "".join(part.capitalize() for part in game.split("-"))


def of_id(env_id: Any) -> str | None:
    """Return the game of an offrld id (``offrld/breakout-v0``, ``offrld/breakout-train-v0``); None if the id is not a game's."""
    match = _ID.fullmatch(env_id) if isinstance(env_id, str) else None
    return match[1] if match is not None and match[1] in GAMES else None


def from_camel(name: str) -> str | None:
    """Return the game of a folder's name; None if the name is not a game's."""
    return _CAMEL.get(name)


_ID = re.compile(r"offrld/(.+?)(?:-train|-noop)?-v\d+")
_CAMEL = {camel(game): game for game in GAMES}
