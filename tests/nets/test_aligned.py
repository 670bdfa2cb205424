"""Addresses of operands: products have the same bits at every address."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from offrld.nets import onednn
from offrld.nets.aligned import BOUNDARY, aligned
from offrld.nets.linear import layers, linear, products

OFFSETS = (4, 8, 16, 32, 60)  # bytes off a boundary
LINEARS = ["torch", pytest.param("onednn", marks=pytest.mark.skipif(not onednn.present(), reason="this torch has no product of oneDNN"))]
SIZES = [                      # rows, inputs, outputs
    (1, 5, 8), (3, 1, 17), (8, 5, 16), (32, 17, 6), (100, 23, 33), (257, 17, 256), (300, 100, 129), (256, 256, 1), (2500, 23, 64),
]  # fmt: skip


def moved(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    """Return a copy with the same strides that starts ``offset`` bytes after a boundary, rounded up to whole elements."""
    size = tensor.element_size()
    extent = 1 + sum((count - 1) * step for count, step in zip(tensor.shape, tensor.stride(), strict=True))
    room = torch.empty(extent + 2 * BOUNDARY, dtype=tensor.dtype)
    start = -(-room.data_ptr() // BOUNDARY) * BOUNDARY + -(-offset // size) * size
    copy = room[(start - room.data_ptr()) // size :][:extent].as_strided(tensor.shape, tensor.stride())
    copy.copy_(tensor)
    assert copy.data_ptr() % BOUNDARY == -(-offset // size) * size % BOUNDARY
    return copy


def drawn(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def there_and_back(function, given, grad):
    """Return the value and the gradients of all arguments."""
    leaves = [None if value is None else value.detach().requires_grad_() for value in given]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], grad)]


def assert_same_bits_wherever(function, given, grad):
    expected = there_and_back(function, [moved(value, 0) for value in given], moved(grad, 0))
    for place, offset in itertools.product(range(len(given) + 1), OFFSETS):
        values = [moved(value, offset if i == place else 0) for i, value in enumerate([*given, grad])]
        for one, other in zip(there_and_back(function, values[:-1], values[-1]), expected, strict=True):
            assert torch.equal(one, other), (place, offset)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("linear_by", LINEARS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_all_three_products_of_a_layer_have_the_same_bits_at_any_address(size, linear_by, dtype):
    rows, inputs, outputs = size
    x, weight, bias, grad = drawn((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs), dtype=dtype)

    def function(x, weight, bias):
        return linear(x, weight, bias).tanh()  # so that the gradient of the product is torch's own, as in every loss

    with products(through_onednn=linear_by == "onednn"):
        assert_same_bits_wherever(function, [x, weight, bias], grad)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("shapes", [((300, 17), (300, 6)), ((2500, 23),), ((100, 17), (23, 100, 6))], ids=str)
def test_fused_layers_have_the_same_bits_at_any_address_of_parts_weights_and_gradients(shapes, through):
    inputs = sum(shape[-1] for shape in shapes)
    parts, pairs = drawn(*shapes), drawn((33, inputs), (33,), (64, 33), (64,), (1, 64), (1,))
    (grad,) = drawn((*shapes[-1][:-1], 1))

    def function(*given):
        own = given[len(shapes) :]
        return layers(given[: len(shapes)], list(zip(own[::2], own[1::2], strict=True)))

    with products(through_onednn=through):
        if not through and len(shapes) == 2 and len(shapes[1]) == 2:  # torch's own way back: its gradient comes from a loss
            assert_same_bits_wherever(lambda *given: function(*given).tanh(), [*parts, *pairs], grad)
        else:
            assert_same_bits_wherever(function, [*parts, *pairs], grad)


@pytest.mark.parametrize("linear_by", LINEARS)
def test_views_of_larger_tensors_give_the_same_bits_as_copies(linear_by):
    batches, state, wide = drawn((5, 33, 7), (3, 9, 7), (40, 9, 11))
    with products(through_onednn=linear_by == "onednn"):
        for place, seed in itertools.product(range(5), range(3)):
            expected = linear(batches[place].clone(), state[seed].clone())
            assert torch.equal(linear(batches[place], state[seed]), expected)
        for start in range(4):  # columns of a wider weight, rows from any on
            x, weight = moved(wide[3:, start], 4), wide[0, :, start : start + 7]
            assert torch.equal(linear(x[:, :7], weight), linear(moved(x, 0)[:, :7], moved(weight, 0)))


@pytest.mark.parametrize("linear_by", LINEARS)
def test_memory_from_numpy_and_safetensors_gives_the_same_bits_as_copies(linear_by):
    x, weight = drawn((33, 23), (40, 23))
    expected = linear(x, weight)
    room = np.zeros(4 * (x.numel() + 40), np.uint8)
    with products(through_onednn=linear_by == "onednn"):
        for start in range(0, 64, 4):
            array = room[start : start + 4 * x.numel()].view(np.float32).reshape(x.shape)
            array[:] = x.numpy()
            assert torch.equal(linear(torch.from_numpy(array), weight), expected)
        for odd in range(1, 5):  # a tensor before it, so that it begins anywhere in the file
            read = load(save({"a": torch.zeros(odd), "b": weight}))["b"]
            assert torch.equal(linear(x, read), expected)


def test_aligned_tensors_are_not_copied_and_copies_of_others_keep_their_strides():
    (x,) = drawn((8, 5))
    assert aligned(x) is x
    for odd in (moved(x, 4), moved(x, 4).t(), moved(drawn((8, 9))[0], 8)[:, :5]):
        copy = aligned(odd)
        assert copy.data_ptr() % BOUNDARY == 0
        assert copy.stride() == odd.stride()
        assert torch.equal(copy, odd)
    row = moved(x, 4)[0].expand(3, 5)
    assert torch.equal(aligned(row), row)
    leaf = moved(x, 4).requires_grad_()
    (found,) = torch.autograd.grad(aligned(leaf).sin().sum(), [leaf])
    assert torch.equal(found, x.cos())


def test_torch_allocates_on_a_boundary():
    """`offrld.nets.aligned` relies on this."""
    kept = [torch.empty(size, dtype=torch.uint8) for size in (*range(1, 200), *range(1 << 10, 1 << 17, 997))]
    assert all(tensor.data_ptr() % BOUNDARY == 0 for tensor in kept)
