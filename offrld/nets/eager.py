"""Detect plain eager code on the CPU, which may use this project's faster operations; all other code uses torch's."""

from __future__ import annotations

import torch
from torch import Tensor


def eager(x: Tensor) -> bool:
    """Return whether ``x`` is an ordinary CPU tensor and no torch transformation (compile, vmap, trace, export) is active."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.device.type == "cpu"
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )
