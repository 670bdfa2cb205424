"""Collect whole episodes in one gymnasium environment.

Termination and truncation stay distinct, and the observation after the last action is always stored: every collected step is a transition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from offrl.environments import calls
from offrl.errors import InvalidInput
from offrl.rollout import make_env
from offrl_store import Episode
from offrld.collect.behaviours import Behaviour
from offrld.collect.spaces import observation_fields, schema_action, schema_of


def collect_episodes(
    env: Any, behaviour: Behaviour, *, steps: int | None = None, episodes: int | None = None, seed: int = 0
) -> Iterator[Episode]:
    """Run a behaviour in an environment and yield its episodes as they end.

    Args:
        env: the id of an environment, or an environment, which stays open.
        behaviour: acts.
        steps: number of steps to collect; the last episode is cut there (truncated, with its final observation). Or
        episodes: number of whole episodes to collect.
        seed: seeds the environment (at its first reset) and the behaviour: the same seed gives the same episodes.

    Raises:
        InvalidInput: neither or both of ``steps`` and ``episodes``, or not positive; spaces that a store does not hold.
        Unknown: there is no such environment.
    """
    lengths = [length for length in (steps, episodes) if length is not None]
    if len(lengths) != 1 or isinstance(lengths[0], bool) or not isinstance(lengths[0], int) or lengths[0] < 1:
        raise InvalidInput(f"steps={steps}, episodes={episodes}", hint="pass one of them, a positive whole number")
    owned = isinstance(env, str)
    environment = make_env(env) if owned else env
    calls.spaces_of(environment)
    schema_of(environment)  # refuses spaces that a store does not hold, before the first step
    return _run(environment, behaviour, steps, episodes, seed, close=owned)


def _run(env: Any, behaviour: Behaviour, steps: int | None, episodes: int | None, seed: int, close: bool) -> Iterator[Episode]:
    rng, checked, name = np.random.default_rng(seed), calls.Calls(env), calls.name_of(env)
    left, count = steps, 0
    try:
        while (left is None or left > 0) and (episodes is None or count < episodes):
            episode = _episode(checked, name, behaviour, rng, seed if count == 0 else None, left, count)
            count += 1
            left = None if left is None else left - episode.steps
            yield episode
    finally:
        if close:
            calls.close(env, name)


def _episode(
    env: calls.Calls, name: str, behaviour: Behaviour, rng: np.random.Generator, seed: int | None, limit: int | None, number: int
) -> Episode:
    """One episode of at most ``limit`` steps; a ``seed`` seeds the environment."""
    with calls.blamed(name, "the reset", f"of episode {number + 1}"):
        observation, _ = env.reset(seed=seed)
    behaviour.begin_episode(env.action_space, rng)
    observations, actions = [_copied(observation)], list[np.ndarray]()
    rewards: list[float] = []
    terminated = truncated = False
    while not (terminated or truncated or len(rewards) == limit):
        action = behaviour.act(observation)
        with calls.blamed(name, "a step", f"at step {len(rewards)} of episode {number + 1}"):
            observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(_copied(observation))
        actions.append(np.array(action))
        rewards.append(reward)
    fields = observation_fields(env.observation_space)
    action = schema_action(env.action_space)
    columns = {name: np.array([row[name] for row in observations], field.dtype) for name, field in fields.items()}  # [T + 1, ...] each
    return Episode(
        observation=columns[""] if "" in fields else columns,
        action=_actions(actions, action),
        reward=np.array(rewards, np.float32),
        terminated=terminated,
    )


def _actions(actions: list[np.ndarray], field: Any) -> np.ndarray:
    """The behaviour's actions in the store's dtype, ``[T, ...]``; raises `InvalidInput` for an action that the dtype would change."""
    exact = np.array(actions).reshape(len(actions), *field.shape)
    stored = exact.astype(field.dtype)
    if exact.dtype != field.dtype and not np.array_equal(stored, exact):
        at = int(np.argwhere((stored != exact).reshape(len(actions), -1).any(1))[0][0])
        raise InvalidInput(
            f"the action at step {at} is {exact[at].tolist()}, which {field.dtype.name} does not hold",
            hint="let the behaviour give actions of the environment's space",
        )
    return stored


def _copied(observation: Any) -> dict[str, np.ndarray]:
    """Copy an observation, by field name ("" for a plain one): environments may write the next one into the same array."""
    if not isinstance(observation, dict):
        return {"": np.array(observation)}
    flat: dict[str, np.ndarray] = {}
    for name, value in observation.items():
        flat.update({f"{name}.{inner}" if inner else name: array for inner, array in _copied(value).items()})
    return flat


__all__ = ["collect_episodes", "observation_fields", "schema_action", "schema_of"]
