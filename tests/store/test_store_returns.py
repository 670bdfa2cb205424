"""Monte-Carlo returns of sampled transitions and lambda returns over windows, against sums made one by one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import KERNELS, MEMORY, Oracle, drawn, using, write
from store_numbered import SIMPLE, numbered_episode

from offrl_store import Episode, Field, Schema, lambda_returns
from offrl_store.errors import InvalidInput
from offrl_store.sampler import STREAM


@pytest.mark.parametrize("kernel", KERNELS)
@given(lengths=st.lists(st.tuples(st.integers(1, 70), st.booleans(), st.booleans()), min_size=1, max_size=6), data=st.data())
@settings(max_examples=60, deadline=None)
def test_returns_are_the_discounted_sums_to_the_end_of_the_episode(kernel, lengths, data):
    gamma, seed = data.draw(st.sampled_from([0.0, 0.5, 0.99, 1.0])), data.draw(st.integers(0, 2**32))
    sparse, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(["float32", "float64", "int16"]))
    failure = data.draw(st.none() | st.just(-7.5))
    noise = np.random.default_rng(seed)
    episodes = []
    for steps, terminated, missing in lengths:
        reward = (noise.random(steps) < 0.03).astype(dtype) if sparse else noise.integers(-9, 9, steps).astype(dtype)
        episodes.append(Episode(np.zeros((steps + (not missing), 1), np.float32), noise.integers(0, 2, steps), reward, terminated))
    oracle = Oracle(episodes, 1, gamma, 1, "zero", False, None)
    if not oracle.transitions:
        return
    with using(kernel), tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = write(Path(folder) / "s", Schema(Field("float32", (1,)), Field("int32", (), 0, 1), Field(dtype)), episodes)
        batch = store.transitions(140, seed, gamma=gamma, returns=True, failure_return=failure).sample()
        for i, number in enumerate(drawn(seed, 0, STREAM, len(oracle.transitions), 140)):
            episode, t, _, _ = oracle.transitions[number]
            rewards = [float(r) for r in episode.reward[t:]]
            if failure is not None and not any(rewards):
                rewards = [failure]
            np.testing.assert_allclose(batch.returns[i], sum(gamma**k * r for k, r in enumerate(rewards)), rtol=1e-5, atol=1e-5)
            assert batch.remaining[i] == len(rewards)


def test_both_kernels_give_the_same_bits(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(30)])
    batches = []
    for kernel in KERNELS:
        with using(kernel):
            batches.append(store.transitions(500, 3, gamma=0.97, returns=True).sample())
    assert np.array_equal(batches[0].returns, batches[1].returns)
    assert np.array_equal(batches[0].remaining, batches[1].remaining)


def test_the_returns_of_first_steps_equal_the_stores(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(0, 30, 3)])
    sampler = store.transitions(len(store), 0, gamma=1.0, returns=True)
    firsts = np.cumsum([0, *store.episode_table["steps"][:-1]])
    np.testing.assert_allclose(sampler.gather(firsts).returns, store.returns, rtol=1e-6)


def test_returns_fill_the_callers_arrays_and_are_absent_by_default(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(3)])
    out = {"returns": np.zeros(4, np.float32), "remaining": np.zeros(4, np.int64)}
    assert store.transitions(4, 0, returns=True, out=out).sample().returns is out["returns"]
    assert out["remaining"].all()
    assert store.transitions(4, 0).sample().returns is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"returns": 2}, "returns 2"),
        ({"failure_return": -1.0}, "returns=True"),
        ({"returns": True, "failure_return": "no"}, "failure_return 'no'"),
        ({"returns": True, "step_reward": float("nan")}, "step_reward nan"),
        ({"out": {"returns": np.zeros(4, np.float32)}}, "'returns'"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, arguments, message):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(3)])
    with pytest.raises(InvalidInput, match=message):
        store.transitions(4, 0, **arguments)


# --- Lambda returns -------------------------------------------------------------------------------------------------------------


def mixture(reward, value, discount, decay: float, t: int) -> float:
    """The lambda return by its definition: the n-step returns weighted by (1 - decay) decay^(n-1), the longest by what is left."""
    total, n = 0.0, len(reward) - t
    for steps in range(1, n + 1):
        ret, factor = 0.0, 1.0
        for k in range(t, t + steps):
            ret += factor * float(reward[k])
            factor *= float(discount[k])
        ret += factor * float(value[t + steps - 1])
        total += (decay ** (n - 1) if steps == n else (1 - decay) * decay ** (steps - 1)) * ret
    return total


@pytest.mark.parametrize("kernel", KERNELS)
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 9)), decay=st.sampled_from([0.0, 0.3, 0.95, 1.0]), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_lambda_returns_are_the_mixture_of_n_step_returns(kernel, shape, decay, seed):
    noise = np.random.default_rng(seed)
    reward, value = noise.standard_normal((2, *shape)).astype(np.float32)
    discount = np.where(noise.random(shape) < 0.2, 0, 0.99).astype(np.float32)
    with using(kernel):
        found = lambda_returns(reward, value, discount, decay)
        one = lambda_returns(reward[0], value[0], discount[0], decay, out=np.empty(shape[1], np.float32))
    assert np.array_equal(found[0], one)
    for b in range(shape[0]):
        due = [mixture(reward[b], value[b], discount[b], decay, t) for t in range(shape[1])]
        np.testing.assert_allclose(found[b], due, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"decay": 1.5}, "decay 1.5"),
        ({"discount": np.ones((2, 4))}, r"\[2, 3\], \[2, 3\], \[2, 4\]"),
        ({"out": np.zeros((2, 3))}, "out must be"),
        ({"out": np.zeros(3, np.float32)}, "out must be"),
    ],
)
def test_wrong_lambda_arguments_are_named(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        lambda_returns(**{"reward": np.ones((2, 3)), "next_value": np.ones((2, 3)), "discount": np.ones((2, 3)), "decay": 0.9, **arguments})
