"""Collecting whole episodes in one gymnasium environment, and the schema that its spaces give.

Termination and truncation are kept apart, and the observation after the last action is always kept: every step collected is a transition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from offrl import environments
from offrl.errors import Unknown, nearest
from offrl_store import Episode, Field, Schema
from offrl_store.errors import InvalidInput

from .behaviours import Behaviour


def make_environment(env_id: str) -> Any:
    """``gymnasium.make`` with its errors as ours: `Unknown` for an id that is not registered, `InvalidInput` where it cannot be made."""
    import gymnasium

    environments.register()
    try:
        return gymnasium.make(env_id)
    except (
        gymnasium.error.UnregisteredEnv,
        gymnasium.error.NameNotFound,
        gymnasium.error.VersionNotFound,
        gymnasium.error.NamespaceNotFound,
    ):
        raise Unknown(f"unknown environment {env_id!r}", hint=nearest(env_id, list(gymnasium.registry))) from None
    except (gymnasium.error.Error, ImportError) as error:
        raise InvalidInput(f"environment {env_id!r} cannot be made: {error}", hint="install what it needs") from None


def collect_episodes(
    env: Any, behaviour: Behaviour, *, steps: int | None = None, episodes: int | None = None, seed: int = 0
) -> Iterator[Episode]:
    """Runs a behaviour in an environment and gives its episodes as they end.

    Args:
        env: the id of an environment, or an environment (which is not closed then).
        behaviour: what acts.
        steps: collect exactly so many steps; the last episode is then cut where they are used up (truncated, final observation kept).
        episodes: or collect so many whole episodes.
        seed: seeds the environment (at its first reset) and the behaviour: the same seed gives the same episodes.

    Raises:
        InvalidInput: not exactly one of ``steps`` and ``episodes``, or not positive; spaces that are not stored.
        Unknown: there is no such environment.
    """
    wanted = [each for each in (steps, episodes) if each is not None]
    if len(wanted) != 1 or isinstance(wanted[0], bool) or not isinstance(wanted[0], int) or wanted[0] < 1:
        raise InvalidInput(f"steps={steps}, episodes={episodes}", hint="give one of them, a positive whole number")
    made = make_environment(env) if isinstance(env, str) else None
    environment = made if made is not None else env
    schema_of(environment)  # spaces that cannot be stored are refused before the first step
    return _run(environment, behaviour, steps, episodes, seed, close=made is not None)


def _run(env: Any, behaviour: Behaviour, steps: int | None, episodes: int | None, seed: int, close: bool) -> Iterator[Episode]:
    rng = np.random.default_rng(seed)
    left, count = steps, 0
    try:
        while (left is None or left > 0) and (episodes is None or count < episodes):
            episode = _episode(env, behaviour, rng, seed if count == 0 else None, left)
            count += 1
            left = None if left is None else left - episode.steps
            yield episode
    finally:
        if close:
            env.close()


def _episode(env: Any, behaviour: Behaviour, rng: np.random.Generator, seed: int | None, limit: int | None) -> Episode:
    """One episode of at most ``limit`` steps; ``seed`` seeds the environment where it is not None."""
    observation, _ = env.reset(seed=seed)
    behaviour.begin_episode(env.action_space, rng)
    observations, actions, rewards = [_kept(observation)], [], []
    terminated = truncated = False
    while not (terminated or truncated or len(rewards) == limit):
        action = behaviour.act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(_kept(observation))
        actions.append(np.array(action))
        rewards.append(float(reward))
    fields = observation_fields(env.observation_space)
    action = schema_action(env.action_space)
    columns = {name: np.array([row[name] for row in observations], field.dtype) for name, field in fields.items()}  # [T + 1, ...] each
    return Episode(
        observation=columns[""] if "" in fields else columns,
        action=np.array(actions, action.dtype).reshape(len(actions), *action.shape),
        reward=np.array(rewards, np.float32),
        terminated=bool(terminated),
    )


def _kept(observation: Any) -> dict[str, np.ndarray]:
    """A copy of an observation by field name, "" for a plain one: environments may write the next one into the same array."""
    if not isinstance(observation, dict):
        return {"": np.array(observation)}
    flat: dict[str, np.ndarray] = {}
    for name, value in observation.items():
        flat.update({f"{name}.{inner}" if inner else name: each for inner, each in _kept(value).items()})
    return flat


def observation_fields(space: Any) -> dict[str, Field]:
    """The fields of an observation space by name, "" for a plain one; nested Dicts are joined with a dot. Raises `InvalidInput`."""
    import gymnasium.spaces as spaces

    if isinstance(space, spaces.Dict):
        flat: dict[str, Field] = {}
        for name, each in space.spaces.items():
            flat.update({f"{name}.{inner}" if inner else name: field for inner, field in observation_fields(each).items()})
        return flat
    if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return {"": Field(np.dtype(space.dtype).name, space.shape)}
    raise InvalidInput(
        f"observations of {type(space).__name__} cannot be stored", hint="Box, Discrete, MultiDiscrete, MultiBinary and Dict can"
    )


def schema_action(space: Any) -> Field:
    """The action field of an action space: int64 choices, or a vector with the space's bounds. Raises `InvalidInput`."""
    import gymnasium.spaces as spaces

    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Field("int64", (), low=0, high=int(space.n) - 1)
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        return Field(np.dtype(space.dtype).name, space.shape, low=space.low, high=space.high)
    raise InvalidInput(f"actions of {space} cannot be stored", hint="Discrete from 0, and Box vectors with finite bounds, can")


def schema_of(env: Any, **source: Any) -> Schema:
    """The schema for episodes of an environment; ``source`` goes into the metadata. Raises `InvalidInput`."""
    fields = observation_fields(env.observation_space)
    env_id = env.spec.id if env.spec is not None else None
    metadata = {
        "env_id": env_id,
        "bounds": f"env:{env_id}" if env_id else "declared",
        "source": {"format": "collected", **source},
        "source_attributes": {},
    }
    return Schema(
        observation=fields.get("", fields),
        action=schema_action(env.action_space),
        reward=Field("float32"),
        metadata=metadata,
    )
