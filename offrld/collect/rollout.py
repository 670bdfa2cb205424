"""Collecting whole episodes in one gymnasium environment.

Termination and truncation are kept apart, and the observation after the last action is always kept: every step collected is a transition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl.rollout import make_env
from offrl_store import Episode

from .behaviours import Behaviour
from .spaces import observation_fields, schema_action, schema_of


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
    made = make_env(env) if isinstance(env, str) else None
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


__all__ = ["collect_episodes", "observation_fields", "schema_action", "schema_of"]
