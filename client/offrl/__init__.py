"""offrl: the thin client of offrld. Submit datasets and jobs to the daemon, follow them, and run the policies that come back. No torch.

    client = offrl.Client()
    client.datasets.add("hopper", "hopper.hdf5")
    job = client.submit("rebrac", dataset="hopper", steps=100_000, seeds=[0, 1], eval_env="Hopper-v5")
    policy = offrl.Policy(job.wait() and job.fetch("policy.onnx"))

Everything is imported when it is first used: a robot that only runs a policy never loads ZeroMQ, a client never loads onnxruntime.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offrl import environments, errors, rollout
    from offrl.client import Client, Datasets, Job
    from offrl.policy import Policy
    from offrl.recording import Recorder
    from offrl.recording.wrapper import RecordEpisodes

__version__ = "0.2.0"

# onnxruntime reports its use to its maker over the network, unless this is set before it is loaded. A robot reports to nobody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_WHERE = {
    "Client": "offrl.client", "Job": "offrl.client", "Datasets": "offrl.client", "Policy": "offrl.policy",
    "Recorder": "offrl.recording", "RecordEpisodes": "offrl.recording.wrapper",
}  # fmt: skip
_MODULES = ("environments", "errors", "rollout")

__all__ = ["Client", "Datasets", "Job", "Policy", "RecordEpisodes", "Recorder", "__version__", "environments", "errors", "rollout"]


if not TYPE_CHECKING:  # a type checker would accept every name

    def __getattr__(name: str) -> Any:
        import importlib

        if name in _WHERE:
            value = getattr(importlib.import_module(_WHERE[name]), name)
        elif name in _MODULES:
            value = importlib.import_module(f"offrl.{name}")
        else:
            raise AttributeError(f"module 'offrl' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
