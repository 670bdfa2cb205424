"""The evaluation environment of a train job: whether it is the dataset's, and the bounds of its actions."""

from __future__ import annotations

from typing import Any

import numpy as np

from offrl.environments import calls
from offrl.errors import InvalidInput
from offrl.rollout import make_env
from offrl_store import Schema

HINT = "evaluate in the environment that the data comes from"


def check_environment(env_id: str, schema: Schema) -> tuple[np.ndarray, np.ndarray] | None:
    """Make the environment once before training starts; returns finite bounds of its actions, in the shape of the dataset's.

    Raises:
        Unknown, InvalidInput: it cannot be made, or its observations or actions are not those of the dataset.
    """
    env = make_env(env_id)
    try:
        observation, action = calls.spaces_of(env)
        _check_observation(env_id, observation, schema)
        return _check_action(env_id, action, schema)
    finally:
        calls.close(env, env_id)


def _check_observation(env_id: str, space: Any, schema: Schema) -> None:
    fields = schema.observation if isinstance(schema.observation, dict) else {"observation": schema.observation}
    given = dict(getattr(space, "spaces", None) or {}) if not isinstance(space, (tuple, list)) else {}
    if not given:
        if len(fields) > 1:
            raise InvalidInput(f"{env_id} gives one observation of shape {space.shape}, the dataset has {', '.join(fields)}", hint=HINT)
        given = {next(iter(fields)): space}
    for name, field in fields.items():
        if name not in given:
            raise InvalidInput(f"{env_id} has no observation field {name!r}, only {', '.join(given)}", hint=HINT)
        if given[name].shape != field.shape:
            raise InvalidInput(f"{env_id} gives {name} of shape {given[name].shape}, the dataset has {field.shape}", hint=HINT)


def _check_action(env_id: str, space: Any, schema: Schema) -> tuple[np.ndarray, np.ndarray] | None:
    from gymnasium.spaces import Box, Discrete

    action = schema.action
    if isinstance(action, dict):  # no algorithm takes it, and the learner says so
        return None
    if action.discrete:
        if not isinstance(space, Discrete):
            raise InvalidInput(f"{env_id} takes {space}, the dataset has {action.n} discrete actions", hint=HINT)
        if space.n != action.n:
            raise InvalidInput(f"{env_id} has {space.n} actions, the dataset has {action.n}", hint=HINT)
        return None
    if not isinstance(space, Box):
        raise InvalidInput(f"{env_id} takes {space}, the dataset has continuous actions of shape {action.shape}", hint=HINT)
    if int(np.prod(space.shape)) != int(np.prod(action.shape)):
        raise InvalidInput(f"{env_id} takes actions of shape {space.shape}, the dataset has {action.shape}", hint=HINT)
    low, high = (np.asarray(bound, np.float64).reshape(action.shape) for bound in (space.low, space.high))
    return (low, high) if np.isfinite(low).all() and np.isfinite(high).all() else None
