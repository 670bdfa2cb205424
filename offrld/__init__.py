"""offrld: the service that turns logged robot and simulator data into policies.

In-process (notebooks, tests) the same engine is reached through `train`; everything else is imported from its own module, so
that the control plane (`offrld.daemon`) never pulls in torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offrld.training import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":
        from offrld.training import train

        return train
    raise AttributeError(f"module 'offrld' has no attribute {name!r}")
