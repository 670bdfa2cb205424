"""The evaluation environment of a train job: whether it is the dataset's, and the bounds of its actions."""

from __future__ import annotations

import numpy as np

from offrl.environments import calls
from offrl.rollout import make_env
from offrl_store import Schema
from offrld import told_spaces


def check_environment(env_id: str, schema: Schema) -> tuple[np.ndarray, np.ndarray] | None:
    """Make the environment once before training starts; returns finite bounds of its actions, in the shape of the dataset's.

    Raises:
        Unknown, InvalidInput: it cannot be made, or its observations or actions are not those of the dataset.
    """
    env = make_env(env_id)
    try:
        told = told_spaces.tell(env_id, *calls.spaces_of(env))
    finally:
        calls.close(env, env_id)
    told_spaces.check(env_id, told, schema)
    return told_spaces.bounds(told, schema.action.shape) if told["action"]["kind"] == "Box" else None
