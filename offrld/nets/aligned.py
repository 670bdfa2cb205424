"""Align operands of matrix products: their addresses are multiples of 64.

Libraries choose the order of a sum by the address of an operand: with AVX and AVX-512 the elements before the first boundary are done
separately, so the same matrix four bytes further on gives a product with other last bits. Torch allocates at such addresses, and the offset
of a view depends on shapes alone. Other operands (a batch within many, one seed's part of a state, a NumPy array, a mapped file) may start
anywhere; `aligned` moves them. So the bits of a product depend on the values and shapes of its operands, and not on where memory happened
to be free.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BOUNDARY = 64  # bytes: a register of AVX-512, and what torch's own allocator keeps to


def aligned(tensor: Tensor) -> Tensor:
    """Return a CPU tensor as it is, or, if it starts off a boundary, a copy with the same strides that starts on one. Differentiable.

    For eager code only: compiled, mapped or exported code is traced with tensors that have no address (see `offrld.nets.eager`).
    """
    if tensor.data_ptr() % BOUNDARY == 0:
        return tensor
    if 0 in tensor.stride():  # several elements in one place, which torch's products would copy apart
        return tensor.clone(memory_format=torch.contiguous_format)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Torch's own ``x [..., I]`` times ``weight [O, I]`` transposed, plus ``bias [O]``.

    On the way back both products see these operands again, and a gradient that torch has allocated. To move one that a caller gives would
    take a hook: 9 us a layer.
    """
    return F.linear(aligned(x), aligned(weight), bias)
