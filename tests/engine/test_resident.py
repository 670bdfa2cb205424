"""A store resident on a device gives the same batches as the host's sampler, bit for bit, for any request."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import KERNELS, MEMORY, stores, using, write
from torch.utils._python_dispatch import TorchDispatchMode

from offrl.errors import InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.algos import ALGORITHMS
from offrld.engine import Learner
from offrld.engine.batches.resident import Resident, ResidentSource, needed_bytes
from offrld.engine.batches.source import HostSource, Request, Samples, each
from offrld.engine.definition.algorithm import Noise

CPU = torch.device("cpu")
NOISE = {"target": Noise((3, 2)), "mix": Noise((5,), "uniform")}


def bits(value):
    """Return the array's bytes, so that NaN and the sign of zero count."""
    array = np.ascontiguousarray(value.numpy() if isinstance(value, torch.Tensor) else value)
    return array.dtype, array.shape, array.tobytes()


def assert_same(one, other, label=""):
    """Assert that two raw batches are equal in every part."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), label
        for name in one:
            assert_same(one[name], other[name], f"{label}.{name}")
    elif one is None or other is None:
        assert one is other, label
    elif isinstance(one, torch.Tensor):
        assert bits(one) == bits(other), label
    else:
        assert type(one) is type(other)
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name), f"{label}.{field.name}")


def sub(raw, *where):
    """One step's or seed's part of a raw batch with leading axes."""
    return Samples(each(raw.batch, lambda tensor: tensor[where]), {name: tensor[where] for name, tensor in raw.noise.items()})


def source_of(store, request):
    return ResidentSource(Resident(store, CPU), request)


@st.composite
def requests(draw, schema, episodes):
    """Arguments of either sampler that are allowed for these episodes."""
    kind = draw(st.sampled_from(["transitions", "windows"]))
    arguments = {
        "batch_size": draw(st.integers(1, 12)),
        "frame_stack": draw(st.integers(1, 3)),
        "stack_pad": draw(st.sampled_from(["zero", "first"])),
        "extra": tuple(draw(st.lists(st.sampled_from(sorted(schema.extra)), unique=True))) if schema.extra else (),
    }
    if draw(st.booleans()):
        arguments["episodes"] = draw(st.lists(st.integers(0, len(episodes) - 1), min_size=1, max_size=4))
    if draw(st.booleans()):
        arguments |= {"replacement": False, "drop_last": draw(st.booleans())}
    if kind == "windows":
        arguments["length"] = draw(st.integers(1, 6))
    else:
        arguments |= {"n_steps": draw(st.integers(1, 4)), "gamma": draw(st.floats(0, 1)), "next_action": draw(st.booleans())}
        if draw(st.booleans()):
            arguments["returns"] = True
            if draw(st.booleans()):
                arguments |= {"failure_return": -3.5, "step_reward": float(draw(st.integers(0, 1)))}
    seeds = tuple(draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3, unique=True)))
    stacked = len(seeds) > 1 or draw(st.booleans())
    return Request(kind, arguments, seeds, NOISE, stacked)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_resident_batches_are_the_hosts(kernel, data):
    schema, episodes = data.draw(stores())
    request = data.draw(requests(schema, episodes))
    with using(kernel), tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = EpisodeStore.open(write(f"{folder}/store", schema, episodes).path)
        try:
            host = HostSource(store, request)
        except Exception as error:  # nothing to sample, or a batch larger than an epoch: the same for both
            with pytest.raises(type(error)):
                source_of(store, request)
            return
        resident = source_of(store, request)
        for k in (0, 1, data.draw(st.integers(0, 40)), data.draw(st.integers(0, 2**62))):
            assert_same(resident.samples(k), host.samples(k), f"k={k}")


def pixel_store(path, frames=60, seed=0):
    noise = np.random.default_rng(seed)
    schema = Schema(observation=Field("uint8", (1, 20, 20)), action=Field("int32", (), 0, 3))
    episodes = [
        Episode(
            noise.integers(0, 255, (steps + (steps % 2), 1, 20, 20)).astype(np.uint8),
            noise.integers(0, 4, steps).astype(np.int32),
            noise.normal(size=steps).astype(np.float32),
            terminated=steps % 3 == 0,
        )
        for steps in noise.integers(1, 20, frames // 10)
    ]
    return EpisodeStore.open(write(path, schema, episodes).path)


@pytest.mark.parametrize("arguments", [{"frame_stack": 4}, {"frame_stack": 4, "n_steps": 3, "stack_pad": "first"}])
def test_pixels_stay_bytes_and_stacks_are_the_hosts(tmp_path, arguments):
    store = pixel_store(tmp_path / "store")
    request = Request("transitions", {"batch_size": 32, **arguments}, (3,))
    host, resident = HostSource(store, request), Resident(store, CPU)
    source = ResidentSource(resident, request)
    for k in range(5):
        assert_same(source.samples(k), host.samples(k))
    assert source.samples(0).batch.observation.dtype == torch.uint8
    rows = len(store.column("reward"))
    assert resident.nbytes < rows * (400 + 8 + 4) + 60 * len(store)  # a frame is kept once, as bytes


@pytest.mark.parametrize("kind", ["transitions", "windows"])
def test_rewards_and_next_actions_that_replace_the_stores_are_used(continuous_store, discrete_store, kind):
    for store in (continuous_store, discrete_store):
        noise = np.random.default_rng(0)
        actions = store.column("action")
        given = noise.permutation(actions)
        arguments = {"batch_size": 16, "reward": noise.standard_normal(len(actions)).astype(np.float32)}
        arguments |= {"length": 4} if kind == "windows" else {"n_steps": 3, "gamma": 0.9, "returns": True, "next_action": given}
        request = Request(kind, arguments, (1,))
        host, resident = HostSource(store, request), source_of(store, request)
        for k in range(4):
            assert_same(resident.samples(k), host.samples(k))


@pytest.mark.parametrize("kind", ["transitions", "windows"])
def test_many_updates_at_once_equal_single_ones(continuous_store, kind):
    arguments = {"batch_size": 9} | ({"length": 4} if kind == "windows" else {"n_steps": 3})
    source = source_of(continuous_store, Request(kind, arguments, (5, 2**63 + 1), NOISE, stacked=True))
    together = source.samples(torch.arange(10, 14))
    assert together.batch.observation.shape[:3] == (4, 2, 9)
    for place, k in enumerate(range(10, 14)):
        assert_same(sub(together, place), source.samples(k))
        for s, seed in enumerate((5, 2**63 + 1)):
            alone = HostSource(continuous_store, Request(kind, arguments, (seed,), NOISE))
            assert_same(sub(together, place, s), alone.samples(k))


class Operations(TorchDispatchMode):
    """Collect the names of executed operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("arguments", [{"n_steps": 3, "next_action": True}, {"replacement": False}, {"length": 5}])
def test_nothing_is_read_back_from_the_device(continuous_store, arguments):
    """What a CUDA graph may hold: no value that comes to the host, no tensor made of Python numbers, no size that depends on a value."""
    kind = "windows" if "length" in arguments else "transitions"
    source = source_of(continuous_store, Request(kind, {"batch_size": 16, **arguments}, (1, 2), NOISE, stacked=True))
    step = torch.tensor(3)
    with Operations() as operations:
        raw = source.samples(step)
    forbidden = {
        "aten::_local_scalar_dense",
        "aten::item",
        "aten::lift_fresh",
        "aten::nonzero",
        "aten::is_nonzero",
        "aten::equal",
        "aten::masked_select",
        "aten::_unique2",
    }
    assert operations.names & forbidden == set()
    assert "aten::index_select" in operations.names
    assert_same(raw, source.samples(3))
    for _ in range(30):  # past the end of an epoch
        step.add_(1)  # as a replayed graph counts
        assert_same(source.samples(step), source.samples(int(step)))


def test_sampling_can_be_traced_as_one_graph(continuous_store):
    source = source_of(continuous_store, Request("transitions", {"batch_size": 16, "n_steps": 2}, (1, 2), NOISE, stacked=True))

    def sample(step):
        raw = source.samples(step)
        return raw.batch.observation, raw.batch.reward, raw.batch.action, raw.noise["target"]

    step = torch.tensor(7)
    for one, other in zip(torch.compile(sample, fullgraph=True, backend="aot_eager")(step), sample(step), strict=True):
        assert torch.equal(one, other)


def test_an_epoch_with_a_shorter_batch_cannot_be_drawn_by_a_tensor(continuous_store):
    request = Request("transitions", {"batch_size": 17, "replacement": False, "drop_last": False}, (1,))
    with pytest.raises(InvalidInput, match="shorter last batch"):
        source_of(continuous_store, request).samples(torch.tensor(0))


def test_bad_arguments_are_refused_as_by_the_store(continuous_store):
    with pytest.raises(Exception, match="n_steps 0 is not a whole number"):
        source_of(continuous_store, Request("transitions", {"batch_size": 1, "n_steps": 0}, (1,)))


def test_rows_that_a_bounded_store_drops_stay_resident(tmp_path):
    schema = Schema(observation=Field("float32", (3,)), action=Field("float32", (1,)))
    store = EpisodeStore.create(tmp_path / "store", schema, limit_transitions=40)
    noise = np.random.default_rng(0)

    def episode():
        return Episode(noise.normal(size=(11, 3)).astype("f4"), noise.normal(size=(10, 1)).astype("f4"), np.ones(10, "f4"), False)

    with store.writer() as writer:
        for _ in range(7):
            writer.append(episode())
            writer.commit()
        reader = EpisodeStore.open(store.path)
        assert reader.first > 0
        request = Request("transitions", {"batch_size": 64}, (1,))
        source = source_of(reader, request)
        expected = HostSource(reader, request).samples(5)
        assert_same(source.samples(5), expected)
        copy = source.samples(5).batch.observation.clone()
        for _ in range(6):
            writer.append(episode())
            writer.commit()
    assert torch.equal(source.samples(5).batch.observation, copy)


@pytest.mark.parametrize("arguments", [{"n_steps": 5}, {"returns": True}, {"length": 3}])
def test_the_estimated_memory_is_the_allocated_memory(tmp_path, arguments):
    schema = Schema(
        observation={"a": Field("float32", (17,)), "b": Field("uint8", (3,))},
        action=Field("uint8", (), 0, 3),
        extra={"c": Field("float64")},
    )
    store = EpisodeStore.create(tmp_path / "store", schema)
    noise = np.random.default_rng(0)
    with store.writer() as writer:
        for steps in noise.integers(1, 2000, 30):
            writer.append(
                Episode(
                    {"a": np.zeros((steps + 1, 17), "f4"), "b": np.zeros((steps + 1, 3), "u1")},
                    np.zeros(steps, "u1"),
                    np.ones(steps, "f4"),
                    False,
                    {"c": np.ones(steps)},
                )
            )
    kind = "windows" if "length" in arguments else "transitions"
    for extra in ((), ("c",)):
        request = Request(kind, {"batch_size": 8, "extra": extra, **arguments}, (0,))
        resident = Resident(store, CPU)
        ResidentSource(resident, request)
        assert resident.nbytes == pytest.approx(needed_bytes(store, request), rel=0.02)


def test_seeds_share_the_tables(continuous_store):
    resident = Resident(continuous_store, CPU)
    ResidentSource(resident, Request("transitions", {"batch_size": 8, "episodes": np.arange(5)}, (0,)))
    before = resident.nbytes
    ResidentSource(resident, Request("transitions", {"batch_size": 8, "episodes": np.arange(5)}, (1,)))
    assert resident.nbytes == before
    ResidentSource(resident, Request("transitions", {"batch_size": 8, "episodes": np.arange(6)}, (1,)))
    assert resident.nbytes > before


def test_a_feed_scales_many_updates_at_once(continuous_store):
    """What a runner that captures K updates in one graph takes: Feed and source with a tensor of steps."""
    algorithm = ALGORITHMS["td3_bc"]
    config = algorithm.configure({"batch_size": 8, "observation_scaler": "standard", "reward_scaler": "min_max", "n_steps": 2})
    learner = Learner.create(algorithm, config, continuous_store, seeds=[4, 9], stacked=True, feed="resident")
    feed = learner.trainer.feeds.several_steps[0]
    together = feed.batch(torch.arange(20, 23))
    assert together.observation.shape == (3, 2, 8, 3)
    for place, k in enumerate(range(20, 23)):
        alone = feed.batch(k)
        for name in ("observation", "action", "reward", "next_observation", "terminal", "discount"):
            assert torch.equal(getattr(together, name)[place], getattr(alone, name)), name
        for name, noise in alone.noise.items():
            assert torch.equal(together.noise[name][place], noise)
