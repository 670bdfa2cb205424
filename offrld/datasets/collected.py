"""Datasets that are collected on demand: CartPole and Pendulum, played at random or by a learning agent.

``random``: uniform actions. ``replay``: all experience of an agent that trains online, from its first random steps on: DQN in CartPole-v1
(epsilon decays from 1 to 0.05 over the first half), SAC in Pendulum-v1. 20,000 steps by default. The same name, seed, steps and versions of
the libraries give the same bits on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from offrl.named import COLLECTED, Named
from offrl.rollout import make_env
from offrl_store import create_temporary
from offrl_store.errors import InvalidInput
from offrld.collect import LinearDecayEpsilonGreedy, RandomBehaviour, collect_episodes, schema_of
from offrld.importers.source import Source, SourceEpisode

STEPS = 20_000
START = 500  # random steps before the first update
EPOCH = 500  # steps between two yields of ended episodes
EPSILON = (1.0, 0.05)  # first and last epsilon of DQN
AGENTS = {
    "cartpole-replay": ("dqn", {"learning_rate": 1e-3, "batch_size": 64, "target_update_interval": 200}),
    "pendulum-replay": ("sac", {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "temp_learning_rate": 1e-3}),
}


def open_named(named: Named, message: Callable[[str], None], seed: int = 0, steps: int = STEPS) -> Source:
    """Make a source that collects the episodes of a name on demand. Raises `InvalidInput`."""
    for option, value, least in (("seed", seed, 0), ("steps", steps, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidInput(f"{option} is {value!r}", hint=f"pass a whole number from {least}")
    env = make_env(COLLECTED[named.name])
    env.reset(seed=seed)
    env.action_space.seed(seed)
    if named.name in AGENTS:
        algorithm, config = AGENTS[named.name]
        episodes, how = _learning(env, algorithm, config, seed, steps), {"behaviour": f"{algorithm} while it learns", "settings": config}
    else:
        episodes, how = _random(env, seed, steps), {"behaviour": "random"}
    message(f"collecting {steps} steps of {named.env_id}: {how['behaviour']}")
    schema = schema_of(env, name=named.name, seed=seed, steps=steps, **how)
    source = Source("collected", schema, episodes, dict(schema.metadata))
    source.resources.callback(env.close)
    return source


def _random(env: Any, seed: int, steps: int) -> Iterator[SourceEpisode]:
    for number, episode in enumerate(collect_episodes(env, RandomBehaviour(), steps=steps, seed=seed)):
        yield SourceEpisode(**_parts(episode), number=number)


def _parts(episode: Any) -> dict[str, Any]:
    return {name: getattr(episode, name) for name in ("observation", "action", "reward", "terminated")}


def _learning(env: Any, algorithm: str, config: dict[str, Any], seed: int, steps: int) -> Iterator[SourceEpisode]:
    """Yield the episodes of an agent that makes one update per step, on all of its steps so far."""
    from offrld.inprocess.training import build

    learner = build(algorithm, env, config=config, seeds=[seed], device="cpu", runner="eager", threads=1)
    explorer = LinearDecayEpsilonGreedy(*EPSILON, duration=max(1, steps // 2)) if hasattr(env.action_space, "n") else None
    start = min(START, steps // 2)
    store = create_temporary(schema_of(env))
    training = learner.fitter_online(
        env, store, explorer, steps=steps, steps_per_epoch=min(EPOCH, steps), random_steps=start, update_start=start, seed=seed
    )
    yielded = 0
    for _ in training:
        store.refresh()
        for number in range(yielded, len(store)):
            yield SourceEpisode(**_parts(store.episodes[number]), number=number, metadata=store.episode_metadata(number) or None)
        yielded = len(store)
