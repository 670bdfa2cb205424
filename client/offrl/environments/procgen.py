"""Procgen's sixteen games as gymnasium environments, one at a time or many in one native step.

Procgen starts the next level by itself and never shows the final observation of an episode, so that observation is zeros here. Every end
counts as terminal, including the time limit of 1,000 steps (Cobbe et al. 2020, Leveraging Procedural Generation to Benchmark Reinforcement
Learning). The package needs the old ``gym`` only to register itself there; if gym is not installed, a stand-in with a few names is enough.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from offrl.environments.games import PROCGEN_MODES, check_procgen
from offrl.errors import InvalidInput

INSTALL = "`pip install --no-deps procgen-mirror gym3 && pip install cffi imageio`"
PIXELS, ACTIONS = 64, 15
RESET = -1  # the action that aborts an episode
SEEDS = 2**31 - 1
OBSERVATION = Box(0, 255, (3, PIXELS, PIXELS), np.uint8)


class ProcgenEnv(gymnasium.Env):
    """One game. Observations are uint8 ``[3, 64, 64]``, actions 0 to 14.

    Args:
        game: its name: ``coinrun``.
        distribution_mode: ``easy``, ``hard``, and for some games ``extreme``, ``memory``, ``exploration``.
        num_levels: number of levels, starting with ``start_level``; 0: all.
        start_level: first level.
        render_mode: None, or ``rgb_array``, 512 pixels wide.
        options: further options of procgen: ``use_sequential_levels``, ``center_agent``, ``use_backgrounds``, ``restrict_themes``, ...

    ``info``: ``level_seed`` of the current level, ``prev_level_complete`` after an end. A reset with a seed restarts with the levels that
    the seed draws; a reset without one continues with the next level.

    Raises:
        Unknown: the game does not exist.
        InvalidInput: the game does not have this mode, or a number is out of range.
        DependencyNotInstalled: Procgen is missing.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(
        self,
        game: str,
        *,
        distribution_mode: str = "easy",
        num_levels: int = 0,
        start_level: int = 0,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        self._games = _Games(1, game, distribution_mode, num_levels, start_level, render_mode, {"num_threads": 0, **options})
        self.game, self.render_mode = game, render_mode
        self.observation_space, self.action_space = OBSERVATION, Discrete(ACTIONS)
        self._fresh = False  # no step was made in the current level yet

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or not self._games.made:
            self._games.make(seed if seed is not None else int(self.np_random.integers(SEEDS)))
        elif not self._fresh:
            self._games.act(np.array([RESET]))
        self._fresh = True
        _, shown, _, infos = self._games.observe()
        return shown[0], {name: values[0] for name, values in infos.items()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._games.act(np.array([action]))
        reward, shown, first, infos = self._games.observe()
        self._fresh = bool(first[0])
        after = np.zeros_like(shown[0]) if self._fresh else shown[0]
        return after, float(reward[0]), self._fresh, False, {name: values[0] for name, values in infos.items()}

    def render(self) -> np.ndarray | None:
        """The screen, ``[512, 512, 3]``."""
        return self._games.screen() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._games.close()


class ProcgenVectorEnv(VectorEnv):
    """``num_envs`` copies of one game, stepped by one native call.

    A copy resets itself within the step that ends an episode: its final observation is zeros, and ``info["level_seed"]`` is the seed of the
    next level. The other arguments are those of `ProcgenEnv`.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self, num_envs: int, game: str, *, distribution_mode: str = "easy", num_levels: int = 0, start_level: int = 0, **options: Any
    ) -> None:
        self._games = _Games(num_envs, game, distribution_mode, num_levels, start_level, None, options)
        self.num_envs, self.game = num_envs, game
        self.single_observation_space, self.single_action_space = OBSERVATION, Discrete(ACTIONS)
        self.observation_space, self.action_space = batch_space(OBSERVATION, num_envs), batch_space(Discrete(ACTIONS), num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset all copies; a seed (the first one of a list) draws their levels. Raises `InvalidInput` for a reset of single copies."""
        mask = (options or {}).get("reset_mask")
        if mask is not None and not np.all(mask):
            raise InvalidInput("Procgen's copies are stepped together: none is reset alone", hint="leave max_episode_steps out")
        if seed is not None or not self._games.made:
            first = seed[0] if isinstance(seed, list | tuple) else seed
            self._games.make(first if first is not None else int(self.np_random.integers(SEEDS)))
        else:
            self._games.act(np.full(self.num_envs, RESET))
        _, shown, _, infos = self._games.observe()
        return shown, infos

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._games.act(actions)
        reward, shown, first, infos = self._games.observe()
        if first.any():
            infos |= {"final_obs": np.zeros_like(shown), "_final_obs": first}
        return shown, reward, first, np.zeros_like(first), infos

    def close_extras(self, **kwargs: Any) -> None:
        self._games.close()


class _Games:
    """The native environments of one game."""

    def __init__(
        self, count: int, game: str, mode: str, num_levels: int, start_level: int, render_mode: str | None, options: dict[str, Any]
    ) -> None:
        check_procgen(game)
        if mode not in PROCGEN_MODES[game]:
            raise InvalidInput(f"{game} has no distribution mode {mode!r}", hint=f"one of {', '.join(PROCGEN_MODES[game])}")
        for name, value in (("num_levels", num_levels), ("start_level", start_level)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < SEEDS:
                raise InvalidInput(f"{name} is {value!r}", hint="pass a whole number from 0")
        if render_mode not in (None, "rgb_array"):
            raise InvalidInput(f"render_mode {render_mode!r}", hint="rgb_array, or none")
        self._make = _procgen().ProcgenGym3Env
        self._options = {
            "num": count,
            "env_name": game,
            "distribution_mode": mode,
            "num_levels": num_levels,
            "start_level": start_level,
            "render_mode": render_mode,
            **options,
        }
        self._env: Any = None

    @property
    def made(self) -> bool:
        return self._env is not None

    def make(self, seed: int) -> None:
        """Restart with the levels that ``seed`` draws; `InvalidInput` for options that procgen does not know."""
        self.close()
        try:
            self._env = self._make(rand_seed=seed % SEEDS, **self._options)
        except TypeError as error:
            raise InvalidInput(f"procgen: {error}", hint="see procgen's own environment options") from None

    def act(self, actions: Any) -> None:
        self._env.act(np.asarray(actions, np.int32))

    def observe(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Return the rewards of the step, observations ``[N, 3, 64, 64]``, flags of the copies whose level is new, and infos."""
        reward, shown, first = self._env.observe()
        infos = self._env.get_info()
        columns = {name: np.array([info[name] for info in infos]) for name in ("level_seed", "prev_level_seed", "prev_level_complete")}
        return np.array(reward), np.ascontiguousarray(np.moveaxis(shown["rgb"], -1, 1)), np.array(first), columns

    def screen(self) -> np.ndarray:
        return np.array(self._env.get_info()[0]["rgb"])

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env = None


def _procgen() -> Any:
    """Import the module ``procgen.env``."""
    try:
        with _with_gym():
            import procgen.env
    except ImportError as error:
        raise gymnasium.error.DependencyNotInstalled(f"Procgen is not installed ({error}): {INSTALL}") from None
    return procgen.env


@contextlib.contextmanager
def _with_gym() -> Iterator[None]:
    """Provide stand-ins for the names of ``gym`` that procgen and gym3 use during their import, if gym is not installed."""
    try:
        import gym  # noqa: F401
    except ImportError:
        names: dict[str, Any] = {name: ModuleType(name) for name in ("gym", "gym.spaces", "gym.envs", "gym.envs.registration")}
        names["gym"].Env = names["gym"].Wrapper = object
        names["gym.envs.registration"].register = lambda **_: None
        for name, module in names.items():
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(names[parent], child, module)
        sys.modules.update(names)
        try:
            yield
        finally:
            for name in names:
                sys.modules.pop(name, None)
    else:
        yield
