"""Explorers mix random actions or noise into a behaviour's actions, and note it in the episode's metadata.

Three forms, as in d3rlpy: random actions with a constant or a decaying probability, and normal noise on continuous actions. Random first
steps are the fourth. `Exploring` wraps a behaviour and is one itself, so that a collector handles behaviours only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrld.collect.behaviours import BatchBehaviour, Behaviour, drawer


@dataclass(frozen=True)
class ConstantEpsilonGreedy:
    """A uniform action with probability ``epsilon``."""

    epsilon: float

    def __post_init__(self) -> None:
        _share("epsilon", self.epsilon)

    def epsilon_at(self, step: int) -> float:
        return self.epsilon


@dataclass(frozen=True)
class LinearDecayEpsilonGreedy:
    """A uniform action with a probability that decays from ``start_epsilon`` to ``end_epsilon`` over ``duration`` steps."""

    start_epsilon: float = 1.0
    end_epsilon: float = 0.1
    duration: int = 1_000_000

    def __post_init__(self) -> None:
        _share("start_epsilon", self.start_epsilon)
        _share("end_epsilon", self.end_epsilon)
        if isinstance(self.duration, bool) or not isinstance(self.duration, int) or self.duration < 1:
            raise InvalidInput(f"duration is {self.duration!r}", hint="pass a whole number of steps from 1")

    def epsilon_at(self, step: int) -> float:
        """The probability after ``step`` steps, by d3rlpy's rule."""
        left = max(0.0, 1.0 - step / self.duration)
        return self.end_epsilon + (self.start_epsilon - self.end_epsilon) * left


@dataclass(frozen=True)
class NormalNoise:
    """Noise N(mean, std) on every element of a continuous action, in units in which the bounds are -1 and 1; clipped to them."""

    mean: float = 0.0
    std: float = 0.1

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std >= 0):
            raise InvalidInput(f"noise of mean {self.mean!r} and std {self.std!r}", hint="pass finite numbers, std from 0")


Explorer = ConstantEpsilonGreedy | LinearDecayEpsilonGreedy | NormalNoise
NAMES = {ConstantEpsilonGreedy: "epsilon_greedy", LinearDecayEpsilonGreedy: "linear_decay", NormalNoise: "normal_noise"}


class Exploring:
    """A behaviour with an explorer, and uniform actions for the first ``random_steps``.

    Each episode's metadata records ``policy``, ``explorer`` with its settings, ``epsilon`` at the episode's end, and ``random_share``, the
    share of steps with a uniform action.

    Args:
        explorer: None: the behaviour alone.
        random_steps: number of uniform actions at the start, of all environments together.
    """

    def __init__(self, behaviour: Behaviour | BatchBehaviour, explorer: Explorer | None = None, random_steps: int = 0) -> None:
        if isinstance(random_steps, bool) or not isinstance(random_steps, int) or random_steps < 0:
            raise InvalidInput(f"random_steps is {random_steps!r}", hint="pass a whole number from 0")
        self.behaviour: Any = behaviour
        self.explorer, self.random_steps = explorer, random_steps
        self.name = behaviour.name
        self.step = 0
        self.last_random: Any = False  # whether the last action was uniform; in several environments bool [count]
        self._epsilon_at = explorer.epsilon_at if isinstance(explorer, ConstantEpsilonGreedy | LinearDecayEpsilonGreedy) else None
        self._space: Any = None
        self._rng: Any = None  # a NumPy generator, from the first episode on
        self._steps = self._random = np.zeros(1, np.int64)  # of the episode under way in each environment
        self._reward = getattr(behaviour, "take_reward", None)
        if hasattr(behaviour, "act_batch"):
            self.begin_batch, self.act_batch = self._begin_batch, self._act_batch
        for name in ("weights", "load_weights", "check"):
            if hasattr(behaviour, name):
                setattr(self, name, getattr(behaviour, name))

    def begin_episode(self, action_space: Any, rng: np.random.Generator) -> None:
        if action_space is not self._space or rng is not self._rng:
            self._begin(action_space, rng, 1)
        self._steps[0] = self._random[0] = 0
        self.behaviour.begin_episode(action_space, rng)

    def act(self, observation: Any) -> Any:
        step, self.step = self.step, self.step + 1
        self._steps[0] += 1
        self.last_random = step < self.random_steps or (self._epsilon_at is not None and self._rng.random() < self._epsilon_at(step))
        if self.last_random:
            self._random[0] += 1
            return self._uniform(1)[0]
        action = self.behaviour.act(observation)
        return action if self._noise is None else self._noise(action)

    def take_reward(self, reward: Any) -> None:
        if self._reward is not None:
            self._reward(reward)

    def _begin_batch(self, action_space: Any, count: int, rng: np.random.Generator) -> None:
        self._begin(action_space, rng, count)
        self.behaviour.begin_batch(action_space, count, rng)

    def _act_batch(self, observations: Any, starts: np.ndarray) -> np.ndarray:
        count = len(starts)
        step, self.step = self.step, self.step + count
        self._steps[starts] = self._random[starts] = 0
        uniform = np.arange(step, step + count) < self.random_steps
        if self._epsilon_at is not None:
            uniform |= self._rng.random(count) < np.array([self._epsilon_at(step + env) for env in range(count)])
        self.last_random = uniform
        self._steps += 1
        self._random += uniform
        if uniform.all():
            return self._uniform(count)
        actions = self.behaviour.act_batch(observations, starts)
        actions = np.array(actions if self._noise is None else self._noise(actions))
        if uniform.any():
            actions[uniform] = self._uniform(count)[uniform]
        return actions

    def _begin(self, space: Any, rng: np.random.Generator, count: int) -> None:
        self._space, self._rng = space, rng
        self._steps, self._random = np.zeros(count, np.int64), np.zeros(count, np.int64)
        needs = self.random_steps > self.step or self._epsilon_at is not None
        self._uniform = drawer(space, rng) if needs else _never
        self._noise = _noise(self.explorer, space, rng) if isinstance(self.explorer, NormalNoise) else None

    def episode_metadata(self, env: int = 0) -> dict[str, Any]:
        """The metadata of the episode of ``env`` that has just ended."""
        described: dict[str, Any] = {"policy": self.behaviour.name}
        if self.explorer is not None:
            described |= {"explorer": NAMES[type(self.explorer)], **asdict(self.explorer)}
        if self._epsilon_at is not None:
            described["epsilon"] = float(self._epsilon_at(self.step))
        described["random_share"] = round(float(self._random[env] / max(1, self._steps[env])), 6)
        return described

    def state_dict(self) -> dict[str, Any]:
        inner = getattr(self.behaviour, "state_dict", dict)
        return {"step": self.step, "behaviour": inner()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = int(state["step"])
        if hasattr(self.behaviour, "load_state_dict"):
            self.behaviour.load_state_dict(state["behaviour"])


def explorer_of(
    *, epsilon: float | None = None, epsilon_end: float | None = None, epsilon_steps: int | None = None, noise: float | None = None
) -> Explorer | None:
    """Return the explorer of some settings; None without any.

    Args:
        epsilon: probability of a uniform action. With ``epsilon_end`` it is the first one, which decays over ``epsilon_steps``.
        noise: deviation of normal noise on continuous actions.

    Raises:
        InvalidInput: both kinds, half of a decay, or numbers out of range.
    """
    if (epsilon_end is None) != (epsilon_steps is None):
        raise InvalidInput(f"epsilon_end={epsilon_end} and epsilon_steps={epsilon_steps} go together", hint="pass both, or none")
    if noise is not None and (epsilon is not None or epsilon_end is not None):
        raise InvalidInput(f"both epsilon and noise={noise:g} were given", hint="explore in one way")
    if noise is not None:
        return NormalNoise(std=noise)
    if epsilon_end is not None and epsilon_steps is not None:
        return LinearDecayEpsilonGreedy(1.0 if epsilon is None else epsilon, epsilon_end, epsilon_steps)
    return None if epsilon is None else ConstantEpsilonGreedy(epsilon)


def _noise(explorer: NormalNoise, space: Any, rng: np.random.Generator) -> Callable[[Any], np.ndarray]:
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise InvalidInput(f"actions of {space} take no normal noise", hint="noise is for Box actions with bounds; for others use epsilon")
    half = (np.asarray(space.high, np.float64) - space.low) / 2

    def add(action: Any) -> np.ndarray:
        noise = half * (explorer.mean + explorer.std * rng.standard_normal(np.shape(action)))
        return np.clip(action + noise, space.low, space.high).astype(space.dtype)

    return add


def _never(count: int) -> np.ndarray:
    raise AssertionError("a uniform action was drawn without an explorer")


def _share(name: str, value: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 <= value <= 1.0:
        raise InvalidInput(f"{name} is {value!r}", hint="pass a probability from 0 to 1")


__all__ = ["ConstantEpsilonGreedy", "Explorer", "Exploring", "LinearDecayEpsilonGreedy", "NormalNoise", "explorer_of"]
