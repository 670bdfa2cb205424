"""A gymnasium wrapper around `offrl.environments.calls.Calls`: environments of a vector environment are checked one by one, before their
answers are joined to arrays, which would cast them."""

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
        """What the environment has of its own: nobody has asked for the wrapper around it."""
        return getattr(super().__getattribute__("env"), name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        return self._calls.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Any]:
        return self._calls.step(action)


def checked(maker: Callable[[], gymnasium.Env]) -> Checked:
    """What ``maker`` makes, checked."""
    return Checked(calls.made_by(maker))


__all__ = ["Checked", "checked"]
