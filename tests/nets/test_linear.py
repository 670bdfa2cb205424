"""Linear layers of joined parts, whose leading axes may differ."""

from __future__ import annotations

import pytest
import torch

from offrld.nets.linear import Linear


@pytest.mark.parametrize("shapes", [((5, 3), (5, 2)), ((5, 3), (4, 5, 2)), ((4, 5, 3), (5, 2)), ((4, 5, 1), (5, 2), (5, 2))])
def test_parts_of_different_leading_axes_give_what_their_expanded_concatenation_gives(shapes):
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    layer = Linear("layer", 5, 7)
    params = {name: value.requires_grad_() for name, value in layer.init(torch.Generator().manual_seed(0), torch.float64).items()}
    leading = torch.broadcast_shapes(*(shape[:-1] for shape in shapes))
    whole = torch.cat([part.expand(*leading, part.shape[-1]) for part in parts], dim=-1)
    expected = torch.nn.functional.linear(whole, params["layer.weight"], params["layer.bias"])
    result = layer(params, *parts)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    wanted = [*parts, *params.values()]
    for one, other in zip(torch.autograd.grad(result.sin().sum(), wanted), torch.autograd.grad(expected.sin().sum(), wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_initial_values_are_uniform_within_one_over_the_root_of_the_inputs_in_both_precisions():
    layer = Linear("layer", 100, 300)
    params = layer.init(torch.Generator().manual_seed(1), torch.float64)
    for value in params.values():
        assert value.abs().max() <= 0.1
        assert value.abs().max() > 0.098
        assert abs(value.var().item() - 0.2**2 / 12) < 6e-4
    single = layer.init(torch.Generator().manual_seed(1), torch.float32)
    assert all(torch.equal(single[name], value.float()) for name, value in params.items())
