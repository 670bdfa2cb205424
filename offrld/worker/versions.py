"""The versions of everything that a run used."""

from __future__ import annotations

import platform
from importlib import metadata


def installed() -> dict[str, str]:
    """Distribution name -> version of all that is installed, with Python itself."""
    found = {"python": platform.python_version()}
    for distribution in metadata.distributions():
        name = distribution.name
        if name:
            found.setdefault(name.lower(), distribution.version)
    return dict(sorted(found.items()))
