"""Linear layers as one operation: the same values and derivatives as torch's operations layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from offrld.nets import Encoder, stack
from offrld.nets.encoders import build
from offrld.nets.linear import layers, products

BLOCKS = 2 * stack.ROWS + 200  # rows that are more than two blocks
PARTS = [
    ((300, 17),),
    ((300, 17), (300, 6)),            # joined
    ((256, 17), (2, 256, 6)),         # a shared part, one block
    ((256, 17), (11, 256, 6)),        # a shared part, blocks of four candidates and one of three
    ((BLOCKS, 23),),
    ((3, BLOCKS // 3, 9),),
    ((4, 5, 3), (5, 2)),              # an order that it does not take
]  # fmt: skip
WIDTHS = [(8,), (32, 1), (24, 70, 16)]


@pytest.fixture(autouse=True)
def _taken():
    """Float64 has no product of oneDNN, but asking for it takes the way that is tested here for few rows, too."""
    with products(through_onednn=True):
        yield


def made(shapes, widths, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    inputs, pairs = sum(shape[-1] for shape in shapes), []
    for width in widths:
        pairs.append((draw(width, inputs, scale=inputs**-0.5), draw(width)))
        inputs = width
    return [draw(*shape) for shape in shapes], pairs


def reference(parts, pairs, *, relu):
    leading = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    x = torch.cat([part.expand(*leading, -1) for part in parts], dim=-1)
    for i, (weight, bias) in enumerate(pairs):
        x = F.linear(x, weight, bias)
        x = F.relu(x) if relu or i < len(pairs) - 1 else x
    return x


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-12 * max(1.0, other.abs().max())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("shapes", PARTS)
def test_values_and_gradients_are_those_of_the_layers_one_by_one(shapes, widths, relu):
    parts, pairs = made(shapes, widths)
    leaves = [*parts, *(value for pair in pairs for value in pair)]
    out, expected = layers(parts, pairs, relu=relu), reference(parts, pairs, relu=relu)
    assert_same([out], [expected])
    found = torch.autograd.grad(out.sin().sum(), leaves)
    assert_same(found, torch.autograd.grad(expected.sin().sum(), leaves))


@pytest.mark.parametrize("shapes", PARTS[1:4])
def test_each_gradient_is_correct_when_only_it_is_requested(shapes):
    parts, pairs = made(shapes, (24, 70, 3))
    leaves = [*parts, *(value for pair in pairs for value in pair)]
    expected = torch.autograd.grad(reference(parts, pairs, relu=False).sin().sum(), leaves)
    for chosen, wanted in enumerate(expected):
        given = [leaf.detach().requires_grad_(i == chosen) for i, leaf in enumerate(leaves)]
        rest = given[len(parts) :]
        out = layers(given[: len(parts)], list(zip(rest[::2], rest[1::2], strict=True)))
        assert_same(torch.autograd.grad(out.sin().sum(), [given[chosen]]), [wanted])


@pytest.mark.parametrize("shapes", PARTS[2:5])
def test_a_graph_supports_two_backward_passes_and_second_derivatives(shapes):
    parts, pairs = made(shapes, (16, 2))
    leaves = [*parts, *(value for pair in pairs for value in pair)]

    def results(out):
        first = torch.autograd.grad(out.sin().sum(), leaves, retain_graph=True)
        again = torch.autograd.grad(out.sin().sum(), leaves, retain_graph=True)
        slopes = torch.autograd.grad(out.sin().sum(), parts, create_graph=True)
        return [*first, *again, *torch.autograd.grad(sum((slope**2).sum() for slope in slopes), leaves[:-1])]

    assert_same(results(layers(parts, pairs)), results(reference(parts, pairs, relu=False)))


def test_nan_stays_nan():
    parts, pairs = made(((50, 3),), (8, 4, 4))
    with torch.no_grad():
        pairs[0][0][2, 1] = float("nan")
        assert layers(parts, pairs, relu=True).isnan().all()


@pytest.mark.parametrize(("shape", "onednn", "used"), [((4, 3), True, True), ((4, 3), False, False), ((2, 2 * stack.ROWS, 3), False, True)])
def test_it_is_used_for_onednn_or_for_many_rows(shape, onednn, used, monkeypatch):
    parts, pairs = made((shape,), (8, 1))
    calls, right = [], stack.stack
    monkeypatch.setattr(stack, "stack", lambda *given, **options: calls.append(1) or right(*given, **options))
    with products(through_onednn=onednn):
        assert_same([layers(parts, pairs)], [reference(parts, pairs, relu=False)])
    assert bool(calls) == used


@pytest.mark.parametrize("transform", ["compile", "vmap"])
def test_it_is_left_to_torch_in_compiled_and_mapped_code(transform, monkeypatch):
    parts, pairs = made(((2, 40, 3),), (8, 1))
    monkeypatch.setattr(stack, "stack", lambda *_, **__: pytest.fail("used"))

    def function(x):
        return layers((x,), pairs)

    mapped = torch.func.vmap(function) if transform == "vmap" else torch.compile(function, fullgraph=True, backend="eager")
    assert_same([mapped(parts[0])], [reference(parts, pairs, relu=False)])


@pytest.mark.parametrize(
    ("encoder", "plain"),
    [
        (Encoder(units=(24, 16)), True),
        (Encoder(type="dense", units=(24,)), True),
        (Encoder(type="dense", units=(24, 16)), False),
        (Encoder(units=(24, 16), last_activation=False), False),
        (Encoder(units=(24, 16), activation="tanh"), False),
        (Encoder(units=(24, 16), layer_norm=True), False),
        (Encoder(units=(24, 16), batch_norm=True), False),
        (Encoder(units=(24, 16), dropout=0.1), False),
    ],
)
def test_an_encoder_of_nothing_but_linear_layers_with_relu_is_one_operation(encoder, plain):
    assert bool(build("net", (5,), encoder).plain) == plain


@pytest.mark.parametrize("through_onednn", [False, True])
def test_float32_is_as_close_to_float64_as_its_precision_allows(through_onednn):
    shapes, widths = PARTS[3], (256, 256, 1)
    parts, pairs = made(shapes, widths, torch.float32)
    double = [part.detach().double() for part in parts], [tuple(value.detach().double() for value in pair) for pair in pairs]
    with products(through_onednn=through_onednn):
        out = layers(parts, pairs)
    expected = reference(*double, relu=False)
    assert (out.double() - expected).abs().max() <= 1e-5 * expected.abs().max()
