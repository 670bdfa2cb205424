"""What a spare worker loads before it has a job: all that stands between a train job's start and its first update, and no device; and
what takes long to load when its policy is exported."""

from __future__ import annotations

import importlib

# In the order in which a train job comes to them. gymnasium is needed by jobs with an environment only, but its plugins are slow to find.
MODULES = ("pydantic", "numpy", "torch", "offrl.job", "offrld.worker.job", "offrld.worker.train", "gymnasium", "torch._dynamo")


def warm() -> None:
    """Import them, and run a small gradient: the first one of a process sets up torch's engine. Nothing here touches a card."""
    for name in MODULES:
        importlib.import_module(name)
    torch = importlib.import_module("torch")
    layer = torch.zeros(2, 2, requires_grad=True)
    torch.autograd.grad((layer @ layer).sum(), [layer])
