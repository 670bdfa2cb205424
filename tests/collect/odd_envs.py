"""Environments that violate gymnasium's API or raise; spawned processes can import them."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import gymnasium
import numpy as np

GOOD = np.zeros(3, np.float32)


class Odd(gymnasium.Env):
    """Five steps an episode, and ``fault`` from the third step on.

    fault: what replaces the answer of a step, by position: ``{1: None}`` gives no reward; or an exception to raise.
    """

    def __init__(self, fault: Any = None, space: gymnasium.Space | None = None, at: int = 3) -> None:
        self.observation_space = space or gymnasium.spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.fault, self.at, self.total, self.step_of_episode = fault, at, 0, 0

    def good(self) -> Any:
        space = self.observation_space
        if isinstance(space, gymnasium.spaces.Dict):
            return {name: np.zeros(each.shape, each.dtype) for name, each in space.spaces.items()}
        return np.zeros(space.shape, space.dtype) if space.shape else 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.step_of_episode = 0
        return self.good(), {}

    def step(self, action: Any) -> Any:
        self.total += 1
        self.step_of_episode += 1
        answer = [self.good(), 1.0, self.step_of_episode == 5, False, {}]
        if self.total >= self.at and self.fault is not None:
            if isinstance(self.fault, BaseException):
                raise self.fault
            if callable(self.fault):
                return self.fault(answer)
            for place, value in self.fault.items():
                answer[place] = value
        return tuple(answer)


class Resets(Odd):
    """Its reset returns something else."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Unseeded(Odd):
    """The reset of the old gym."""

    def reset(self) -> Any:
        return self.good()


class Killed(Odd):
    """Its process dies."""

    def step(self, action: Any) -> Any:
        if self.total == 3:
            os._exit(7)
        return super().step(action)


class Closing(Odd):
    """Raises when it is closed."""

    def close(self) -> None:
        raise RuntimeError("the window is gone")


class Unspaced:
    """Has no spaces."""

    metadata: dict[str, Any] = {}

    def reset(self, **options: Any) -> Any:
        return GOOD, {}

    def step(self, action: Any) -> Any:
        return GOOD, 0.0, False, False, {}


def raises() -> Any:
    """A maker that cannot make."""
    sys.exit("no licence")


def odd(**options: Any) -> Any:
    return partial(Odd, **options)
