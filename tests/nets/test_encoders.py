"""Encoders against torch.nn modules of the same weights, their initial values, broadcasting actions, and what they refuse."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch_encoders import torch_encoder

from offrl.errors import InvalidInput
from offrld import settings
from offrld.nets import Encoder
from offrld.nets.context import CONTEXT, Context
from offrld.nets.encoders import build

SMALL = {"units": (7, 6), "filters": (4, 3, 2, 5, 2, 1), "channels": (3, 4), "feature_size": 9, "hidden_size": 11}
VIEWS = {"vector": (5,), "image": (2, 12, 10), "fields": {"camera": (2, 12, 10), "pose": (3,), "depth": (1, 9, 9), "goal": (2,)}}
NETWORKS = [
    ("default", "vector"),
    ("vector", "vector"),
    ("dense", "vector"),
    ("simba", "vector"),
    ("default", "image"),
    ("pixel", "image"),
    ("impala", "image"),
    ("default", "fields"),
    ("dense", "fields"),
    ("simba", "fields"),
]
networks = pytest.mark.parametrize(("kind", "where"), NETWORKS, ids=lambda value: value)
VARIANTS = [
    {}, {"batch_norm": True}, {"layer_norm": True}, {"batch_norm": True, "layer_norm": True, "last_activation": False},
    *({"activation": name} for name in ("tanh", "swish", "gelu", "geglu", "none")),
    {"activation": "geglu", "last_activation": False, "batch_norm": True}, {"blocks": 3}, {"units": ()},
]  # fmt: skip
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "+".join(f"{k}={x}" for k, x in v.items()) or "plain")


def encoder_of(kind: str, **values) -> Encoder:
    return Encoder(type=kind, **{**SMALL, **values})


def observed(view, rows: tuple[int, ...] = (6,), seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(view, dict):
        return {name: torch.randn(*rows, *shape, generator=generator, dtype=torch.float64) for name, shape in view.items()}
    return torch.randn(*rows, *view, generator=generator, dtype=torch.float64)


def made(kind: str, where: str, action_size: int = 0, **values):
    """Build an encoder whose parameters are neither 0 nor 1, so that a missing one shows."""
    encoder = encoder_of(kind, **values)
    network = build("net", VIEWS[where], encoder, action_size)
    params = network.init(torch.Generator().manual_seed(0), torch.float64)
    generator = torch.Generator().manual_seed(1)
    size = 0.02 if kind == "impala" else 0.1  # ten layers deep, features would grow until the sine below has no digits left
    for value in params.values():
        value.add_(size * (1 + torch.rand(value.shape, generator=generator, dtype=torch.float64)))
    return encoder, network, params


@networks
@variants
@pytest.mark.parametrize("action_size", [0, 2])
@pytest.mark.parametrize("training", [False, True])
def test_features_gradients_and_running_statistics_are_those_of_torch_modules(kind, where, variant, action_size, training):
    encoder, network, params = made(kind, where, action_size, **variant)
    module, named = torch_encoder(VIEWS[where], encoder, action_size, params)
    module.train(training)
    params = {name: value.requires_grad_(not name.rpartition(".")[2].startswith("running")) for name, value in params.items()}
    given = params
    for step in range(3):
        observation = observed(VIEWS[where], seed=step)
        action = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) if action_size else None
        context = Context(torch.tensor(step), training)
        features = network({**given, CONTEXT: context}, observation, action)
        expected = module(observation, action)
        assert features.shape == (6, network.feature_size)
        torch.testing.assert_close(features, expected, rtol=1e-11, atol=1e-12)
        assert context.updates.keys() == {name for name in params if training and ".running_" in name}
        given = {**given, **context.updates}
    for name in context.updates:
        torch.testing.assert_close(given[name], named[name], rtol=1e-12, atol=1e-13)
        assert not torch.equal(given[name], params[name])
    wanted = [name for name, value in params.items() if value.requires_grad]
    if wanted:
        mine = torch.autograd.grad(features.sin().sum(), [params[name] for name in wanted])
        theirs = torch.autograd.grad(expected.sin().sum(), [named[name] for name in wanted])
        for name, one, other in zip(wanted, mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@networks
@pytest.mark.parametrize("variant", [{}, {"batch_norm": True, "layer_norm": True}, {"units": ()}, {"activation": "geglu"}], ids=str)
def test_many_actions_for_each_observation_give_what_the_repeated_observations_give(kind, where, variant):
    _, network, params = made(kind, where, 2, **variant)
    observation = observed(VIEWS[where])
    action = torch.randn(4, 6, 2, dtype=torch.float64)

    def repeated(x: torch.Tensor) -> torch.Tensor:
        return x.expand(4, *x.shape).reshape(24, *x.shape[1:])

    many = {name: repeated(x) for name, x in observation.items()} if isinstance(observation, dict) else repeated(observation)
    for context in (None, Context(torch.tensor(0), True)):
        extra = {} if context is None else {CONTEXT: context}
        features = network({**params, **extra}, observation, action)
        expected = network({**params, **extra}, many, action.reshape(24, 2)).reshape(4, 6, -1)
        assert features.shape == (4, 6, network.feature_size)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)


@networks
def test_further_leading_axes_of_observations_are_kept(kind, where):
    _, network, params = made(kind, where)
    observation = observed(VIEWS[where], rows=(3, 2))
    flat = {k: x.flatten(0, 1) for k, x in observation.items()} if isinstance(observation, dict) else observation.flatten(0, 1)
    assert torch.allclose(network(params, observation), network(params, flat).reshape(3, 2, -1), rtol=0, atol=1e-12)


@networks
@pytest.mark.parametrize("training", [False, True])
def test_seeds_mapped_together_equal_each_seed_alone(kind, where, training):
    settings = {"batch_norm": True, "layer_norm": True, "dropout": 0.4} if kind != "simba" else {"dropout": 0.4}
    network = made(kind, where, 2, **settings)[1]
    per_seed = [network.init(torch.Generator().manual_seed(seed), torch.float64) for seed in range(3)]
    inputs = [(observed(VIEWS[where], seed=seed), torch.randn(6, 2, dtype=torch.float64)) for seed in range(3)]

    def call(params, key, observation, action):
        context = Context(key, training)
        return network({**params, CONTEXT: context}, observation, action), context.updates

    stacked = {name: torch.stack([params[name] for params in per_seed]) for name in per_seed[0]}
    observation = torch.utils._pytree.tree_map(lambda *x: torch.stack(x), *[given[0] for given in inputs])
    together, updates = torch.func.vmap(call)(stacked, torch.arange(3), observation, torch.stack([given[1] for given in inputs]))
    for seed, params in enumerate(per_seed):
        alone, mine = call(params, torch.tensor(seed), *inputs[seed])
        torch.testing.assert_close(together[seed], alone, rtol=1e-11, atol=1e-12)
        assert updates.keys() == mine.keys()
        assert bool(mine) == (training and kind != "simba")
        for name, value in mine.items():
            torch.testing.assert_close(updates[name][seed], value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("kind", "where"), [each for each in NETWORKS if "impala" not in each])
def test_initial_values_are_uniform_within_one_over_the_root_of_the_fan_in(kind, where):
    network = build("net", VIEWS[where], Encoder(type=kind, filters=(32, 3, 2, 64, 2, 1), batch_norm=kind != "simba"), 2)
    params = network.init(torch.Generator().manual_seed(0), torch.float64)
    assert all(name.startswith("net.") for name in params)
    products = [name.removesuffix(".weight") for name, value in params.items() if value.ndim > 1]
    for name in products:
        weight, bias = params.pop(f"{name}.weight"), params.pop(f"{name}.bias")
        bound = 1 / math.sqrt(weight[0].numel())
        assert max(weight.abs().max(), bias.abs().max()) <= bound
        assert weight.abs().max() > 0.98 * bound
        assert abs(weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.15
    assert products
    for name, value in params.items():  # the norms
        assert (value == (0.0 if name.rpartition(".")[2] in ("bias", "running_mean") else 1.0)).all(), name


def test_the_residual_network_starts_with_small_convolutions_without_bias():
    params = build("net", (3, 64, 64), Encoder(type="impala")).init(torch.Generator().manual_seed(0), torch.float64)
    convolutions = [name.removesuffix(".weight") for name, value in params.items() if value.ndim == 4]
    assert len(convolutions) == 15
    for name in convolutions:
        weight = params[f"{name}.weight"]
        bound = math.sqrt(6 / (9 * (weight.shape[0] + weight.shape[1])))
        assert 0.98 * bound < weight.abs().max() <= bound
        assert not params[f"{name}.bias"].any()
    assert params["net.linear.weight"].shape == (256, 2048)


@networks
def test_a_float32_run_starts_from_the_rounded_numbers_of_a_float64_run(kind, where):
    network = build("net", VIEWS[where], encoder_of(kind), 2)
    double = network.init(torch.Generator().manual_seed(5), torch.float64)
    single = network.init(torch.Generator().manual_seed(5), torch.float32)
    assert single.keys() == double.keys()
    assert all(torch.equal(single[name], value.float()) for name, value in double.items())


CHANGES = [
    *(("vector", "vector", {name: value}) for name, value in (
        ("units", (7, 5)), ("activation", "tanh"), ("batch_norm", True), ("layer_norm", True), ("dropout", 0.5), ("last_activation", False),
        ("type", "dense"), ("type", "simba"))),
    *(("pixel", "image", {name: value}) for name, value in (
        ("filters", (4, 3, 1)), ("feature_size", 8), ("activation", "gelu"), ("batch_norm", True), ("layer_norm", True), ("dropout", 0.5),
        ("last_activation", False))),
    *(("impala", "image", {name: value}) for name, value in (
        ("channels", (5,)), ("feature_size", 8), ("activation", "gelu"), ("batch_norm", True), ("layer_norm", True), ("dropout", 0.5),
        ("last_activation", False))),
    *(("simba", "vector", {name: value}) for name, value in (
        ("feature_size", 8), ("hidden_size", 5), ("blocks", 2), ("activation", "tanh"), ("dropout", 0.5))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "where", "change"), CHANGES, ids=str)
def test_every_setting_changes_the_parameters_or_the_features(kind, where, change):
    results = []
    for encoder in (encoder_of(kind), dataclasses.replace(encoder_of(kind), **change)):
        network = build("net", VIEWS[where], encoder)
        params = network.init(torch.Generator().manual_seed(0), torch.float64)
        features = network({**params, CONTEXT: Context(torch.tensor(0), True)}, observed(VIEWS[where]))
        results.append(({name: value.shape for name, value in params.items()}, features))
    (shapes, features), (other_shapes, other) = results
    assert shapes != other_shapes or not torch.allclose(features, other)


def test_no_setting_is_missing_from_the_changes():
    assert {name for _, _, change in CHANGES for name in change} == set(settings.describe(Encoder)) - {"options"}


def test_the_defaults_are_those_of_nature_dqn_and_simba():
    shapes = {name: tuple(value.shape) for name, value in build("q", (4, 84, 84), Encoder()).init(torch.Generator(), torch.float32).items()}
    assert shapes["q.0.weight"] == (32, 4, 8, 8)
    assert shapes["q.1.weight"] == (64, 32, 4, 4)
    assert shapes["q.2.weight"] == (64, 64, 3, 3)
    assert shapes["q.3.weight"] == (512, 3136)
    assert build("q", (3,), Encoder(type="simba")).feature_size == 256


@pytest.mark.parametrize(
    ("values", "view", "words"),
    [
        ({}, (3, 20, 30), ["20 x 30", "[32, 8, 4, 64, 4, 2, 64, 3, 1]", "convolution 3 of size 3 gets 1 x 2", "filters"]),
        ({"type": "pixel"}, (7,), ["'pixel' accepts images", "(7,)"]),
        ({"type": "dense"}, (3, 64, 64), ["'dense' accepts vectors", "(3, 64, 64)"]),
        ({"type": "pixel"}, {"camera": (3, 64, 64), "pose": (2,)}, ["'pixel' accepts only images", "'pose'"]),
        ({}, (4, 5), ["(4, 5)", "neither a vector nor an image"]),
    ],
)
def test_unsuitable_observations_are_refused_naming_what_was_expected_and_given(values, view, words):
    with pytest.raises(InvalidInput) as caught:
        build("net", view, settings.build(Encoder(), values))
    for word in words:
        assert word in f"{caught.value} {caught.value.hint}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"filters": [32, 8]}, "filters needs three numbers for each convolution, got [32, 8]"),
        ({"filters": []}, "got []"),
        ({"type": "vektor"}, "'type' takes one of default, vector"),
        ({"dropout": 1.0}, "'dropout' takes"),
        ({"type": "simba", "batch_norm": True}, "'batch_norm' has no effect with type 'simba'"),
        ({"options": {"a": 1}}, "options"),
    ],
)
def test_invalid_encoder_settings_are_refused(values, words):
    with pytest.raises(InvalidInput) as caught:
        settings.build(Encoder(), values)
    assert words in str(caught.value)


class Evaluated(torch.nn.Module):
    """An encoder in evaluation mode as a module that can be exported."""

    def __init__(self, network, params) -> None:
        super().__init__()
        self.network = network
        self.names = list(params)
        for name, value in params.items():
            self.register_buffer(name.replace(".", "_"), value.float())

    def forward(self, observation):
        return self.network({name: getattr(self, name.replace(".", "_")) for name in self.names}, observation)


@pytest.mark.parametrize(
    ("kind", "where"), [("dense", "vector"), ("default", "image"), ("impala", "image"), ("default", "fields"), ("simba", "fields")]
)
def test_an_exported_encoder_takes_any_batch(kind, where):
    _, network, params = made(kind, where, **({} if kind == "simba" else {"batch_norm": True, "layer_norm": True}), dropout=0.5)
    module = Evaluated(network, params)
    single, many = (torch.utils._pytree.tree_map(torch.Tensor.float, observed(VIEWS[where], rows=(rows,))) for rows in (2, 9))
    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in single} if isinstance(single, dict) else {0: batch}
    program = torch.export.export(module, (single,), dynamic_shapes={"observation": shapes})
    assert "rand" not in program.graph_module.code
    torch.testing.assert_close(program.module()(many), module(many), rtol=1e-5, atol=1e-6)
