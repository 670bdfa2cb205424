"""The kernels in NumPy: the sum tree of the priorities."""

from __future__ import annotations

import numpy as np

from offrl_store._random_py import draw

WIDE = 8  # children of a node: a cache line of float64


def tree_levels(count: int) -> list[int]:
    """Return the lengths of the levels of the sum tree, leaves first. Each is a multiple of WIDE, except the root's, which is 1."""
    levels = [-(-count // WIDE) * WIDE]
    while levels[-1] > WIDE:
        levels.append(-(-(levels[-1] // WIDE) // WIDE) * WIDE)
    return [*levels, 1]


class SumTree:
    """Priorities (raised to alpha) as the leaves of a tree of sums, so that a draw and an update cost its height.

    nodes: float64 [sum(tree_levels(count))], zeros; the levels one after the other, leaves first.
    """

    def __init__(self, nodes: np.ndarray, count: int) -> None:
        self.count = count
        self.levels: list[np.ndarray] = []
        for length in tree_levels(count):
            self.levels.append(nodes[:length])
            nodes = nodes[length:]

    def total(self) -> float:
        return float(self.levels[-1][0])

    def build(self) -> None:
        """Compute all sums, after the leaves were set from outside."""
        for below, above in zip(self.levels, self.levels[1:], strict=False):
            self._sums(below, above, np.arange(len(below) // WIDE))

    def sample(self, seed: int, step: int, stream: int, beta: float, numbers: np.ndarray, weights: np.ndarray) -> None:
        """Draw one leaf from each of n equal shares of the total (Schaul et al. 2016, "Prioritized experience replay").

        53 random bits choose the position in a share. Weights: (lowest priority drawn / priority)^beta, float32.
        """
        n = len(numbers)
        place = np.empty(n, np.int64)
        draw(seed, step, stream, 1 << 53, place)
        value = (np.arange(n) + place * 2.0**-53) * (self.levels[-1][0] / n)
        node = np.zeros(n, np.int64)
        for level in self.levels[-2::-1]:
            node = np.minimum(node, len(level) // WIDE - 1)  # rounding may lead past the last node
            before, chosen, sums = np.zeros(n), np.zeros(n, np.int64), np.zeros(n)
            for child in range(WIDE - 1):
                sums = sums + level[node * WIDE + child]
                over = value >= sums
                chosen += over
                before = np.where(over, sums, before)
            value = value - before
            node = node * WIDE + chosen
        numbers[:] = np.minimum(node, self.count - 1)
        drawn = self.levels[0][numbers]
        weights[:] = (drawn.min() / drawn) ** beta

    def update(self, numbers: np.ndarray, priorities: np.ndarray, alpha: float, eps: float) -> float:
        """Set leaves to (priority + eps)^alpha; the last value of a repeated number counts. Returns the highest of the priorities."""
        for number, leaf in zip(numbers, (priorities + eps) ** alpha, strict=True):
            self.levels[0][number] = leaf
        nodes = numbers
        for below, above in zip(self.levels, self.levels[1:], strict=False):
            nodes = nodes // WIDE
            self._sums(below, above, nodes)
        return float(priorities.max())

    @staticmethod
    def _sums(below: np.ndarray, above: np.ndarray, nodes: np.ndarray) -> None:
        children = below.reshape(-1, WIDE)[nodes]
        sums = children[:, 0].copy()
        for child in range(1, WIDE):
            sums += children[:, child]
        above[nodes] = sums
