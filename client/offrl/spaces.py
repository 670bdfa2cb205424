"""Spaces of gymnasium environments as the store's fields, observations by field name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from offrl.errors import CheckFailed, InvalidInput
from offrl_store import Field, Schema


def observation_fields(space: Any) -> dict[str, Field]:
    """The fields of an observation space by name, "" for a plain one; nested Dicts are joined with a dot. Raises `InvalidInput`."""
    import gymnasium.spaces as spaces

    if isinstance(space, spaces.Dict):
        flat: dict[str, Field] = {}
        for name, each in space.spaces.items():
            for inner, field in observation_fields(each).items():
                joined = f"{name}.{inner}" if inner else name
                if joined in flat:
                    raise InvalidInput(f"two observation fields are called {joined!r}", hint="rename one of them")
                flat[joined] = field
        return flat
    if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return {"": Field(np.dtype(space.dtype).name, space.shape or ())}
    raise InvalidInput(
        f"observations of {type(space).__name__} cannot be stored", hint="Box, Discrete, MultiDiscrete, MultiBinary and Dict can"
    )


def leaves(space: Any) -> dict[str, Any]:
    """The spaces in an observation space by field, "" for a plain one; names in nested Dicts are joined with a dot."""
    import gymnasium.spaces as spaces

    if not isinstance(space, spaces.Dict):
        return {"": space}
    return {f"{name}.{inner}" if inner else name: leaf for name, each in space.spaces.items() for inner, leaf in leaves(each).items()}


def schema_action(space: Any) -> Field:
    """The action field of an action space: int64 choices, whole numbers of several, or a vector with the space's bounds.

    Raises `InvalidInput`.
    """
    import gymnasium.spaces as spaces

    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Field("int64", (), low=0, high=int(space.n) - 1)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return Field(np.dtype(space.dtype).name, space.shape, low=space.low, high=space.high)
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
        return Field(np.dtype(space.dtype).name, space.shape, low=space.start, high=space.start + space.nvec - 1)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return Field(np.dtype(space.dtype).name, space.shape, low=0, high=1)
    raise InvalidInput(
        f"actions of {space} cannot be stored", hint="Discrete from 0, vectors of Box, and MultiDiscrete and MultiBinary of one axis, can"
    )


def action_converter(space: Any) -> Callable[[Any], Any]:
    """What turns a policy's action, an ``int`` or an array ``[*batch, A]``, into what an environment with this action space takes.

    The one place where a policy's numbers become an environment's: spaces of whole numbers get the nearest whole number, and nothing
    leaves the bounds by a cast (0.1 as float32 is above a bound of 0.1 in float64). A policy counts discrete actions from 0, the space
    from its ``start``. The result has the space's dtype and the shape ``[*batch, *space.shape]``.
    """
    import gymnasium.spaces as spaces

    dtype, shape = np.dtype(space.dtype), tuple(space.shape)
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return lambda action: (np.asarray(action) + first).astype(dtype) if np.ndim(action) else dtype.type(int(action) + first)
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
        if dtype == np.float32:
            return lambda action: action if action.shape[-1:] == shape else _of_shape(action, shape)
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = np.broadcast_to(space.start, shape), space.start + space.nvec - 1
    elif isinstance(space, spaces.MultiBinary):
        low, high = np.zeros(shape, dtype), np.ones(shape, dtype)
    else:
        raise InvalidInput(f"the environment takes actions of {space}", hint="policies act in Discrete, Box, MultiDiscrete and MultiBinary")
    whole = dtype.kind in "iu"

    def converted(action: Any) -> np.ndarray:
        action = _of_shape(action, shape)
        if whole:
            action = np.rint(action)
        with np.errstate(invalid="ignore"):  # a number beyond the dtype: the bound takes its place
            cast = action.astype(dtype)
        return np.where(action <= low, low, np.where(action >= high, high, cast)).astype(dtype)

    return converted


def policy_converter(policy: Any, space: Any) -> Callable[[Any], Any]:
    """`action_converter` for a policy; what a foreign one gives beyond the bounds is clipped to them, as its own library does.

    The result raises `CheckFailed` for a choice that the environment does not have.
    """
    convert = action_converter(space)
    if policy.discrete:
        return lambda action: convert(_chosen(action, int(space.n)))
    if not getattr(policy, "foreign", False):
        return convert
    low, high = np.asarray(space.low, np.float32).reshape(-1), np.asarray(space.high, np.float32).reshape(-1)
    return lambda action: convert(np.clip(action.reshape(*action.shape[: action.ndim - len(policy.action_shape)], -1), low, high))


def _chosen(action: Any, count: int) -> Any:
    """A choice, or an array of them, from ``count``."""
    least, most = (action.min(), action.max()) if np.ndim(action) and np.size(action) else (action, action)
    if np.size(action) and not 0 <= least <= most < count:
        wrong = least if least < 0 else most
        raise CheckFailed(f"the policy gives the action {int(wrong)}, the environment has 0 to {count - 1}", hint="check the policy")
    return action


def _of_shape(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    action = np.asarray(action)
    return action.reshape(*action.shape[:-1], *shape)


def environment_id(env: Any) -> str | None:
    """The id under which gymnasium knows an environment, None for one that it does not."""
    return env.spec.id if getattr(env, "spec", None) is not None else None


def schema_of(env: Any, **source: Any) -> Schema:
    """The schema for episodes of an environment; ``source`` goes into the metadata. Raises `InvalidInput`."""
    return schema_of_spaces(env.observation_space, env.action_space, environment_id(env), **source)


def schema_of_spaces(observation: Any, action: Any, env_id: str | None, **source: Any) -> Schema:
    """`schema_of` of the two spaces of one environment."""
    fields = observation_fields(observation)
    metadata = {
        "env_id": env_id,
        "bounds": f"env:{env_id}" if env_id else "declared",
        "source": {"format": "collected", **source},
        "source_attributes": {},
        # A vector of choices is stored as one of whole numbers: what it was decides who can learn it.
        **({"action_space": {"kind": kind}} if (kind := type(action).__name__) in ("MultiDiscrete", "MultiBinary") else {}),
    }
    return Schema(observation=fields.get("", fields), action=schema_action(action), reward=Field("float32"), metadata=metadata)


def by_field(space: Any) -> Callable[[Any], Any]:
    """What turns an observation of ``space`` into what the store takes: itself, or of a Dict a flat dict of its fields."""
    import gymnasium.spaces as spaces

    if not isinstance(space, spaces.Dict):
        return lambda observation: observation
    nested = any(isinstance(each, spaces.Dict) for each in space.spaces.values())
    return flat if nested else dict


def flat(observation: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict with the names joined by dots. Raises `InvalidInput` where two fields would have one name."""
    found: dict[str, Any] = {}
    for name, value in observation.items():
        inner = {f"{name}.{key}": each for key, each in flat(value).items()} if isinstance(value, Mapping) else {name: value}
        for joined, each in inner.items():
            if joined in found:
                raise InvalidInput(
                    f"two fields are called {joined!r}: one by its own name, one as a part of {joined.partition('.')[0]!r}",
                    hint="rename one of them",
                )
            found[joined] = each
    return found
