"""Behaviours act while data is collected. A behaviour reads observations and draws random numbers from the collector's generator."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from offrl_store.errors import InvalidInput

BLOCK = 1024  # random actions drawn at once: one by one each would cost as much as a step of CartPole
UNIFORM_HINT = "a Discrete space, or a Box with finite bounds, has them"


class Behaviour(Protocol):
    """What a collector calls: it announces the start of each episode, then asks for one action per observation.

    ``name`` goes into the metadata of the episodes. The same generator gives the same actions. Optional methods:

    - ``begin_batch(action_space, count, rng)`` and ``act_batch(observations, starts)``: it acts in ``count`` environments at once:
      observations ``[count, ...]`` (by field), ``starts`` bool ``[count]``, whether an episode starts. A behaviour without these methods is
      copied for each environment;
    - ``take_reward(reward)``: the reward of the last action, a number or ``[count]``;
    - ``episode_metadata(env)``: a JSON object to keep with the episode of environment ``env`` that has just ended;
    - ``weights()`` and ``load_weights(arrays)``: the weights that `update_policy_weights` sends to the same behaviour in other processes;
    - ``state_dict()`` and ``load_state_dict(state)``: its part of a collector's state, as JSON.
    """

    name: str

    def begin_episode(self, action_space: Any, rng: np.random.Generator) -> None:
        """An episode starts; whatever is drawn once per episode is drawn here."""

    def act(self, observation: Any) -> Any:
        """The action for an observation, as ``env.step`` takes it."""


class BatchBehaviour(Protocol):
    """The methods of a behaviour that acts in several environments at once (see `Behaviour`)."""

    name: str

    def begin_batch(self, action_space: Any, count: int, rng: np.random.Generator) -> None:
        """Acting in ``count`` environments starts."""

    def act_batch(self, observations: Any, starts: np.ndarray) -> np.ndarray:
        """The action of each environment for its row of the observations."""


class RandomBehaviour:
    """Random actions of any action space: Discrete, Box, MultiDiscrete, MultiBinary.

    Args:
        distribution: of Box actions: ``uniform`` between their bounds, which must be finite; or ``normal``: N(0, std) in units in which
            the bounds are -1 and 1, clipped to them (in the environment's own units if it has no bounds).
        std: of the normal distribution.
    """

    def __init__(self, distribution: str = "uniform", std: float = 1.0) -> None:
        if distribution not in ("uniform", "normal"):
            raise InvalidInput(f"distribution {distribution!r} of random actions", hint="uniform or normal")
        self.name = "random" if distribution == "uniform" else "random normal"
        self._normal, self._std = distribution == "normal", std
        self._space: Any = None
        self._rng: np.random.Generator | None = None
        self._block: Any = ()
        self._next = 0

    def begin_episode(self, action_space: Any, rng: np.random.Generator) -> None:
        if action_space is not self._space or rng is not self._rng:
            self._space, self._rng, self._block, self._next = action_space, rng, (), 0
            self._draw = drawer(action_space, rng, std=self._std if self._normal else None)

    def act(self, observation: Any) -> Any:
        if self._next == len(self._block):
            drawn = self._draw(BLOCK)
            self._block, self._next = drawn.tolist() if drawn.ndim == 1 else drawn, 0
        self._next += 1
        return self._block[self._next - 1]

    def begin_batch(self, action_space: Any, count: int, rng: np.random.Generator) -> None:
        self._draw, self._count = drawer(action_space, rng, std=self._std if self._normal else None), count

    def act_batch(self, observations: Any, starts: np.ndarray) -> np.ndarray:
        return self._draw(self._count)


def drawer(space: Any, rng: np.random.Generator, std: float | None = None) -> Callable[[int], np.ndarray]:
    """Return a function that draws ``n`` actions of a space, ``[n, ...]``: uniform, or with ``std`` normal ones of a Box.

    Raises:
        InvalidInput: the space has no such actions.
    """
    import gymnasium.spaces as spaces

    if isinstance(space, spaces.Discrete):
        return lambda n: rng.integers(space.n, size=n) + space.start
    if isinstance(space, spaces.MultiDiscrete):
        return lambda n: (rng.integers(space.nvec, size=(n, *space.shape)) + space.start).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return lambda n: rng.integers(2, size=(n, *space.shape), dtype=space.dtype)
    if not isinstance(space, spaces.Box):
        raise InvalidInput(f"there are no uniform actions in {space}", hint=UNIFORM_HINT)
    low, high, shape = space.low, space.high, space.shape
    if std is not None:
        bounded = np.isfinite(low) & np.isfinite(high)
        centre = np.where(bounded, (np.where(bounded, low, 0) + np.where(bounded, high, 0)) / 2, 0.0)
        half = np.where(bounded, (np.where(bounded, high, 0) - np.where(bounded, low, 0)) / 2, 1.0)
        return lambda n: np.clip(centre + half * std * rng.standard_normal((n, *shape)), low, high).astype(space.dtype)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise InvalidInput(f"there are no uniform actions in {space}", hint=f"{UNIFORM_HINT}; or draw normal ones")
    return lambda n: rng.uniform(low, high, (n, *shape)).astype(space.dtype)


class NoisyPoleBehaviour:
    """A mediocre CartPole player: pushes to the side to which the pole falls, and at random with the episode's probability epsilon.

    Epsilon is drawn for each episode from ``epsilons``, so that the data mixes short and medium episodes. Mean returns, measured over
    6,000 steps: 168 at epsilon 0.5, 98 at 0.6, 40 at 0.8; without noise the rule reaches the limit of 500, so a learner can improve on it.
    20,000 steps with the default levels have a mean return of 95 to 110 (seeds 0 to 9).
    """

    name = "noisy pole"

    def __init__(self, epsilons: tuple[float, ...] = (0.5, 0.6, 0.8)) -> None:
        self.epsilons = epsilons

    def begin_episode(self, action_space: Any, rng: np.random.Generator) -> None:
        self._rng = rng
        self._epsilon = float(rng.choice(self.epsilons))

    def act(self, observation: np.ndarray) -> int:
        if self._rng.random() < self._epsilon:
            return int(self._rng.integers(2))
        angle, angular_velocity = observation[2], observation[3]  # radians, radians per second
        return int(angle + 0.3 * angular_velocity > 0)


class FunctionBehaviour:
    """Any callable: ``function(observation) -> action``, one observation at a time.

    The weights of a callable with ``state_dict`` and ``load_state_dict`` (a torch module) can be sent to workers.
    """

    def __init__(self, function: Callable[[Any], Any], name: str | None = None) -> None:
        self.act = function
        self._module: Any = function  # with a module's methods, if it has them
        self.name = name or getattr(function, "__name__", None) or type(function).__name__

    def begin_episode(self, action_space: Any, rng: np.random.Generator) -> None:
        begin = getattr(self.act, "begin_episode", None)
        if begin is not None:
            begin(action_space, rng)

    def weights(self) -> dict[str, np.ndarray]:
        if not hasattr(self.act, "state_dict"):
            raise InvalidInput(f"{self.name} has no weights to send", hint="a torch module has: state_dict, load_state_dict")
        return {
            name: np.asarray(value.detach().cpu()) if hasattr(value, "detach") else np.asarray(value)
            for name, value in self._module.state_dict().items()
        }

    def load_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        before = self._module.state_dict()
        self._module.load_state_dict(
            {
                name: before[name].new_tensor(np.array(value)) if hasattr(before.get(name), "new_tensor") else value
                for name, value in arrays.items()
            }
        )


class Copies:
    """Copies of a behaviour that acts on one observation: one for each of several environments."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.name, self._one = behaviour.name, behaviour
        self._all: list[Behaviour] = []
        for name in ("weights", "load_weights"):
            if hasattr(behaviour, name):
                setattr(self, name, getattr(behaviour, name))

    def begin_batch(self, action_space: Any, count: int, rng: np.random.Generator) -> None:
        self._space = action_space
        self._all = [copy.copy(self._one) for _ in range(count)]
        self._rngs = rng.spawn(count)
        self._to_dtype = action_space.dtype

    def act_batch(self, observations: Any, starts: np.ndarray) -> np.ndarray:
        actions = []
        for env, behaviour in enumerate(self._all):
            if starts[env]:
                behaviour.begin_episode(self._space, self._rngs[env])
            actions.append(behaviour.act(_row(observations, env)))
        return np.array(actions, self._to_dtype)

    def take_reward(self, rewards: np.ndarray) -> None:
        for behaviour, reward in zip(self._all, rewards, strict=True):
            if hasattr(behaviour, "take_reward"):
                behaviour.take_reward(reward)


def _row(observations: Any, env: int) -> Any:
    return {name: _row(field, env) for name, field in observations.items()} if isinstance(observations, Mapping) else observations[env]
