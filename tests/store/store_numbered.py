"""Episodes that follow from a number alone, light to import: the killed writer processes make them, and the tests make them again."""

from __future__ import annotations

import numpy as np

from offrl_store import Episode, Field, Schema

SIMPLE = Schema(observation=Field("float32", (3,)), action=Field("int32", (), low=0, high=4), extra={"row": Field("int64")})


def numbered_episode(number: int) -> Episode:
    """Episode ``number`` of SIMPLE stores: its length, end and values follow from the number alone."""
    noise = np.random.default_rng(number)
    steps = int(noise.integers(1, 40))
    missing = bool(number % 3 == 1)
    return Episode(
        noise.standard_normal((steps + (not missing), 3), np.float32),
        noise.integers(0, 5, steps),
        noise.standard_normal(steps, np.float32),
        terminated=bool(number % 2),
        extra={"row": np.arange(steps) + 1000 * number},
    )
