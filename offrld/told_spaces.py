"""The spaces of an environment as JSON, told by a worker that has made it, and whether they fit a dataset: without gymnasium and torch.

A submission is checked by what a worker has told; the job's own worker checks again, by the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import Schema

HINT = "evaluate in the environment that the data comes from"
STEPS_HINT = "collect in the environment that the data comes from, or into another dataset"
ROUNDING = 1e-5  # of a bound: float32 data of float64 bounds


def tell(env_id: str, observation_space: Any, action_space: Any) -> dict[str, Any]:
    """``{"observation": {field: {"dtype", "shape"}}, "action": {"kind", ...}, "schema": ..., "refusal": ...}``.

    Fields of nested spaces are joined with a dot, a plain one is ``""``; ``schema``: of a store that takes its steps, or None and why
    none does.
    """
    from offrl.spaces import leaves, schema_of_spaces

    told: dict[str, Any] = {
        "text": " ".join(str(action_space).split()),
        "observation": {
            name: {"dtype": np.dtype(space.dtype).name, "shape": list(space.shape)} if space.shape is not None else None
            for name, space in leaves(observation_space).items()
        },
        "action": {"kind": type(action_space).__name__},
        "schema": None,
        "refusal": None,
    }
    if told["action"]["kind"] == "Discrete":
        told["action"]["n"] = int(action_space.n)
    elif told["action"]["kind"] == "Box":
        low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (action_space.low, action_space.high))
        bounds = {name: [float(x) if np.isfinite(x) else None for x in bound] for name, bound in (("low", low), ("high", high))}
        told["action"] |= {"shape": list(action_space.shape), **bounds}
    try:
        told["schema"] = schema_of_spaces(observation_space, action_space, env_id).to_json()
    except InvalidInput as error:
        told["refusal"] = {"message": error.message, "hint": error.hint}
    return told


def check(env_id: str, told: Mapping[str, Any], schema: Schema) -> None:
    """`InvalidInput` unless a policy of a dataset of ``schema`` can act in the environment."""
    _check_observation(env_id, told["observation"], schema)
    if not isinstance(schema.action, dict):  # several: no algorithm takes them, and that is said
        _check_action(env_id, told, schema.action)


def bounds(told: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Finite bounds of the environment's continuous actions, float64 of ``shape``; None where some are not finite."""
    low, high = (told["action"].get(name) for name in ("low", "high"))
    if low is None or None in low or None in high:
        return None
    return np.array(low, np.float64).reshape(shape), np.array(high, np.float64).reshape(shape)


def _check_observation(env_id: str, given: Mapping[str, Any], schema: Schema) -> None:
    fields = schema.observation if isinstance(schema.observation, dict) else {"observation": schema.observation}
    if "" in given:
        if len(fields) > 1:
            told = "a Tuple" if given[""] is None else f"shape {tuple(given['']['shape'])}"
            raise InvalidInput(f"{env_id} gives one observation of {told}, the dataset has {', '.join(fields)}", hint=HINT)
        given = {next(iter(fields)): given[""]}
    for name, field in fields.items():
        if given.get(name) is None:
            raise InvalidInput(f"{env_id} has no observation field {name!r}, only {', '.join(given)}", hint=HINT)
        shape, dtype = tuple(given[name]["shape"]), np.dtype(given[name]["dtype"])
        if shape != tuple(field.shape):
            raise InvalidInput(f"{env_id} gives {name} of shape {shape}, the dataset has {tuple(field.shape)}", hint=HINT)
        if dtype.kind == "f" and field.dtype.kind != "f":
            raise InvalidInput(f"{env_id} gives {name} as {dtype.name}, the dataset has {field.dtype.name}", hint=HINT)


def _check_action(env_id: str, told: Mapping[str, Any], action: Any) -> None:
    given = told["action"]
    if action.discrete:
        if given["kind"] != "Discrete":
            raise InvalidInput(f"{env_id} takes {told['text']}, the dataset has {action.n} discrete actions", hint=HINT)
        if given["n"] != action.n:
            raise InvalidInput(f"{env_id} has {given['n']} actions, the dataset has {action.n}", hint=HINT)
        return
    if given["kind"] != "Box":
        raise InvalidInput(f"{env_id} takes {told['text']}, the dataset has continuous actions of shape {action.shape}", hint=HINT)
    if int(np.prod(given["shape"])) != int(np.prod(action.shape)):
        raise InvalidInput(f"{env_id} takes actions of shape {tuple(given['shape'])}, the dataset has {action.shape}", hint=HINT)
    for name, beyond in (("low", np.less), ("high", np.greater)):
        mine = getattr(action, name)
        if mine is None:
            continue
        mine = np.broadcast_to(np.asarray(mine, np.float64), action.shape).reshape(-1)
        theirs = np.array([np.nan if bound is None else bound for bound in given[name]], np.float64)
        room = ROUNDING * np.maximum(1.0, np.abs(theirs)) * (-1 if name == "low" else 1)
        if (wrong := np.flatnonzero(np.isfinite(mine) & beyond(mine, theirs + room))).size:
            at = int(wrong[0])
            raise InvalidInput(
                f"{env_id} takes action {at} from {given['low'][at]:g} to {given['high'][at]:g}, the dataset has it "
                f"{'down' if name == 'low' else 'up'} to {mine[at]:g}",
                hint=HINT,
            )


def check_steps(name: str, wanted: Schema, stored: Schema) -> None:
    """`InvalidInput` unless steps of ``wanted``, an environment's schema, can be appended to a dataset of ``stored``.

    Args:
        name: of the environment, for the message.
    """
    other = stored.metadata.get("env_id")
    env_id = wanted.metadata.get("env_id")
    if other and env_id and other != env_id:
        raise InvalidInput(f"the dataset is of {other}, the steps are of {env_id}", hint=STEPS_HINT)
    mine, theirs = ({column.name: column for column in schema.columns} for schema in (wanted, stored))
    for column in mine.keys() - theirs.keys():
        raise InvalidInput(f"{name} has {column}, the dataset has not: {', '.join(theirs)}", hint=STEPS_HINT)
    for column in theirs.keys() - mine.keys():
        raise InvalidInput(f"the dataset has {column}, {name} has not: {', '.join(mine)}", hint=STEPS_HINT)
    for column, each in mine.items():
        kept = theirs[column].field
        if (each.field.dtype, each.field.shape) != (kept.dtype, kept.shape):
            ours, its = (f"{field.dtype.name} {list(field.shape)}" for field in (each.field, kept))
            raise InvalidInput(f"{name} has {column} of {ours}, the dataset {its}", hint=STEPS_HINT)
        low, high = each.field.low, each.field.high
        if each.role == "action" and not (_same(low, kept.low) and _same(high, kept.high)):
            raise InvalidInput(f"{name} has actions from {low} to {high}, the dataset from {kept.low} to {kept.high}", hint=STEPS_HINT)


def _same(a: Any, b: Any) -> bool:
    return (a is None) == (b is None) and (a is None or np.array_equal(a, b))


__all__ = ["HINT", "bounds", "check", "check_steps", "tell"]
