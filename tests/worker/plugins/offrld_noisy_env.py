"""An environment of somebody else: prints to the process's standard output, which in a worker is a protocol."""

import os

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

os.write(1, b"hello from a plugin\n")
print("another line")
gymnasium.register("NoisyCartPole-v0", entry_point=CartPoleEnv, max_episode_steps=50)
