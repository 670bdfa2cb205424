"""offrld: the service that turns logged robot and simulator data into policies.

Notebooks and tests use the same engine in-process through `train`, `build`, `load`, `Learner` and `Shapes`, named datasets through
`datasets`, and collectors through `collect`. Everything else is imported from its own module, so that the control plane (`offrld.daemon`)
never loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import offrl  # noqa: F401  it must come before onnxruntime, whose telemetry it switches off

if TYPE_CHECKING:
    from offrld import datasets
    from offrld.inprocess.training import Learner, Loaded, Shapes, build, load, train

__all__ = ["Learner", "Loaded", "Shapes", "build", "datasets", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in ("collect", "datasets"):  # packages that nothing has imported yet
        import importlib

        return importlib.import_module(f"offrld.{name}")
    if name in __all__:
        from offrld.inprocess import training

        return getattr(training, name)
    raise AttributeError(f"module 'offrld' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "collect"})
