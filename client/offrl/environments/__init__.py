"""gymnasium environments of ours: the Atari games with the preprocessing of the DQN replay data, under ids that begin with ``offrld/``.

``register`` makes the ids known; `offrl.rollout.make_env`, the worker and the daemon's list of environments call it, so that every place
that takes an id takes these. What an environment needs (extra ``atari``) is looked for when one is made.
"""

from __future__ import annotations

from typing import Any

from . import games

NAMESPACE = "offrld"
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


def register() -> None:
    """Tells gymnasium of the environments; calling it again changes nothing."""
    import gymnasium

    if atari_id(games.GAMES[0]) in gymnasium.registry:
        return
    for game in games.GAMES:
        for variant, settings in VARIANTS.items():
            gymnasium.register(
                id=atari_id(game, variant.removeprefix("-")), entry_point="offrl.environments.atari:AtariEnv",
                kwargs={"game": game, **settings}, max_episode_steps=TIME_LIMIT,
            )  # fmt: skip


__all__ = ["NAMESPACE", "TIME_LIMIT", "VARIANTS", "atari_id", "register"]
