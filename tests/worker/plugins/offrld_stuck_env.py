"""An environment whose first reset never returns, inside native code: no Python handler of a signal can run in that thread."""

import ctypes
import sys

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Stuck(CartPoleEnv):
    def reset(self, **arguments):
        libc = ctypes.CDLL(None)
        print("stuck from now on", file=sys.stderr, flush=True)
        while True:
            libc.pause()
            libc.sleep(1000)


gymnasium.register("StuckCartPole-v0", entry_point=Stuck, max_episode_steps=50)
