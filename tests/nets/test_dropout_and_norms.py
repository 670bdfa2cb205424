"""Dropout's share and scale, batch norm over several evaluations of one loss, and a compiled loss that uses both."""

from __future__ import annotations

import pytest
import torch

from offrl.errors import InvalidInput
from offrld.nets import Encoder
from offrld.nets.context import CONTEXT, Context
from offrld.nets.encoders import build
from offrld.nets.encoders.layers import batch_norm, dropout
from offrld.nets.tracing import one_graph


def training(key: int = 0) -> dict[str, Context]:
    return {CONTEXT: Context(torch.tensor(key), True)}


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_dropout_keeps_its_fraction_and_scales_it_so_that_the_mean_is_unchanged(rate):
    x = torch.full((500, 400), 2.0, dtype=torch.float64)
    y = dropout(training(), "d", x, rate)
    kept = y != 0
    assert abs(kept.double().mean() - (1 - rate)) < 5 * (rate * (1 - rate) / x.numel()) ** 0.5
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 2.0 / (1 - rate)))
    for axis in (0, 1):  # no row or column is dropped as one
        assert kept.double().mean(axis).std() < 1.5 * (rate * (1 - rate) / x.shape[axis]) ** 0.5


def test_dropout_of_images_drops_whole_channels_of_single_images():
    x = torch.rand(300, 64, 3, 4, dtype=torch.float64) + 0.5
    y = dropout(training(), "d", x, 0.3, image=True)
    kept = y[:, :, 0, 0] != 0
    assert abs(kept.double().mean() - 0.7) < 5 * (0.21 / kept.numel()) ** 0.5
    torch.testing.assert_close(y, x * kept[:, :, None, None] / 0.7)
    assert 0 < kept[0].sum() < 64
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize(("kind", "view"), [("vector", (5,)), ("pixel", (2, 8, 8)), ("simba", (5,))])
def test_dropout_is_off_in_evaluation_differs_between_layers_calls_and_keys_and_is_repeatable(kind, view):
    encoder = Encoder(type=kind, units=(32, 32), dropout=0.5, filters=(16, 3, 2), feature_size=32, blocks=2)
    network = build("net", view, encoder)
    params = network.init(torch.Generator().manual_seed(0), torch.float64)
    x = torch.randn(16, *view, dtype=torch.float64)
    evaluated = network(params, x)
    assert torch.equal(evaluated, network({**params, CONTEXT: Context(torch.tensor(0), False)}, x))
    with_context = {**params, **training(1)}
    first, second = network(with_context, x), network(with_context, x)
    others = [evaluated, first, second, network({**params, **training(2)}, x)]
    assert all(not torch.equal(one, other) for i, one in enumerate(others) for other in others[:i])
    assert torch.equal(first, network({**params, **training(1)}, x))


@pytest.mark.parametrize(("kind", "view"), [("vector", (5,)), ("dense", (5,)), ("pixel", (2, 8, 8))])
def test_without_activations_the_mean_over_many_draws_is_the_evaluated_network(kind, view):
    network = build("net", view, Encoder(type=kind, units=(24, 8), dropout=0.4, filters=(6, 3, 2), feature_size=8, activation="none"))
    params = network.init(torch.Generator().manual_seed(0), torch.float64)
    x = torch.randn(4, *view, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = torch.stack([network({**params, **training(key)}, x) for key in range(1000)])
    error = (drawn.mean(0) - network(params, x)).abs() / (drawn.std(0) / 1000**0.5)
    assert error.max() < 5
    assert (drawn == 0).all(0).sum() == 0


def test_batch_norm_updates_its_averages_at_each_evaluation_in_a_loss_without_gradient():
    params = {"n.weight": torch.ones(3), "n.bias": torch.zeros(3), "n.running_mean": torch.zeros(3), "n.running_var": torch.ones(3)}
    params = {name: value.double().requires_grad_() for name, value in params.items()}
    module = torch.nn.BatchNorm1d(3).double()
    context = Context(torch.tensor(0), True)
    for seed in range(3):
        x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 1
        torch.testing.assert_close(batch_norm({**params, CONTEXT: context}, "n", x, image=False), module(x))
    torch.testing.assert_close(context.updates["n.running_mean"], module.running_mean)
    torch.testing.assert_close(context.updates["n.running_var"], module.running_var)
    assert not any(value.requires_grad for value in context.updates.values())
    assert torch.equal(params["n.running_mean"], torch.zeros(3))  # the engine writes the state, not the network


def test_batch_norm_refuses_to_train_on_a_single_row_but_evaluates_one():
    network = build("net", (3,), Encoder(batch_norm=True))
    params = network.init(torch.Generator(), torch.float32)
    assert network(params, torch.zeros(1, 3)).shape == (1, 256)
    with pytest.raises(InvalidInput, match="one row"):
        network({**params, **training()}, torch.zeros(1, 3))


def test_a_compiled_loss_over_seeds_gives_the_eager_values_gradients_and_running_statistics():
    network = build("net", (5,), Encoder(units=(16, 16), dropout=0.3, batch_norm=True, layer_norm=True), 2)
    per_seed = [network.init(torch.Generator().manual_seed(seed), torch.float64) for seed in range(2)]
    params = {name: torch.stack([one[name] for one in per_seed]).requires_grad_() for name in per_seed[0]}
    observation, action = torch.randn(2, 8, 5, dtype=torch.float64), torch.randn(2, 3, 8, 2, dtype=torch.float64)

    def single(params, key, observation, action):
        context = Context(key, True)
        online = network({**params, CONTEXT: context}, observation, action)
        target = network({**params, CONTEXT: Context(key, False)}, observation, action)
        return ((online - target) ** 2).mean(), context.updates

    mapped = torch.func.vmap(single)

    def total(*arguments):
        values, updates = mapped(*arguments)
        return values.sum(), updates

    arguments = (params, torch.tensor([3, 1 << 40]), observation, action)
    wanted = [value for name, value in params.items() if ".running_" not in name]
    results = []
    for function in (total, one_graph(total, backend="aot_eager")):
        value, updates = function(*arguments)
        results.append([value, *torch.autograd.grad(value, wanted), *updates.values()])
    assert len(results[0]) > len(wanted) + 1
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-9, atol=1e-12)
