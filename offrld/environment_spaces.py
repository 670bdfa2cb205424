"""Describe the spaces of an environment as JSON, and check whether they fit a dataset. The checks need neither gymnasium nor torch.

A worker makes the environment and describes it; the daemon checks a submission against the description. The job's own worker checks again
with the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import Schema

HINT = "evaluate in the environment that the data comes from"
STEPS_HINT = "collect in the environment that the data comes from, or into another dataset"
ROUNDING = 1e-5  # relative rounding of a bound: float64 bounds as float32 data


def describe(env_id: str, observation_space: Any, action_space: Any) -> dict[str, Any]:
    """Return ``{"observation": {field: {"dtype", "shape"}}, "action": {"kind", ...}, "schema": ..., "refusal": ...}``.

    The names of nested fields are joined with a dot; a single field without a name is ``""``. ``schema`` is that of a store for the
    environment's steps; if no store can hold them it is None, and ``refusal`` gives the reason.
    """
    from offrl.spaces import leaves, schema_of_spaces

    spaces: dict[str, Any] = {
        "text": " ".join(str(action_space).split()),
        "observation": {
            name: {"dtype": np.dtype(space.dtype).name, "shape": list(space.shape)} if space.shape is not None else None
            for name, space in leaves(observation_space).items()
        },
        "action": {"kind": type(action_space).__name__},
        "schema": None,
        "refusal": None,
    }
    if spaces["action"]["kind"] == "Discrete":
        spaces["action"]["n"] = int(action_space.n)
    elif spaces["action"]["kind"] == "Box":
        low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (action_space.low, action_space.high))
        bounds = {name: [float(x) if np.isfinite(x) else None for x in bound] for name, bound in (("low", low), ("high", high))}
        spaces["action"] |= {"shape": list(action_space.shape), **bounds}
    try:
        spaces["schema"] = schema_of_spaces(observation_space, action_space, env_id).to_json()
    except InvalidInput as error:
        spaces["refusal"] = {"message": error.message, "hint": error.hint}
    return spaces


def check(env_id: str, spaces: Mapping[str, Any], schema: Schema) -> None:
    """Raise `InvalidInput` unless a policy of a dataset with ``schema`` can act in the environment that ``spaces`` describes."""
    _check_observation(env_id, spaces["observation"], schema)
    if not isinstance(schema.action, dict):  # no algorithm accepts several action fields: `fits` refuses them
        _check_action(env_id, spaces, schema.action)


def bounds(spaces: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the bounds of the environment's continuous actions, float64 of ``shape``; None if some are not finite."""
    low, high = (spaces["action"].get(name) for name in ("low", "high"))
    if low is None or None in low or None in high:
        return None
    return np.array(low, np.float64).reshape(shape), np.array(high, np.float64).reshape(shape)


def _check_observation(env_id: str, observation: Mapping[str, Any], schema: Schema) -> None:
    fields = schema.observation if isinstance(schema.observation, dict) else {"observation": schema.observation}
    if "" in observation:
        if len(fields) > 1:
            kind = "a Tuple" if observation[""] is None else f"shape {tuple(observation['']['shape'])}"
            raise InvalidInput(f"{env_id} gives one observation of {kind}, the dataset has {', '.join(fields)}", hint=HINT)
        observation = {next(iter(fields)): observation[""]}
    for name, field in fields.items():
        if observation.get(name) is None:
            raise InvalidInput(f"{env_id} has no observation field {name!r}, only {', '.join(observation)}", hint=HINT)
        shape, dtype = tuple(observation[name]["shape"]), np.dtype(observation[name]["dtype"])
        if shape != tuple(field.shape):
            raise InvalidInput(f"{env_id} gives {name} of shape {shape}, the dataset has {tuple(field.shape)}", hint=HINT)
        if dtype.kind == "f" and field.dtype.kind != "f":
            raise InvalidInput(f"{env_id} gives {name} as {dtype.name}, the dataset has {field.dtype.name}", hint=HINT)


def _check_action(env_id: str, spaces: Mapping[str, Any], action: Any) -> None:
    space = spaces["action"]
    if action.discrete:
        if space["kind"] != "Discrete":
            raise InvalidInput(f"{env_id} takes {spaces['text']}, the dataset has {action.n} discrete actions", hint=HINT)
        if space["n"] != action.n:
            raise InvalidInput(f"{env_id} has {space['n']} actions, the dataset has {action.n}", hint=HINT)
        return
    if space["kind"] != "Box":
        raise InvalidInput(f"{env_id} takes {spaces['text']}, the dataset has continuous actions of shape {action.shape}", hint=HINT)
    if int(np.prod(space["shape"])) != int(np.prod(action.shape)):
        raise InvalidInput(f"{env_id} takes actions of shape {tuple(space['shape'])}, the dataset has {action.shape}", hint=HINT)
    for name, beyond in (("low", np.less), ("high", np.greater)):
        mine = getattr(action, name)
        if mine is None:
            continue
        mine = np.broadcast_to(np.asarray(mine, np.float64), action.shape).reshape(-1)
        theirs = np.array([np.nan if bound is None else bound for bound in space[name]], np.float64)
        room = ROUNDING * np.maximum(1.0, np.abs(theirs)) * (-1 if name == "low" else 1)
        if (wrong := np.flatnonzero(np.isfinite(mine) & beyond(mine, theirs + room))).size:
            at = int(wrong[0])
            raise InvalidInput(
                f"{env_id} takes action {at} from {space['low'][at]:g} to {space['high'][at]:g}, the dataset has it "
                f"{'down' if name == 'low' else 'up'} to {mine[at]:g}",
                hint=HINT,
            )


def check_steps(name: str, wanted: Schema, stored: Schema) -> None:
    """Raise `InvalidInput` unless steps of the schema ``wanted``, an environment's, can be appended to a dataset of the schema ``stored``.

    Args:
        name: the environment's name, for the message.
    """
    other = stored.metadata.get("env_id")
    env_id = wanted.metadata.get("env_id")
    if other and env_id and other != env_id:
        raise InvalidInput(f"the dataset is of {other}, the steps are of {env_id}", hint=STEPS_HINT)
    mine, theirs = ({column.name: column for column in schema.columns} for schema in (wanted, stored))
    for column in mine.keys() - theirs.keys():
        raise InvalidInput(f"{name} has {column}, the dataset does not; it has {', '.join(theirs)}", hint=STEPS_HINT)
    for column in theirs.keys() - mine.keys():
        raise InvalidInput(f"the dataset has {column}, {name} does not; it has {', '.join(mine)}", hint=STEPS_HINT)
    for column_name, column_here in mine.items():
        here, there = column_here.field, theirs[column_name].field
        if (here.dtype, here.shape) != (there.dtype, there.shape):
            ours, its = (f"{field.dtype.name} {list(field.shape)}" for field in (here, there))
            raise InvalidInput(f"{name} has {column_name} of {ours}, the dataset {its}", hint=STEPS_HINT)
        if column_here.role == "action" and not (_same(here.low, there.low) and _same(here.high, there.high)):
            raise InvalidInput(
                f"{name} has actions from {here.low} to {here.high}, the dataset from {there.low} to {there.high}", hint=STEPS_HINT
            )


def _same(a: Any, b: Any) -> bool:
    return (a is None) == (b is None) and (a is None or np.array_equal(a, b))


__all__ = ["HINT", "bounds", "check", "check_steps", "describe"]
