"""gymnasium environments of ours, under ids that begin with ``offrld/``: the Atari games with the preprocessing of the DQN replay data, and
the games of Procgen; and those of installed packages.

``register`` makes the ids known; `offrl.rollout.make_env`, the worker and the daemon's list of environments call it, so that every place
that takes an id takes these. What an environment needs (extra ``atari``, Procgen's packages) is looked for when one is made. A package
makes its own known by an entry point of the group ``offrl.environments``: a module that registers them when it is imported, or a function
that does (gymnasium itself looks for none).
"""

from __future__ import annotations

from typing import Any

from . import games

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


def register() -> list[str]:
    """Tells gymnasium of the environments; calling it again changes nothing.

    Gives one line for each installed package whose own cannot be registered; the others are there all the same.
    """
    import gymnasium

    if atari_id(games.GAMES[0]) in gymnasium.registry:
        return []
    for game in games.GAMES:
        for variant, settings in VARIANTS.items():
            gymnasium.register(
                id=atari_id(game, variant.removeprefix("-")), entry_point="offrl.environments.atari:AtariEnv",
                kwargs={"game": game, **settings}, max_episode_steps=TIME_LIMIT,
            )  # fmt: skip
    for game, modes in games.PROCGEN_MODES.items():
        for mode in modes:
            for levels, settings in LEVELS.items():
                gymnasium.register(
                    id=procgen_id(game, mode, levels.removeprefix("-")), entry_point="offrl.environments.procgen:ProcgenEnv",
                    vector_entry_point="offrl.environments.procgen:ProcgenVectorEnv",
                    kwargs={"game": game, "distribution_mode": mode, **settings},
                )  # fmt: skip
    return _register_installed()


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


__all__ = ["GROUP", "LEVELS", "NAMESPACE", "TIME_LIMIT", "VARIANTS", "atari_id", "procgen_id", "register"]
