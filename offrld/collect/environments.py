"""One environment or several side by side, behind one face: reset where an episode begins, step, and the observation after each step.

gymnasium 1.x has three ways for a vector environment to go on after an end. What is made here resets nothing by itself
(``AutoresetMode.DISABLED``), so that every step of every environment is a step of an episode. Vector environments that are given may also
reset within the step that ends (``SAME_STEP``: the final observation is in the infos), or with the step after it (``NEXT_STEP``: that
step is no step of an episode, and is marked absent).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from offrl.environments import NAMESPACE
from offrl.errors import EnvironmentFailed, InvalidInput
from offrl.rollout import make_env
from offrl_store.errors import OffrlError

from .spaces import environment_id
from .watch import StepWatch


class Environments:
    """``count`` environments of the same spaces. Numbered from 0.

    Attributes:
        observation_space, action_space: of one of them.
        vector: None for a single environment, which then is ``single``.
        env_id: where gymnasium knows it.
        infos: what was said beside the newest observations.
        name: for messages.
    """

    def __init__(self, env: Any, count: int = 1, vectorization: str = "sync") -> None:
        """
        Args:
            env: an id, an environment, a vector environment, or a function that makes one of the two.
            count: environments side by side; 1: one, without the vector environment around it.
            vectorization: of several: ``sync`` in this process (Procgen's in one native step), ``async`` in a process each (spawned, so the
                main module has to be importable, and a function has to be found by its name).

        Raises:
            Unknown, InvalidInput: it cannot be made, or more than one of what is already made.
        """
        import gymnasium

        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidInput(f"envs is {count!r}", hint="give a whole number from 1")
        if vectorization not in ("sync", "async"):
            raise InvalidInput(f"vectorization {vectorization!r}", hint="sync or async")
        made = isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv) or (hasattr(env, "step") and not isinstance(env, type))
        maker = partial(make_env, env) if isinstance(env, str) else None if made else env
        self.owned = maker is not None
        if count > 1 or vectorization == "async":
            if maker is None:
                raise InvalidInput(f"{count} environments cannot be made of one that is made", hint="give its id, or a function")
            env = _vector(maker, count, vectorization)
        elif maker is not None:
            env = maker()
        self.vector = env if isinstance(env, gymnasium.vector.VectorEnv) else None
        self.single = None if self.vector is not None else env
        self.count = self.vector.num_envs if self.vector is not None else 1
        self.observation_space = env.observation_space if self.vector is None else env.single_observation_space
        self.action_space = env.action_space if self.vector is None else env.single_action_space
        self.env_id = environment_id(env)
        if self.env_id is None and isinstance(env, gymnasium.vector.SyncVectorEnv):
            self.env_id = environment_id(env.envs[0])
        if self.env_id is None and isinstance(maker, partial) and maker.func is make_env:
            self.env_id = maker.args[0]
        self.name = self.env_id or type(getattr(env, "unwrapped", env)).__name__
        self.step, self.reset = env.step, env.reset
        self.mode = self._mode()
        self._pending = np.zeros(self.count, bool)  # NEXT_STEP: whose next step is a reset
        self.infos: dict[str, Any] = {}

    def _mode(self) -> str:
        from gymnasium.vector import AutoresetMode

        if self.vector is None:
            return "disabled"
        mode = getattr(self.vector, "autoreset_mode", None) or self.vector.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        return AutoresetMode(mode).name.lower()

    def limit(self, watch: StepWatch) -> None:
        """Let calls take no longer than the watch allows."""
        self.step, self.reset = watch.watched(self.step, "a step"), watch.watched(self.reset, "the reset")

    def failed(self, during: str, error: Exception, where: str) -> OffrlError:
        """The error for what an environment has raised."""
        if isinstance(error, OffrlError):
            return type(error)(f"{self.name}, {where}: {error.message}", hint=error.hint)
        if isinstance(error, multiprocessing.TimeoutError):
            text = "no answer in time"
        else:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return EnvironmentFailed(f"{self.name} failed in {during} {where}: {text}", hint="the episode up to there is kept, as truncated")

    # ------------------------------------------------------------------------------------------------------------- several
    def reset_all(self, seed: int | None) -> Any:
        """Reset every environment; the i-th with ``seed + i``. The observations ``[count, ...]``."""
        self._pending[:] = False
        observations, self.infos = self.reset(seed=seed)
        return observations

    def step_all(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray, Any]:
        """One step of each.

        Returns:
            the observations after the step (of those that end: their last one), rewards, terminated, truncated, absent (no step, but a
            reset), and for `begin_after` what was observed now, if the environment resets itself.
        """
        observations, rewards, terminated, truncated, infos = self.step(actions)
        self.infos = infos
        absent = self._pending.copy()
        done = (terminated | truncated) & ~absent
        now = observations
        if self.mode == "next_step":
            self._pending = done
        elif self.mode == "same_step" and done.any():
            finals = infos.get("final_obs", infos.get("final_observation"))
            observations = _with_finals(observations, finals, np.flatnonzero(done))
        return observations, rewards, terminated, truncated, absent, now

    def begin_after(self, done: np.ndarray, cut: np.ndarray, now: Any) -> tuple[Any, np.ndarray]:
        """Go on after ends: the observations to act on next, and which environments begin an episode with theirs.

        Args:
            done: which have ended by themselves; ``cut``: which were cut, and did not.
            now: of `step_all`.
        """
        if self.mode == "disabled":
            mask = done | cut
        else:
            mask = cut
            if cut.any() and self.mode == "next_step":
                self._pending &= ~cut
        begin = mask | done if self.mode != "next_step" else mask
        if mask.any():
            now, self.infos = self.reset(options={"reset_mask": mask})
        return now, begin

    def close(self) -> None:
        """Close what was made here."""
        if self.owned:
            (self.vector if self.vector is not None else self.single).close()


def _vector(maker: Callable[[], Any], count: int, vectorization: str) -> Any:
    import gymnasium
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

    if vectorization == "sync":
        env_id = maker.args[0] if isinstance(maker, partial) and maker.func is make_env else ""
        if env_id.startswith(f"{NAMESPACE}/"):
            maker().close()  # what cannot be made is said here, in one line
            if gymnasium.spec(env_id).vector_entry_point is not None:
                return gymnasium.make_vec(env_id, count)
        return SyncVectorEnv([maker] * count, autoreset_mode=AutoresetMode.DISABLED)
    maker().close()  # what cannot be made is said here, in one line, and not by a child process
    return AsyncVectorEnv([maker] * count, context="spawn", autoreset_mode=AutoresetMode.DISABLED)


def _with_finals(observations: Any, finals: Any, envs: np.ndarray) -> Any:
    """The observations with those of ``envs`` replaced by their final ones."""
    if isinstance(observations, dict):
        if isinstance(finals, dict):
            return {name: _with_finals(each, finals[name], envs) for name, each in observations.items()}
        return {name: _with_finals(each, {int(e): finals[e][name] for e in envs}, envs) for name, each in observations.items()}
    replaced = np.array(observations)
    for env in envs:
        replaced[env] = finals[env]
    return replaced


__all__ = ["Environments"]
