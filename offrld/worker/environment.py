"""Check that the evaluation environment of a train job fits the dataset, and read the bounds of its actions."""

from __future__ import annotations

import numpy as np

from offrl.environments import calls
from offrl.rollout import make_env
from offrl_store import Schema
from offrld import environment_spaces


def check_environment(env_id: str, schema: Schema) -> tuple[np.ndarray, np.ndarray] | None:
    """Make the environment once before training starts; return the finite bounds of its actions, in the shape of the dataset's.

    Raises:
        Unknown, InvalidInput: it cannot be made, or its observations or actions do not fit the dataset.
    """
    env = make_env(env_id)
    try:
        spaces = environment_spaces.describe(env_id, *calls.spaces_of(env))
    finally:
        calls.close(env, env_id)
    environment_spaces.check(env_id, spaces, schema)
    return environment_spaces.bounds(spaces, schema.action.shape) if spaces["action"]["kind"] == "Box" else None
