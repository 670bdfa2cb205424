"""CartPole that fails: always, or in the first run alone, as a note in the job's folder says; whose rewards are none; or that ends the
process."""

import ctypes
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv


class Failing(CartPoleEnv):
    def __init__(self, once=False):
        super().__init__()
        self.once = once

    def step(self, action):
        noted = Path("failed-once") if self.once else None
        if noted is None or not noted.exists():
            if noted is not None:
                noted.touch()
            raise RuntimeError("the simulator has crashed")
        return super().step(action)


class Odd(CartPoleEnv):
    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, np.ones(2), terminated, truncated, info


class Crashing(CartPoleEnv):
    def step(self, action):
        ctypes.string_at(0)  # a library that reads where nothing is
        return super().step(action)


gymnasium.register("Crashing-v0", Crashing, max_episode_steps=20)
gymnasium.register("Failing-v0", Failing, max_episode_steps=20)
gymnasium.register("FailingOnce-v0", lambda: Failing(once=True), max_episode_steps=20)
gymnasium.register("Odd-v0", Odd, max_episode_steps=20)
