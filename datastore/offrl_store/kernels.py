"""The choice of kernels: the compiled ones, or those in NumPy if the compiled ones were not built.

``OFFRL_STORE_KERNELS=numpy`` in the environment selects NumPy. It is read whenever a store or a sampler is made.
"""

from __future__ import annotations

import functools
import os
import warnings
from types import ModuleType

from offrl_store import _kernels_py


def kernels() -> ModuleType:
    """Return the module of kernels to use now."""
    return _kernels_py if os.environ.get("OFFRL_STORE_KERNELS") == "numpy" else _built()


@functools.cache  # warn only once
def _built() -> ModuleType:
    try:
        from offrl_store import _compiled
    except ImportError as error:
        warnings.warn(
            f"offrl_store samples with NumPy, about ten times slower: its compiled kernels are missing ({error}). "
            "Install a C compiler and reinstall offrl to build them.",
            RuntimeWarning,
            stacklevel=3,
        )
        return _kernels_py
    return _compiled
