"""Every feed trains the same run, and the choice among them follows device and memory, and is logged."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrld.algos import ALGORITHMS
from offrld.engine import Learner
from offrld.engine.batches.resident import SHARE, needed_bytes
from offrld.engine.batches.source import Request
from offrld.engine.batches.source_choice import SourceChoice

FEEDS = ("host", "prefetch", "resident")
NAMES = ("td3_bc", "rebrac", "discrete_cql")  # noise, next actions, n-step sums of discrete actions


def learner_of(name, store, **options):
    algorithm = ALGORITHMS[name]
    settings = {"batch_size": 16, "observation_scaler": "standard"} | ({"n_steps": 3} if name == "discrete_cql" else {})
    return Learner.create(algorithm, algorithm.configure(settings), store, holdout=0.2, **options)


def state_of(learner):
    return {name: value.clone() for name, value in learner.state.tensors().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_feed_trains_the_same_bits(name, stacked, store_for):
    store, ends = store_for(ALGORITHMS[name]), {}
    for feed in FEEDS:
        learner = learner_of(name, store, seeds=[0, 3], feed=feed, stacked=stacked)
        learner.run(8)
        assert learner.describe_run()["feed"] == feed
        ends[feed] = state_of(learner), learner.metrics(), learner.validate()
    for feed in FEEDS[1:]:
        assert_equal(ends[feed][0], ends["host"][0])
        assert ends[feed][1:] == ends["host"][1:]


@pytest.mark.parametrize("feed", FEEDS[1:])
def test_a_run_resumed_with_another_feed_gives_the_same_bits(feed, continuous_store, tmp_path):
    through = learner_of("td3_bc", continuous_store, seeds=[2])
    through.run(12)
    first = learner_of("td3_bc", continuous_store, seeds=[2], feed=feed)
    first.run(6)
    first.save(tmp_path / "half.safetensors")
    for other in FEEDS:
        second = learner_of("td3_bc", EpisodeStore.open(continuous_store.path), seeds=[2], feed=other)
        second.restore(tmp_path / "half.safetensors")
        second.run(6)
        assert_equal(state_of(second), state_of(through))


def test_an_unreferenced_learner_leaves_no_thread(continuous_store):
    learner = learner_of("td3_bc", continuous_store, seeds=[0, 1], feed="prefetch")
    learner.run(2)
    learner.validate()
    assert sum(thread.name == "offrl-prefetch" for thread in threading.enumerate()) == 2
    del learner
    assert not [thread for thread in threading.enumerate() if thread.name == "offrl-prefetch"]


# --- The choice -------------------------------------------------------------------------------------------------------------------


def test_the_choice_is_logged(continuous_store):
    for feed, expected in (
        ("auto", "feed: host, because the device is cpu"),
        ("prefetch", "feed: prefetch, as requested"),
        ("resident", "feed: resident, as requested: the store takes "),
    ):
        told = []
        learner_of("bc", continuous_store, feed=feed, log=told.append)
        assert [line.startswith(expected) for line in told if line.startswith("feed")] == [True], told


def test_an_unknown_feed_is_refused(continuous_store):
    with pytest.raises(InvalidInput, match="feed 'fast' is unknown"):
        learner_of("bc", continuous_store, feed="fast")


def test_on_a_gpu_the_store_is_resident_if_it_takes_at_most_half_of_the_free_memory(continuous_store, monkeypatch):
    """The CUDA runtime's figures are set here; memory that torch holds in reserve counts as free."""
    request = Request("transitions", {"batch_size": 8}, (0,))
    needed = needed_bytes(continuous_store, request)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    for free, expected in ((needed / SHARE - 2000, "resident"), (needed / SHARE - 2001, "prefetch"), (1e12, "resident")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 0))
        supply = SourceChoice(continuous_store, torch.device("cuda:0"), "auto", lambda text: None)
        chosen, why = supply._choose(request)
        assert chosen == expected
        assert "free on cuda:0" in why
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed - 2001, 0))
    with pytest.raises(InvalidInput, match="feed 'resident' does not fit: the store takes"):
        SourceChoice(continuous_store, torch.device("cuda:0"), "resident", lambda text: None).open(request)


def test_the_hosts_batches_on_the_cpu_are_the_samplers_own_memory(continuous_store):
    """Nothing is copied and nothing is made per update: the same tensors come back with new values."""
    learner = learner_of("bc", continuous_store)
    source = learner.trainer.feeds.several_steps[0].source
    first, kept = source.samples(0), source.samples(0).batch.action.clone()
    again = source.samples(1)
    assert again is first
    assert not torch.equal(again.batch.action, kept)
    batch = learner.trainer.feeds.several_steps[0].batch(2)
    assert batch.reward.data_ptr() == first.batch.reward.data_ptr()
    assert np.shares_memory(batch.reward.numpy(), first.batch.reward.numpy())
