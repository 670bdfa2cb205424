"""The kernels in NumPy: returns to the end of the episode, and lambda returns."""

from __future__ import annotations

import numpy as np


class Returns:
    """Discounted sums of the rewards from a row to its episode's end, float64: G = r + gamma G of the next row.

    spans: int64 [E, 2], first row and T of each episode. marks: float64 zeros, in which the compiled kernel keeps G of every 16th row (of
    row 16 (base + j) in marks[j]); it adds up to 15 rewards to such a G. This oracle keeps every G instead.
    """

    def __init__(self, spans: np.ndarray, reward: np.ndarray, gamma: float, marks: np.ndarray, base: int) -> None:
        first, steps = spans[:, 0], spans[:, 1]
        self.start = int(first.min())
        self.sums = np.zeros(int((first + steps).max()) - self.start + 1)
        value = np.zeros(len(spans))
        for t in range(int(steps.max()) - 1, -1, -1):
            on = steps > t
            value[on] = reward[first[on] + t].astype(np.float64) + gamma * value[on]
            self.sums[first[on] + t - self.start] = value[on]

    def at(self, rows: np.ndarray) -> np.ndarray:
        return self.sums[rows - self.start]


def lambda_returns(rewards: np.ndarray, values: np.ndarray, discounts: np.ndarray, decay: float, out: np.ndarray) -> None:
    """Fill ``out`` [B, L], all float32: G_t = r_t + d_t ((1 - decay) v_t + decay G_{t+1}), with v_t of the next state; after the end G = v.

    Sums are in float64.
    """
    following = values[:, -1].astype(np.float64)
    for t in range(rewards.shape[1] - 1, -1, -1):
        mixed = (1.0 - decay) * values[:, t].astype(np.float64) + decay * following
        following = rewards[:, t].astype(np.float64) + discounts[:, t].astype(np.float64) * mixed
        out[:, t] = following
