"""The versions of the packages that a run used."""

from __future__ import annotations

import platform
from importlib import metadata


def installed() -> dict[str, str]:
    """Map distribution name -> version of everything that is installed, with Python itself."""
    versions = {"python": platform.python_version()}
    for distribution in metadata.distributions():
        name = distribution.name
        if name:
            versions.setdefault(name.lower(), distribution.version)
    return dict(sorted(versions.items()))
