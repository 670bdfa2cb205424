"""Datasets that are made when they are asked for: CartPole and Pendulum, played at random or while an agent learns.

``random``: uniform actions. ``replay``: everything that an agent of ours sees while it trains online, from its first random steps on: DQN
in CartPole-v1 (an epsilon that falls from 1 to 0.05 over the first half), SAC in Pendulum-v1. 20,000 steps unless told. The same name,
seed, steps and versions of the libraries give the same bits on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from offrl.named import Named
from offrl.rollout import make_env
from offrl_store import Batch
from offrl_store.errors import InvalidInput
from offrld.collect import RandomBehaviour, collect_episodes, schema_of
from offrld.importers.source import Source, SourceEpisode

STEPS = 20_000
START = 500  # steps at random before the first update
EPSILON = (1.0, 0.05)  # of DQN, over the first half of the steps
AGENTS = {
    "cartpole-replay": ("dqn", {"learning_rate": 1e-3, "batch_size": 64, "target_update_interval": 200}),
    "pendulum-replay": ("sac", {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "temp_learning_rate": 1e-3}),
}


def open_named(named: Named, message: Callable[[str], None], seed: int = 0, steps: int = STEPS) -> Source:
    """The episodes of a name, collected while they are asked for. Raises `InvalidInput`."""
    for what, value, least in (("seed", seed, 0), ("steps", steps, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidInput(f"{what} is {value!r}", hint=f"give a whole number from {least}")
    env = make_env(named.env_id)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    if named.name in AGENTS:
        algorithm, config = AGENTS[named.name]
        episodes, how = _learning(env, algorithm, config, seed, steps), {"behaviour": f"{algorithm} while it learns", "settings": config}
    else:
        episodes, how = collect_episodes(env, RandomBehaviour(), steps=steps, seed=seed), {"behaviour": "random"}
    message(f"collecting {steps} steps of {named.env_id}: {how['behaviour']}")
    schema = schema_of(env, name=named.name, seed=seed, steps=steps, **how)
    numbered = (SourceEpisode(**_parts(episode), number=number) for number, episode in enumerate(episodes))
    source = Source("collected", schema, numbered, dict(schema.metadata))
    source.resources.callback(env.close)
    return source


def _parts(episode: Any) -> dict[str, Any]:
    return {name: getattr(episode, name) for name in ("observation", "action", "reward", "terminated")}


def _learning(env: Any, algorithm: str, config: dict[str, Any], seed: int, steps: int) -> Iterator[Any]:
    """The episodes of an agent that takes one update per step on all that it has seen so far."""
    from offrl_store import Episode
    from offrld.training import build  # torch: not for a name that needs none

    learner = build(algorithm, env, config=config, seeds=[seed], device="cpu", runner="eager", threads=1)
    seen, rng = _Seen(env, steps), np.random.default_rng([seed, 1])
    observation, _ = env.reset(seed=seed)
    start = 0
    for step in range(steps):
        action = _act(learner, env, observation, step, steps, rng)
        following, reward, terminated, truncated, _ = env.step(action)
        seen.add(observation, action, reward, following, terminated)
        observation = following
        if terminated or truncated or step == steps - 1:
            part = slice(start, step + 1)
            yield Episode(
                observation=np.concatenate([seen.observation[part], seen.following[step : step + 1]]), action=seen.action[part].copy(),
                reward=seen.reward[part].copy(), terminated=bool(terminated),
            )  # fmt: skip
            observation, start = env.reset()[0], step + 1
        if step >= min(START, steps // 2):
            learner.update(seen.batch(learner.config.batch_size, learner.config.gamma, rng))


def _act(learner: Any, env: Any, observation: np.ndarray, step: int, steps: int, rng: np.random.Generator) -> Any:
    space = env.action_space
    if hasattr(space, "n"):
        begin, end = EPSILON
        epsilon = max(end, begin - (begin - end) * step / max(1, steps // 2))
        return int(rng.integers(space.n)) if rng.random() < epsilon else int(learner.predict(observation[None])[0])
    if step < START:
        return rng.uniform(space.low, space.high).astype(space.dtype)
    return learner.sample(observation[None], step=step)[0]


class _Seen:
    """All transitions so far, in arrays of their final size."""

    def __init__(self, env: Any, steps: int) -> None:
        observation, action = env.observation_space, env.action_space
        self.observation, self.following = np.zeros((2, steps, *observation.shape), observation.dtype)  # [N, D] each
        self.action = np.zeros((steps, *action.shape), np.int64 if hasattr(action, "n") else action.dtype)
        self.reward, self.terminal = np.zeros((2, steps), np.float32)
        self.count = 0

    def add(self, observation: Any, action: Any, reward: float, following: Any, terminated: bool) -> None:
        at, self.count = self.count, self.count + 1
        self.observation[at], self.action[at], self.reward[at], self.following[at], self.terminal[at] = (
            observation, action, reward, following, terminated,
        )  # fmt: skip

    def batch(self, size: int, gamma: float, rng: np.random.Generator) -> Batch:
        rows = rng.integers(self.count, size=size)
        return Batch(
            observation=self.observation[rows], action=self.action[rows], reward=self.reward[rows], next_observation=self.following[rows],
            terminal=self.terminal[rows], discount=np.full(size, gamma, np.float32), index=rows,
        )  # fmt: skip
