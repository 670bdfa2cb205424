"""Write tests/store/data/format-1, the sample that every later version must read. The tests do not run this."""

from __future__ import annotations

import sys

import numpy as np

from offrl_store import Episode, EpisodeStore, Field, Schema

SCHEMA = Schema(
    observation={"camera": Field("uint8", (1, 4, 4)), "state": Field("float32", (3,))},
    action={"arm": Field("float32", (2,), low=[-1, -np.inf], high=1), "grip": Field("int32", (), low=0, high=2)},
    reward=Field("float64"),
    extra={"logp": Field("float16")},
    metadata={"env_id": "Sample-v0", "note": "grüße"},
)


def episode(steps: int, terminated: bool, missing: bool) -> Episode:
    rows = steps + (not missing)
    return Episode(
        observation={
            "camera": (np.arange(rows * 16) % 251).astype(np.uint8).reshape(rows, 1, 4, 4),
            "state": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) / 4,
        },
        action={"arm": np.linspace(-1, 1, steps * 2, dtype=np.float32).reshape(steps, 2), "grip": np.arange(steps) % 3},
        reward=np.arange(steps) + 0.5,
        terminated=terminated,
        extra={"logp": -np.arange(steps, dtype=np.float16)},
    )


EPISODES = [episode(4, True, False), episode(3, False, True), episode(1, True, True), episode(2, False, False)]

if __name__ == "__main__":
    with EpisodeStore.create(sys.argv[1], SCHEMA).writer() as writer:
        for one in EPISODES:
            writer.append(one)
