"""Load what a spare worker needs before it has a job.

That is everything between a train job's start and its first update, and what the export of its policy loads slowly; but no device.
"""

from __future__ import annotations

import importlib

# In the order in which a train job loads them. Only jobs with an environment need gymnasium, but finding its plug-ins is slow.
MODULES = ("pydantic", "numpy", "torch", "offrl.job", "offrld.worker.job", "offrld.worker.train", "gymnasium", "torch._dynamo")


def warm() -> None:
    """Import the modules and compute a small gradient: the first one of a process sets up torch's engine. No card is touched."""
    for name in MODULES:
        importlib.import_module(name)
    torch = importlib.import_module("torch")
    layer = torch.zeros(2, 2, requires_grad=True)
    torch.autograd.grad((layer @ layer).sum(), [layer])
