"""A gymnasium environment that records the episodes played in it."""

from __future__ import annotations

from typing import Any

import gymnasium

from offrl.errors import InvalidInput
from offrl.recording.recorder import Recorder


class RecordEpisodes(gymnasium.Wrapper):
    """Records every episode: from each reset to its end, or to the next reset (then truncated).

    Args:
        env: any environment; the recorder takes its fields from the spaces, unless it has fields already.
        recorder: a `Recorder`. It stays open when the environment is closed; the open episode ends.

    If the recorder refuses a reset or step, its error is raised after the environment has executed it: continue with ``reset``.
    Raises `InvalidInput` if ``env`` is not a gymnasium environment or its spaces cannot be stored.
    """

    def __init__(self, env: gymnasium.Env, recorder: Recorder) -> None:
        if not isinstance(env, gymnasium.Env):
            raise InvalidInput(f"{type(env).__name__} is not a gymnasium.Env", hint="record one environment, not a vector of them")
        super().__init__(env)
        self._recorder = recorder
        recorder.use(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._recorder.begin(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._recorder.step(action, reward, observation, terminated, truncated)
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        try:
            self._recorder.end()
        finally:
            super().close()
