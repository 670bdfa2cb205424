"""The games: 62 of Atari (gym's first list, which are those of d4rl-atari) with their names in ids, as ROMs and in the data's bucket; and
the 16 of Procgen with their modes."""

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
    """The game itself; `Unknown` with the nearest names where there is none of that name."""
    if game not in PROCGEN:
        raise Unknown(f"there is no Procgen game {game!r}", hint=nearest(game, list(PROCGEN)))
    return game


def check(game: str) -> str:
    """The game itself; `Unknown` with the nearest names where there is none of that name."""
    if game not in GAMES:
        raise Unknown(f"there is no Atari game {game!r}", hint=nearest(game, list(GAMES)))
    return game


def rom(game: str) -> str:
    """The name of its ROM in ale-py: ``space_invaders``."""
    return game.replace("-", "_")


def camel(game: str) -> str:
    """Its name in the bucket and the cache of the replay data: ``SpaceInvaders``."""
    return "".join(part.capitalize() for part in game.split("-"))


def of_id(env_id: Any) -> str | None:
    """The game of an id of ours (``offrld/breakout-v0``, ``offrld/breakout-train-v0``), None where it is no game's."""
    match = _ID.fullmatch(env_id) if isinstance(env_id, str) else None
    return match[1] if match is not None and match[1] in GAMES else None


def from_camel(name: str) -> str | None:
    """The game of a folder's name, None where it is no game's."""
    return _CAMEL.get(name)


_ID = re.compile(r"offrld/(.+?)(?:-train|-noop)?-v\d+")
_CAMEL = {camel(game): game for game in GAMES}
