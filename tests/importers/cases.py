"""The grid of data that every format's round trip is tried over: small, and each with something that one format or another has lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store import Episode, EpisodeStore, Field, Schema

SHORT = 1  # an episode of one step is among them
LENGTHS = (4, SHORT, 3)
TERMINATED = (True, False, True)


def _rows(rng: np.random.Generator, field: Field, rows: int) -> np.ndarray:
    shape, dtype = (rows, *field.shape), field.dtype
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    values = rng.normal(size=shape)
    return (1.7e9 + values if dtype.itemsize == 8 else values).astype(dtype)  # what float32 does not hold


VECTOR, BOX, CHOICE = Field("float32", (3,)), Field("float32", (2,), low=-1, high=1), Field("int64", (), low=0, high=3)

#: Case -> observation, action, reward, extras.
FIELDS: dict[str, tuple[Any, Field, Field, Mapping[str, Field]]] = {
    "continuous": (VECTOR, BOX, Field("float32"), {}),
    "discrete": (VECTOR, CHOICE, Field("float32"), {}),
    "scalar observations": (Field("float32"), BOX, Field("float32"), {}),
    "scalar choices seen": (Field("int64"), CHOICE, Field("float32"), {}),
    "dict": ({"arm": VECTOR, "hand": Field("float32", (2,))}, BOX, Field("float32"), {}),
    "one field of a dict": ({"arm": VECTOR}, BOX, Field("float32"), {}),
    "dotted names": ({"arm.left": VECTOR, "arm.right": VECTOR, "arm_left": VECTOR}, BOX, Field("float32"), {}),
    "goals": ({"observation": VECTOR, "achieved_goal": VECTOR, "desired_goal": VECTOR}, BOX, Field("float32"), {}),
    "reserved names": ({"action": VECTOR, "reward": VECTOR, "next": VECTOR, "episode": VECTOR}, BOX, Field("float32"), {"index": VECTOR}),
    "pixels": (Field("uint8", (3, 12, 10)), CHOICE, Field("float32"), {}),
    "grey pixels": (Field("uint8", (1, 12, 10)), CHOICE, Field("float32"), {}),
    "pixels and vector": ({"camera": Field("uint8", (3, 12, 10)), "arm": VECTOR}, BOX, Field("float32"), {}),
    "float64": (Field("float64", (3,)), Field("float64", (2,), low=-1, high=1), Field("float64"), {}),
    "float16": (Field("float16", (3,)), BOX, Field("float32"), {}),
    "int8": (Field("int8", (3,)), BOX, Field("float32"), {}),
    "int64": (Field("int64", (2,)), BOX, Field("float32"), {}),
    "uint64": (Field("uint64", (2,)), BOX, Field("float32"), {}),
    "bool": (Field("bool", (3,)), BOX, Field("float32"), {}),
    "matrix": (Field("float32", (2, 3)), BOX, Field("float32"), {}),
    "wide bounds": (VECTOR, Field("float32", (2,), low=[-2, -0.5], high=[0.5, 30]), Field("float32"), {}),
    "extras": (VECTOR, BOX, Field("float32"), {"energy": Field("float32"), "deep.flag": Field("bool"), "count": Field("int32", (2,))}),
}  # fmt: skip


def episodes(case: str, *, final: bool = True) -> list[Episode]:
    """The episodes of a case: both ways to end, one of a single step; ``final``: with their final observations."""
    observation, action, reward, extra = FIELDS[case]
    rng = np.random.default_rng(len(case))
    made = []
    for steps, terminated in zip(LENGTHS, TERMINATED, strict=True):
        seen = steps + final
        low, high = (np.asarray(bound, np.float64) for bound in (action.low, action.high))
        if action.discrete:
            acted = rng.integers(0, action.n, steps).astype(action.dtype)
        else:
            acted = (low + (high - low) * rng.uniform(size=(steps, *action.shape))).astype(action.dtype)
        made.append(
            Episode(
                {name: _rows(rng, field, seen) for name, field in observation.items()}
                if isinstance(observation, dict)
                else _rows(rng, observation, seen),
                acted,
                _rows(rng, reward, steps),
                terminated,
                {name: _rows(rng, field, steps) for name, field in extra.items()},
            )
        )
    return made


def store(case: str, path: Path, *, final: bool = True, **metadata: Any) -> EpisodeStore:
    """A store of a case."""
    observation, action, reward, extra = FIELDS[case]
    made = EpisodeStore.create(path, Schema(observation, action, reward, extra, {"bounds": "declared", **metadata}))
    with made.writer() as writer:
        for episode in episodes(case, final=final):
            writer.append(episode)
    return EpisodeStore.open(path)


def values(episode: Episode) -> dict[str, np.ndarray]:
    """Every array of an episode by ``role`` or ``role.name``."""
    named: dict[str, np.ndarray] = {"action": episode.action, "reward": episode.reward}
    seen = episode.observation
    named |= {f"observation.{name}": rows for name, rows in seen.items()} if isinstance(seen, dict) else {"observation": seen}
    return named | {f"extra.{name}": rows for name, rows in episode.extra.items()}


def same(left: Any, right: Any) -> None:
    """Asserts that two sequences of episodes are the same: ends, names, dtypes, shapes and values."""
    left, right = list(left), list(right)
    assert [(each.steps, each.terminated, each.final_missing) for each in left] == [
        (each.steps, each.terminated, each.final_missing) for each in right
    ]
    for ours, theirs in zip(left, right, strict=True):
        found, due = values(ours), values(theirs)
        assert found.keys() == due.keys()
        for name, array in due.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
            np.testing.assert_array_equal(found[name], array, err_msg=name)
