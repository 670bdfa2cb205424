"""Settings that the offline agents of the Procgen benchmark share, for the presets ``procgen``.

Source: gen_dgrl (Mediratta et al. 2023, The Generalization Gap in Offline Reinforcement Learning): its default arguments, with the residual
network, learning rate and batch size of its best configurations.
"""

from __future__ import annotations

from typing import Any

BATCH_SIZE = 512
LEARNING_RATE = 5e-4
TARGET_UPDATE_INTERVAL = 1000  # updates, a hard copy


def images(*encoders: str) -> dict[str, Any]:
    """Return the settings that divide pixels by 255 and give the encoders of these names the residual network."""
    return {"observation_scaler": "pixel", **{f"{name}.type": "impala" for name in encoders}}
