"""Settings for tests that train every algorithm of the registry a little."""

from __future__ import annotations

from typing import Any

from offrld.engine import Algorithm


def cheap_settings(algorithm: Algorithm) -> dict[str, Any]:
    """Settings under which an update of the algorithm takes milliseconds."""
    if algorithm.batch_kind != "windows":
        return {"batch_size": 16}
    encoder = "encoder" if hasattr(algorithm.config, "encoder") else "actor_encoder"
    return {"batch_size": 16, "context_size": 4, "transformer.layers": 1, f"{encoder}.units": [16, 16]}
