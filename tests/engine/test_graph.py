"""Many updates at once: a chunk gives the same bits as the ordinary loop, reads no values back, and ends before any other event."""

from __future__ import annotations

import dataclasses
import traceback

import pytest
import torch
from cheap_settings import FROM_DATA, cheap_learner
from torch.utils._python_dispatch import TorchDispatchMode

from offrl.errors import InvalidInput
from offrld.algos import ALGORITHMS, bc
from offrld.engine import Learner, Optimizer, Stage, Step
from offrld.engine.definition import rules
from offrld.engine.definition.optimizer import parts_of
from offrld.engine.learner.runner_choice import choose_graph, chunks_agree
from offrld.engine.updates import graph as graphs
from offrld.engine.updates.graph import Chunks, Pattern, moved_alike
from offrld.nets.aligned import BOUNDARY

ALL = list(FROM_DATA.values())
names = pytest.mark.parametrize("algorithm", ALL, ids=lambda a: a.name)
KINDS = ("td3_bc", "iql", "cql", "dqn")


def learner_of(algorithm, store, values=None, **options):
    return cheap_learner(algorithm, store, values, feed="resident", **options)


def chunked(learner, length, *, met=1):
    """Make the learner train in chunks that run without a graph."""
    seen = []

    def capture(chunk):
        def run():
            seen.append(len(chunk._pattern.dues))
            return chunk()

        return run

    learner.use_chunks(capture, length)
    learner.trainer.chunks._met = Always(met)
    return seen


class Always(dict):
    """Report every pattern as frequent enough to capture."""

    def __init__(self, times):
        super().__init__()
        self._times = times

    def get(self, key, default=None):
        return self._times


def ends(learner):
    return {name: value.clone() for name, value in learner.state.tensors().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@names
@pytest.mark.parametrize("stacked", [False, True])
def test_chunks_give_the_bits_of_single_updates(algorithm, stacked, store_for):
    store = store_for(algorithm)
    single = learner_of(algorithm, store, seeds=[0, 3], stacked=stacked)
    single.run(11)
    together = learner_of(algorithm, store, seeds=[0, 3], stacked=stacked)
    seen = chunked(together, 4)
    together.run(3)
    together.run(8)
    assert sum(seen) == 11
    assert_equal(ends(together), ends(single))
    assert together.metrics() == single.metrics()
    assert together.trainer.moves == single.trainer.moves


@pytest.mark.parametrize("linear", ["torch", "onednn"])
@pytest.mark.parametrize("name", KINDS)
def test_chunks_multiply_as_single_updates_do_and_align_each_batch_like_a_single_one(name, linear, store_for):
    algorithm, begins = ALGORITHMS[name], set()
    values = {"batch_size": 3}  # of 3 x 3 numbers, so that the next batch in a chunk begins off every boundary
    single, together = (learner_of(algorithm, store_for(algorithm), values, seeds=[0, 3], linear=linear) for _ in "ab")
    single.run(8)
    seen = chunked(together, 4)
    apply = together.trainer.updater.apply
    together.trainer.updater.apply = lambda due, batches, taken: begins.update(map(begin, batches)) or apply(due, batches, taken)
    together.run(8)
    assert seen == [4, 4]
    assert begins == {0}
    assert_equal(ends(together), ends(single))
    assert together.metrics() == single.metrics()


def begin(batch):
    """The furthest from a boundary at which a tensor of numbers of the batch begins, in bytes."""
    return max(tensor.data_ptr() % BOUNDARY for tensor in graphs.tensors_of(batch) if tensor.is_floating_point())


@pytest.mark.parametrize(
    "optimizer",
    [
        {"schedule": "cosine", "cosine_steps": 6},
        {"type": "sgd", "momentum": 0.9, "dampening": 0.5},
        {"type": "nadam"},
        {"type": "radam"},
        {"type": "adagrad", "rate_decay": 0.5},
        {"type": "rprop"},
    ],
)
def test_everything_that_depends_on_the_step_count_follows_it(optimizer, continuous_store):
    values = {f"optimizer.{name}": value for name, value in optimizer.items()}
    single, together = (learner_of(bc.ALGORITHM, continuous_store, values, dtype=torch.float64) for _ in range(2))
    single.run(9)
    seen = chunked(together, 4)
    together.run(9)
    assert seen == [4, 4, 1]
    for name, value in ends(single).items():
        torch.testing.assert_close(ends(together)[name], value, rtol=1e-9, atol=1e-12)


def test_steps_with_a_start_and_an_end_and_stages_run_at_the_right_updates(continuous_store):
    def step(name, **when):
        def loss(params, config, nets, state, batch):
            value, _ = bc.loss(params, config, nets, state, batch)
            return value, {name: value}

        return Step(name, loss, optimizes=("policy",), learning_rate=1e-3, **when)

    stages = (Stage("one", (step("early", until=3), step("late", start=2, every=2)), updates=6), Stage("two", (step("last"),)))
    algorithm = dataclasses.replace(bc.ALGORITHM, stages=lambda config: stages)
    single, together = (Learner.create(algorithm, algorithm.configure({"batch_size": 8}), continuous_store, feed="resident") for _ in "ab")
    single.run(10)
    seen = chunked(together, 4)
    together.run(10)
    assert seen == [4, 2, 4]
    assert_equal(ends(together), ends(single))
    assert together.metrics() == single.metrics()


def test_the_hook_runs_before_each_update_unless_the_algorithm_declares_when_it_has_work(continuous_store):
    called = []
    hooked = dataclasses.replace(bc.ALGORITHM, between=lambda learner, k: called.append((learner.step, k)))
    learner = learner_of(hooked, continuous_store)
    assert chunked(learner, 4) == []
    learner.run(3)
    assert called == [(0, 0), (1, 1), (2, 2)]
    called.clear()
    learner = learner_of(dataclasses.replace(hooked, next_between=lambda config, k: k + 3 - k % 3), continuous_store)
    seen = chunked(learner, 8)
    learner.run(7)
    assert called == [(0, 0), (3, 3), (6, 6)]
    assert seen == [3, 3, 1]


def test_a_repeated_pattern_is_captured_and_others_run_one_by_one(continuous_store):
    learner, captured = learner_of(ALGORITHMS["td3_bc"], continuous_store, {"update_actor_interval": 3}), []
    learner.use_chunks(lambda chunk: captured.append(chunk._pattern) or chunk, 6)
    learner.run(5)  # a rest of five, met once
    assert captured == []
    single = learner_of(ALGORITHMS["td3_bc"], continuous_store, {"update_actor_interval": 3})
    learner.run(61)
    single.run(66)
    assert captured
    assert len(captured) == len(set(captured))
    assert_equal(ends(learner), ends(single))


def test_no_more_graphs_are_captured_than_are_allowed(continuous_store, monkeypatch):
    monkeypatch.setattr(graphs, "GRAPHS", 2)
    learner, captured = learner_of(bc.ALGORITHM, continuous_store), []
    learner.use_chunks(lambda chunk: captured.append(chunk) or chunk, 8)
    learner.trainer.chunks._met = Always(2)
    for updates in (1, 2, 3, 4, 1, 2):
        learner.run(updates)
    assert len(captured) == 2
    assert learner.step == 13


class Readings(TorchDispatchMode):
    """What would stop a capture: values read back, sizes that depend on them, and numbers of the host made into tensors."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = str(function)
        suspect = any(word in name for word in ("_local_scalar", "nonzero", "masked_select", "unique", "aten.equal", "lift_fresh"))
        # On the CPU, and there alone, the optimizer reads a rate that is a tensor, and dropout its key.
        readers = ("definition/optimizer_step.py", "nets/random.py")
        if suspect and not any(frame.filename.endswith(readers) for frame in traceback.extract_stack()):
            self.found.add(name)
        return function(*arguments, **(options or {}))


@names
def test_a_chunk_reads_no_values_back(algorithm, store_for):
    learner, found = learner_of(algorithm, store_for(algorithm)), set()

    def capture(chunk):
        def run():
            with Readings() as readings:
                metrics = chunk()
            found.update(readings.found)
            return metrics

        return run

    learner.use_chunks(capture, 3)
    learner.trainer.chunks._met = Always(1)
    learner.run(3)
    assert not found


@pytest.mark.parametrize("kind", rules.RULES)
def test_no_optimizer_rule_reads_values_back(kind):
    shapes = [(4, 3), (4,)]
    parts = {part: [torch.zeros(shape) for shape in shapes] for part in parts_of(Optimizer(type=kind))}
    with Readings() as readings:
        rules.RULES[kind](Optimizer(type=kind), [torch.ones(shape) for shape in shapes], parts, torch.full((), 7.0, dtype=torch.float64))
    assert not readings.found


@pytest.mark.parametrize("name", KINDS)
def test_the_first_updates_are_compared_and_the_state_is_unchanged(name, store_for):
    learner = learner_of(ALGORITHMS[name], store_for(ALGORITHMS[name]), seeds=[0, 1])
    learner.use_chunks(lambda chunk: chunk, 4)
    before = ends(learner)
    assert chunks_agree(learner.trainer)
    assert_equal(ends(learner), before)
    assert learner.step == 0
    assert set(learner.trainer.moves.values()) == {0}
    assert all(not moments.counts.any() for moments in learner.state.moments.values())
    assert learner.metrics() == {}


def test_a_capture_that_leaves_something_out_is_noticed(continuous_store):
    def forgetful(chunk):
        def run():
            chunk._pattern = dataclasses.replace(chunk._pattern, dues=chunk._pattern.dues[:-1])
            return chunk()

        return run

    learner = learner_of(ALGORITHMS["td3_bc"], continuous_store)
    learner.use_chunks(forgetful, 4)
    assert not chunks_agree(learner.trainer)
    start = [torch.zeros(3)]
    assert moved_alike(start, [torch.ones(3)], [torch.ones(3) * 1.01])
    assert not moved_alike(start, [torch.ones(3)], [torch.tensor([1.0, 1.0, float("nan")])])


def test_patterns_record_how_often_each_optimizer_steps(continuous_store):
    learner = learner_of(ALGORITHMS["td3_bc"], continuous_store)
    schedule = learner.state.schedules["train"]
    pattern = Pattern.of("train", schedule, 3, 4)
    assert pattern.dues == ((0,), (0, 1), (0,), (0, 1))
    assert pattern.moves(schedule) == {"train.critic": 4, "train.actor": 2}
    assert Pattern.of("train", schedule, 5, 4) == pattern


def test_it_is_refused_without_a_gpu_and_without_a_resident_store(continuous_store):
    with pytest.raises(InvalidInput, match="needs a CUDA device"):
        Learner.create(bc.ALGORITHM, bc.ALGORITHM.configure({"batch_size": 8}), continuous_store, device="cpu", runner="graph")
    learner = Learner.create(bc.ALGORITHM, bc.ALGORITHM.configure({"batch_size": 8}), continuous_store, device="cpu")
    with pytest.raises(InvalidInput, match="the feed is host"):
        learner.use_chunks(lambda chunk: chunk)


def test_the_reason_for_no_graph_is_logged_and_training_continues(continuous_store, monkeypatch):
    lines = []
    config = bc.ALGORITHM.configure({"batch_size": 8})
    learner = Learner.create(bc.ALGORITHM, config, continuous_store, feed="resident", device="cpu", log=lines.append)
    monkeypatch.setattr("offrld.engine.learner.runner_choice.cuda_capture", lambda state: lambda chunk: 1 / 0)
    choose_graph(learner.trainer, lines.append)
    assert lines[-1] == "runner: eager, because capturing failed (ZeroDivisionError: division by zero)"
    assert learner.runner == "eager"
    learner.run(3)
    monkeypatch.setattr("offrld.engine.learner.runner_choice.cuda_capture", lambda state: lambda chunk: chunk)
    choose_graph(learner.trainer, lines.append)
    assert lines[-1].startswith("runner: graph, 32 updates at a time, losses by eager")
    assert learner.describe_run()["runner"] == "graph"


def test_large_batches_make_chunks_short(continuous_store, monkeypatch):
    learner = learner_of(bc.ALGORITHM, continuous_store)
    monkeypatch.setattr(graphs, "BATCH_BYTES", 4 * sum(tensor.nbytes for tensor in graphs.tensors_of(learner.trainer.batches(0)[0])))
    learner.use_chunks(lambda chunk: chunk)
    assert learner.trainer.chunks.length == 4
    assert isinstance(learner.trainer.chunks, Chunks)
