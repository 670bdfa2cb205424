"""Where plain eager code may take a way of its own on the CPU: compiled, mapped, traced and exported code takes torch's operations."""

from __future__ import annotations

import torch
from torch import Tensor


def eager(x: Tensor) -> bool:
    """Whether ``x`` is an ordinary tensor of the CPU, and no transformation of torch is at work."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.device.type == "cpu"
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )
