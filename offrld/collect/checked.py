"""A gymnasium wrapper around `offrl.environments.calls.Calls`, for the environments of a vector environment.

It checks their answers one by one, before they are joined to arrays, which would cast them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium

from offrl.environments import calls


class Checked(gymnasium.Wrapper):
    """An environment whose answers are checked."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._calls = calls.Calls(env)

    def __getattr__(self, name: str) -> Any:
        """Read the environment's own attributes, as if it were not wrapped."""
        return getattr(super().__getattribute__("env"), name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        return self._calls.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Any]:
        return self._calls.step(action)


def checked(maker: Callable[[], gymnasium.Env]) -> Checked:
    """Make an environment and wrap it."""
    return Checked(calls.made_by(maker))


__all__ = ["Checked", "checked"]
