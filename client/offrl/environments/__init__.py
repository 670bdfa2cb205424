"""gymnasium environments of ours, under ids that begin with ``offrld/``: the Atari games with the preprocessing of the DQN replay data, and
the games of Procgen; and those of installed packages.

``register`` makes the ids known; `offrl.rollout.make_env`, the worker and the daemon's list of environments call it, so that every place
that takes an id takes these. What an environment needs (extra ``atari``, Procgen's packages) is looked for when one is made. A package
makes its own known by an entry point of the group ``offrl.environments``: a module that registers them when it is imported, or a function
that does (gymnasium itself looks for none).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterable
from typing import Any

from offrl.environments import games

NAMESPACE = "offrld"
GROUP = "offrl.environments"  # of entry points
TIME_LIMIT = 27_000  # steps: 108,000 frames, half an hour of play, as the replay data were logged (d4rl-atari: four times as many)

#: What follows the game's name in an id, and the settings that it stands for.
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "-train": {"terminal_on_life_loss": True, "clip_reward": True},
    "-noop": {"sticky_actions": 0.0, "noop_max": 30},
}


def atari_id(game: str, variant: str = "") -> str:
    """The gymnasium id of a game, e.g. ``offrld/breakout-v0``; ``variant``: "", "train" or "noop"."""
    return f"{NAMESPACE}/{game}{'-' if variant else ''}{variant}-v0"


#: What follows a Procgen game's name in an id, and the levels that it stands for: those of gen_dgrl.
LEVELS: dict[str, dict[str, int]] = {
    "": {},
    "-train": {"num_levels": 200},
    "-validation": {"start_level": 200, "num_levels": 50},
    "-test": {"start_level": 250},
}


def procgen_id(game: str, mode: str = "easy", levels: str = "") -> str:
    """The gymnasium id of a Procgen game, e.g. ``offrld/procgen-coinrun-train-v0``; ``levels``: "", "train", "validation" or "test"."""
    parts = ["procgen", game, *([] if mode == "easy" else [mode]), *([levels] if levels else [])]
    return f"{NAMESPACE}/{'-'.join(parts)}-v0"


#: Begins of ids that a package registers when it is imported, and how to install it.
PACKAGES = {
    "ALE/": ("ale_py", 'pip install "offrl[atari]"'),
    "dm_control/": ("shimmy", 'pip install "shimmy[dm-control]"'),
    **dict.fromkeys(("MiniGrid", "BabyAI"), ("minigrid", "pip install minigrid")),
    **dict.fromkeys(("Fetch", "AntMaze", "PointMaze", "FrankaKitchen", "AdroitHand", "HandManipulate", "HandReach"),
                    ("gymnasium_robotics", "pip install gymnasium-robotics")),
    "MiniWorld": ("miniworld", "pip install miniworld"),
    "highway": ("highway_env", "pip install highway-env"),
}  # fmt: skip
LIKE = 0.75  # how much of two names has to agree before one is taken for a slip of the other


def package_of(env_id: str) -> tuple[str, str] | None:
    """The module that registers ids like this one, and how to install it; None where that is not known."""
    return next((found for begin, found in PACKAGES.items() if env_id.lower().startswith(begin.lower())), None)


def unknown_hint(env_id: str, known: Iterable[str]) -> str:
    """What to do about an id that is not registered: install its package, take a name that is nearly the same, or look."""
    names = list(known)
    name = env_id.rpartition("-v")[0] or env_id
    if (package := package_of(env_id)) is not None and not any(package_of(other) == package for other in names):
        game = re.sub(r"(?<!^)(?=[A-Z])", "_", name.rpartition("/")[2]).lower()
        ours = f", and {atari_id(game)!r} is this game as replay data were logged" if package[0] == "ale_py" and game in games.GAMES else ""
        return f"{package[1]}, in the environment of the daemon too{ours}"
    bare = {other: (other.rpartition("-v")[0] or other).lower() for other in names}
    ratios = {other: difflib.SequenceMatcher(None, name.lower(), short).ratio() for other, short in bare.items()}
    best = max(ratios, key=lambda other: (ratios[other], other), default="")
    if best and ratios[best] >= LIKE:
        return f"did you mean {best!r}?"
    return "gymnasium.pprint_registry() lists what is there; a package of your own registers by an entry point of offrl.environments"


def register() -> list[str]:
    """Register the environments with gymnasium; calling it again changes nothing.

    Gives one line for each installed package whose own cannot be registered; the others are there all the same.
    """
    import gymnasium

    if atari_id(games.GAMES[0]) in gymnasium.registry:
        return []
    for game in games.GAMES:
        for variant, settings in VARIANTS.items():
            gymnasium.register(
                id=atari_id(game, variant.removeprefix("-")),
                entry_point="offrl.environments.atari:AtariEnv",
                kwargs={"game": game, **settings},
                max_episode_steps=TIME_LIMIT,
            )
    for game, modes in games.PROCGEN_MODES.items():
        for mode in modes:
            for levels, settings in LEVELS.items():
                gymnasium.register(
                    id=procgen_id(game, mode, levels.removeprefix("-")),
                    entry_point="offrl.environments.procgen:ProcgenEnv",
                    vector_entry_point="offrl.environments.procgen:ProcgenVectorEnv",
                    kwargs={"game": game, "distribution_mode": mode, **settings},
                )
    return _register_installed()


def register_package(env_id: str) -> None:
    """Import the package that registers ids like this one, where it is installed."""
    import gymnasium

    package = package_of(env_id)
    if package is not None and env_id not in gymnasium.registry and importlib.util.find_spec(package[0]) is not None:
        gymnasium.register_envs(importlib.import_module(package[0]))


def _register_installed() -> list[str]:
    import importlib.metadata

    problems = []
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name):
        try:
            found = point.load()
            if callable(found):
                found()
        except Exception as error:  # whatever a package does wrong, it must not take the others with it
            said = " ".join(str(error).split())
            problems.append(f"environments {point.name}: {point.value} cannot be loaded: {type(error).__name__}: {said}")
    return problems


__all__ = [
    "GROUP", "LEVELS", "NAMESPACE", "PACKAGES", "TIME_LIMIT", "VARIANTS", "atari_id", "procgen_id", "register", "register_package",
    "unknown_hint",
]  # fmt: skip
