"""Random schemas and episodes for the store's tests, and the plain-Python oracle of the transitions sampler."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from store_numbered import numbered_episode

from offrl_store import Episode, EpisodeStore, Field, Schema
from offrl_store.kernels import kernels
from offrl_store.sampler import STREAM
from offrl_store.schema import DTYPES

KERNELS = ("cython", "numpy")
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where syncing is not what is tested


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Run a block with the compiled or the NumPy kernels; skips where the compiled ones were not built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFRL_STORE_KERNELS", name)
        if name != kernels().NAME:
            pytest.skip("the compiled kernels were not built")
        yield


def same(left: Any, right: Any) -> bool:
    """Return whether two arrays, or dicts of arrays, are equal."""
    if isinstance(left, Mapping):
        return set(left) == set(right) and all(same(left[name], right[name]) for name in left)
    return np.array_equal(left, right)


def same_episode(left: Episode, right: Episode) -> bool:
    return left.terminated == right.terminated and all(
        same(getattr(left, name), getattr(right, name)) for name in ("observation", "action", "reward", "extra")
    )


def check_numbered(store: EpisodeStore, first: int = 0) -> None:
    """Every episode of the store from ``first`` on is the numbered one."""
    for number in range(first, len(store)):
        assert same_episode(store.episodes[number], numbered_episode(number)), f"episode {number} differs"


# --- Random schemas and episodes --------------------------------------------------------------------------------------------------

OBSERVATIONS = st.builds(Field, st.sampled_from(DTYPES), st.sampled_from([(), (1,), (3,), (17,), (1, 4, 4), (2, 3), (3, 20, 20)]))
ACTIONS = st.one_of(
    st.builds(lambda dtype, n: Field(dtype, (), 0, n - 1), st.sampled_from(["int32", "int64", "uint8"]), st.integers(1, 9)),
    st.builds(Field, st.sampled_from(DTYPES), st.sampled_from([(1,), (6,), (), (2, 2)])),
)


def one_or_many(fields: st.SearchStrategy[Field]) -> st.SearchStrategy[Any]:
    return st.one_of(fields, st.dictionaries(st.sampled_from(["camera", "state", "x.y"]), fields, min_size=1, max_size=3))


REWARDS = st.sampled_from([Field("float32"), Field("float64"), Field("int8"), Field("uint16"), Field("int64")])
SCHEMAS = st.builds(
    Schema,
    one_or_many(OBSERVATIONS),
    one_or_many(ACTIONS),
    REWARDS,
    st.dictionaries(st.sampled_from(["logp", "info"]), OBSERVATIONS, max_size=2),
)


def rows(field: Field, count: int, noise: np.random.Generator) -> np.ndarray:
    if field.discrete:
        return noise.integers(0, field.n, count).astype(field.dtype)
    if field.dtype.kind == "f":
        return noise.uniform(-1, 1, (count, *field.shape)).astype(field.dtype)
    return noise.integers(0, 2 if field.dtype.kind == "b" else 100, (count, *field.shape)).astype(field.dtype)


@st.composite
def stores(draw: Any) -> tuple[Schema, list[Episode]]:
    """A schema and 1 to 8 episodes of 1 to 9 steps, ended in all three ways."""
    schema = draw(SCHEMAS)
    noise = np.random.default_rng(draw(st.integers(0, 2**32)))
    episodes = []
    for steps, terminated, missing in draw(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), min_size=1, max_size=8)):
        parts = {}
        for role, count in (("observation", steps + (not missing)), ("action", steps), ("reward", steps), ("extra", steps)):
            fields = getattr(schema, role)
            parts[role] = rows(fields, count, noise) if isinstance(fields, Field) else {k: rows(f, count, noise) for k, f in fields.items()}
        episodes.append(Episode(**parts, terminated=terminated))
    return schema, episodes


def write(path: os.PathLike[str], schema: Schema, episodes: list[Episode]) -> EpisodeStore:
    store = EpisodeStore.create(path, schema)
    with store.writer() as writer:
        for episode in episodes:
            writer.append(episode)
    return store


# --- The oracle -------------------------------------------------------------------------------------------------------------------


def philox(seed: int, counter: tuple[int, int, int, int]) -> list[int]:
    """One block of Philox4x32-10 in plain Python."""
    mask, (a, b, c, d), low, high = 0xFFFFFFFF, counter, seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ low, q & mask, (p >> 32) ^ d ^ high, p & mask
        low, high = (low + 0x9E3779B9) & mask, (high + 0xBB67AE85) & mask
    return [a, b, c, d]


def drawn(seed: int, step: int, stream: int, total: int, count: int) -> list[int]:
    """Return the integers below ``total`` that a step draws."""
    numbers = []
    for i in range(count):
        words = philox(seed, (i // 2, step & 0xFFFFFFFF, step >> 32, stream))
        low, high = words[2 * (i % 2) : 2 * (i % 2) + 2]
        numbers.append((high << 32 | low) * total >> 64)
    return numbers


class Oracle:
    """The expected result of a sampler over these episodes, computed transition by transition from the episodes."""

    def __init__(
        self,
        episodes: list[Episode],
        n_steps: int,
        gamma: float,
        frame_stack: int,
        stack_pad: str,
        next_action: bool,
        chosen: list[int] | None,
    ) -> None:
        self.n, self.gamma, self.k, self.pad = n_steps, gamma, frame_stack, stack_pad
        first_rows = np.cumsum([0] + [episode.steps + 1 for episode in episodes])
        self.transitions = []
        for number in range(len(episodes)) if chosen is None else chosen:
            episode = episodes[number]
            lost = not episode.terminated and (episode.final_missing or next_action)
            self.transitions += [(episode, t, episode.steps - lost, int(first_rows[number]) + t) for t in range(episode.steps - lost)]

    def batch(self, seed: int, step: int, count: int) -> list[dict[str, Any]]:
        return [self.one(*self.transitions[u]) for u in drawn(seed, step, STREAM, len(self.transitions), count)]

    def one(self, episode: Episode, t: int, limit: int, row: int) -> dict[str, Any]:
        end = min(t + self.n, limit)
        reward = 0.0
        for i in range(t, end):
            reward += self.gamma ** (i - t) * float(episode.reward[i])
        return {
            "observation": self.each(episode.observation, lambda rows: self.stack(rows, t)),
            "index": row,
            "next_observation": self.each(episode.observation, lambda rows: self.stack(rows, end)),
            "action": self.each(episode.action, lambda rows: rows[t]),
            "reward": reward,
            "next_action": self.each(episode.action, lambda rows: rows[end] if end < episode.steps else np.zeros_like(rows[0])),
            "terminal": float(episode.terminated and end == episode.steps),
            "discount": self.gamma ** (end - t),
            "extra": self.each(episode.extra, lambda rows: rows[t]),
        }

    @staticmethod
    def each(value: Any, take: Any) -> Any:
        return {name: take(rows) for name, rows in value.items()} if isinstance(value, Mapping) else take(value)

    def stack(self, observations: np.ndarray, t: int) -> np.ndarray:
        frames = []
        for i in range(t - self.k + 1, t + 1):
            if i < 0:
                frames.append(observations[0] if self.pad == "first" else np.zeros_like(observations[0]))
            else:
                frames.append(observations[i] if i < len(observations) else np.zeros_like(observations[0]))
        if self.k == 1:
            return frames[0]
        return np.concatenate([np.atleast_1d(frame) for frame in frames])
