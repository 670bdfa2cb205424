"""Align the operands of matrix products to addresses that are multiples of 64.

Libraries order a sum by the address of an operand: with AVX and AVX-512 they process the elements before the first boundary separately, so
the same matrix four bytes further on gives a product that differs in its last bits. Torch allocates aligned memory, and the offset of a
view depends only on shapes. Other operands (one batch of many, one seed's part of a state, a NumPy array, a mapped file) may start
anywhere; `aligned` moves them. The bits of a product thus depend on the values and shapes of its operands, not on where memory was free.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BOUNDARY = 64  # bytes: the width of an AVX-512 register, and the alignment of torch's own allocator


def aligned(tensor: Tensor) -> Tensor:
    """Return a CPU tensor that starts on a boundary: the tensor itself, or a copy with the same strides. Differentiable.

    For eager code only: compiled, mapped or exported code is traced with tensors that have no address (see `offrld.nets.eager`).
    """
    if tensor.data_ptr() % BOUNDARY == 0:
        return tensor
    if 0 in tensor.stride():  # an expanded tensor, which torch's products would materialise anyway
        return tensor.clone(memory_format=torch.contiguous_format)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x [..., I]`` times ``weight [O, I]`` transposed, plus ``bias [O]``, computed by torch on aligned operands.

    The two products of the backward pass reuse these operands, with a gradient that torch usually allocates itself. Aligning a gradient
    that the caller passes in would take a hook, 9 us per layer.
    """
    return F.linear(aligned(x), aligned(weight), bias)
