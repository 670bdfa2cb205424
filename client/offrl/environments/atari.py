"""An Atari game as a gymnasium environment, preprocessed as the DQN replay data were (Dopamine): made by ``gymnasium.make`` only.

The same frames and rewards as gymnasium's `AtariPreprocessing`, which the tests hold it to, but the emulator is driven directly: a reset
after a lost life goes on in the same game, where the wrapper begins a new one, and no skipped frame is fetched as an observation (2,480
against 2,150 steps/s of Breakout).
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from offrl.environments import games
from offrl.errors import InvalidInput

SIZE = 84  # pixels, both sides
STICKY = 0.25  # Machado et al. 2018, "Revisiting the Arcade Learning Environment", and the replay data
INSTALL = '`pip install "offrl[gym,atari]"`'


class AtariEnv(gymnasium.Env):
    """One game. Observations are uint8 ``[1, 84, 84]``, with ``stack`` ``[stack, 84, 84]``, oldest frame first.

    Args:
        game: its name, lower case with hyphens: ``space-invaders``.
        stack: frames per observation; zero frames stand before the first one of an episode. None: one frame, as the data are stored.
        sticky_actions: probability with which the emulator repeats the action before, each frame. True: 0.25, False: 0.
        clip_reward: rewards are clipped to [-1, 1]; ``info["raw_reward"]`` has what they were.
        terminal_on_life_loss: a lost life ends the episode; the next reset then takes one no-op step in the same game (a reset with a seed
            begins a new one).
        noop_max: a reset is followed by 1 to ``noop_max`` frames without action (drawn from the seed); 0: none.
        frame_skip: frames per step. Rewards are summed; the observation is the larger of the last two frames, pixel by pixel, in the
            emulator's grey, resized to 84x84 by area.
        render_mode: None, ``rgb_array`` or ``human``.

    ``info``: ``lives``, ``frame_number``, ``episode_frame_number``. The time limit is that of the id (`gymnasium.make`).

    Raises:
        Unknown: there is no such game.
        InvalidInput: a setting is out of range.
        DependencyNotInstalled: ale-py or OpenCV is missing.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 15}  # steps: 60 frames per second, four per step

    def __init__(
        self,
        game: str,
        *,
        stack: int | None = None,
        sticky_actions: bool | float = True,
        clip_reward: bool = False,
        terminal_on_life_loss: bool = False,
        noop_max: int = 0,
        frame_skip: int = 4,
        render_mode: Literal["human", "rgb_array"] | None = None,
    ) -> None:
        games.check(game)
        sticky = {True: STICKY, False: 0.0}[sticky_actions] if isinstance(sticky_actions, bool) else float(sticky_actions)
        for name, value, least in (("stack", 1 if stack is None else stack, 1), ("noop_max", noop_max, 0), ("frame_skip", frame_skip, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInput(f"{name} is {value!r}", hint=f"pass a whole number of at least {least}")
        if not 0.0 <= sticky < 1.0:
            raise InvalidInput(f"sticky_actions is {sticky_actions!r}", hint="pass a probability below 1: 0.25 as in the replay data, or 0")
        try:
            import ale_py
            import cv2
            from ale_py.env import AtariEnv as Emulator
        except ImportError as error:
            raise gymnasium.error.DependencyNotInstalled(f"Atari games need ale-py and OpenCV ({error}): {INSTALL}") from None
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # it greets on stderr otherwise
        self._emulator = Emulator(
            game=games.rom(game), obs_type="grayscale", frameskip=1, repeat_action_probability=sticky, render_mode=render_mode
        )
        self._ale, self._actions = self._emulator.ale, self._emulator.ale.getMinimalActionSet()
        self._resize, self._area = cv2.resize, cv2.INTER_AREA
        self.game, self.render_mode = game, render_mode
        self._skip, self._noop_max, self._clip, self._by_life = frame_skip, noop_max, clip_reward, terminal_on_life_loss
        height, width = self._ale.getScreenDims()
        self._last, self._before = np.zeros((2, height, width), np.uint8)  # the last frame, which takes the maximum, and the one before
        self._frames = np.zeros((1 if stack is None else stack, SIZE, SIZE), np.uint8)
        self._lives, self._lost_life = 0, False
        self.observation_space = Box(0, 255, self._frames.shape, np.uint8)
        self.action_space = Discrete(len(self._actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A new game, or after a lost life (and without a seed) the next life."""
        super().reset(seed=seed)
        self._frames.fill(0)
        if self._lost_life and seed is None:
            self._lost_life = False
            observation, _, _, _, info = self.step(0)
            if not (self._ale.game_over(with_truncation=False) or self._lost_life):
                return observation, info
            self._frames.fill(0)
        self._new_game(seed)
        self._lost_life, self._lives = False, self._ale.lives()
        self._before.fill(0)
        self._ale.getScreenGrayscale(self._last)
        return self._observation(), self._info()

    def _new_game(self, seed: int | None) -> None:
        self._emulator.reset(seed=seed)
        if self._noop_max:
            for _ in range(self._emulator.np_random.integers(1, self._noop_max + 1)):
                self._ale.act(self._actions[0])
                if self._ale.game_over(with_truncation=False):
                    self._emulator.reset(seed=seed)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One action for ``frame_skip`` frames, fewer where the episode ends: the observation then shows the frames kept before."""
        if not 0 <= action < len(self._actions):
            raise InvalidInput(
                f"action {action!r} is not one of the {len(self._actions)} actions of {self.game}", hint="they are counted from 0"
            )
        ale, code, last = self._ale, self._actions[action], self._skip - 1
        reward, ended = 0.0, False
        for frame in range(self._skip):
            reward += ale.act(code)
            ended = ale.game_over(with_truncation=False)
            if self._by_life:
                lives = ale.lives()
                if lives < self._lives:
                    self._lost_life, ended = not ended, True
                self._lives = lives
            if ended:
                break
            if frame == last:
                ale.getScreenGrayscale(self._last)
            elif frame == last - 1:
                ale.getScreenGrayscale(self._before)
        info = self._info()
        if self._clip:
            info["raw_reward"], reward = reward, min(1.0, max(-1.0, reward))
        return self._observation(), float(reward), ended, False, info

    def _observation(self) -> np.ndarray:
        """The frame of now behind those before it; a new array."""
        if self._skip > 1:
            np.maximum(self._last, self._before, out=self._last)
        frame = self._resize(self._last, (SIZE, SIZE), interpolation=self._area)
        if len(self._frames) == 1:
            return frame[None]
        self._frames[:-1] = self._frames[1:]
        self._frames[-1] = frame
        return self._frames.copy()

    def _info(self) -> dict[str, Any]:
        ale = self._ale
        return {"lives": ale.lives(), "frame_number": ale.getFrameNumber(), "episode_frame_number": ale.getEpisodeFrameNumber()}

    def get_action_meanings(self) -> list[str]:
        """The names of the actions, in order: NOOP, FIRE, ..."""
        return [action.name for action in self._actions]

    def render(self) -> np.ndarray | None:
        """The screen in colours, ``[210, 160, 3]``; in mode ``human`` the window has shown it already."""
        return self._ale.getScreenRGB() if self.render_mode == "rgb_array" else None
