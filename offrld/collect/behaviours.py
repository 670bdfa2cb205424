"""Behaviours: what acts while data is collected. A behaviour sees one observation at a time and draws from the generator it is given."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from offrl_store.errors import InvalidInput


class Behaviour(Protocol):
    """What a collector needs: told at each start of an episode, then asked for one action per observation.

    ``name`` goes into the metadata of what is collected. The same generator gives the same actions.
    """

    name: str

    def begin_episode(self, action_space: Any, rng: np.random.Generator) -> None:
        """An episode starts; whatever is drawn once per episode is drawn here."""

    def act(self, observation: Any) -> Any:
        """The action for an observation, as ``env.step`` takes it."""


class RandomBehaviour:
    """Uniform actions: of the choices of a Discrete space, or of a Box with finite bounds."""

    name = "random"

    def begin_episode(self, action_space: Any, rng: np.random.Generator) -> None:
        self._space, self._rng = action_space, rng
        self._n = getattr(action_space, "n", None)
        if self._n is None and not (
            hasattr(action_space, "low") and np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()
        ):
            raise InvalidInput(
                f"there are no uniform actions in {action_space}", hint="a Discrete space, or a Box with finite bounds, has them"
            )

    def act(self, observation: Any) -> Any:
        if self._n is not None:
            return int(self._rng.integers(self._n)) + int(self._space.start)
        return self._rng.uniform(self._space.low, self._space.high).astype(self._space.dtype)


class NoisyPoleBehaviour:
    """A mediocre CartPole player: pushes to the side to which the pole falls, and at random with the episode's probability epsilon.

    Epsilon is drawn for each episode from ``epsilons``, so that the data mixes short and middling episodes. Mean returns, measured over
    6,000 steps: 168 at epsilon 0.5, 98 at 0.6, 40 at 0.8; without noise the rule reaches the limit of 500, so there is something to learn.
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
