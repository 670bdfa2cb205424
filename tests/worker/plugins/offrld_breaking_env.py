"""Environments that break at their 58th step: one raises, one hangs."""

import time

import gymnasium
import numpy as np


class Breaking(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, hang=False):
        self.total, self.hang = 0, hang

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.total += 1
        if self.total == 58:
            if self.hang:
                time.sleep(3600)
            raise RuntimeError("the arm is stuck")
        return np.zeros(2, np.float32), 0.0, False, False, {}


gymnasium.register("Breaking-v0", Breaking, max_episode_steps=20)
gymnasium.register("Hanging-v0", lambda: Breaking(hang=True), max_episode_steps=20)
