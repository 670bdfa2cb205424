"""One environment or several behind one interface: reset at the start of an episode, step, and the observation after each step.

A vector environment of gymnasium 1.x continues after the end of an episode in one of three ways. Those made here never reset by themselves
(``AutoresetMode.DISABLED``), so that every step of every environment belongs to an episode. A vector environment of the caller may also
reset within the last step (``SAME_STEP``: the final observation is in the infos), or in the step after it (``NEXT_STEP``: that step
belongs to no episode and is marked absent).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from offrl.environments import NAMESPACE, calls
from offrl.errors import EnvironmentFailed, InvalidInput
from offrl.rollout import make_env
from offrl_store.errors import OffrlError
from offrld.collect.spaces import environment_id
from offrld.collect.watch import StepWatch


class Environments:
    """``count`` environments of the same spaces, numbered from 0.

    Attributes:
        observation_space, action_space: of one of them.
        vector: None for a single environment, which then is ``single``.
        env_id: gymnasium's id; None for an environment without one.
        infos: those of the newest observations.
        name: for messages.
    """

    def __init__(self, env: Any, count: int = 1, vectorization: str = "sync") -> None:
        """
        Args:
            env: an id, an environment, a vector environment, or a function that makes one of the two.
            count: number of environments; 1: a single one, not wrapped in a vector environment.
            vectorization: of several: ``sync`` in this process (Procgen's in one native step), ``async`` in a process each (spawned, so the
                main module and a function must be importable).

        Raises:
            Unknown, InvalidInput: the environment cannot be made, or ``count`` is above 1 for one that is made already.
        """
        import gymnasium

        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidInput(f"envs is {count!r}", hint="pass a whole number from 1")
        if vectorization not in ("sync", "async"):
            raise InvalidInput(f"vectorization {vectorization!r}", hint="sync or async")
        made = isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv) or (hasattr(env, "step") and not isinstance(env, type))
        if not made and not isinstance(env, str) and not callable(env):
            raise InvalidInput(f"{env!r} is not an environment", hint="pass an id, an environment, or a function that makes one")
        maker = partial(make_env, env) if isinstance(env, str) else None if made else env
        name = None
        self.owned = maker is not None
        self.step: Callable[..., Any]
        self.reset: Callable[..., Any]
        if count > 1 or vectorization == "async":
            if maker is None:
                raise InvalidInput(f"{count} environments cannot be made from one that already exists", hint="pass its id, or a function")
            env, name = _vector(maker, count, vectorization)
        elif maker is not None:
            env = calls.made_by(maker)
        self.vector = env if isinstance(env, gymnasium.vector.VectorEnv) else None
        self.single = None if self.vector is not None else env
        self.count = self.vector.num_envs if self.vector is not None else 1
        if self.vector is None:
            checked = calls.Calls(env)
            self.observation_space, self.action_space = checked.observation_space, checked.action_space
            self.step, self.reset = checked.step, checked.reset
        else:
            self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
            self.step, self.reset = env.step, env.reset
            self._fitted = calls.fitter(env.observation_space)
        self.env_id = environment_id(env)
        if self.env_id is None and isinstance(env, gymnasium.vector.SyncVectorEnv):
            self.env_id = environment_id(env.envs[0])
        if self.env_id is None and isinstance(maker, partial) and maker.func is make_env:
            self.env_id = maker.args[0]
        self.name = self.env_id or name or calls.name_of(env)
        self.mode = self._mode()
        self._pending = np.zeros(self.count, bool)  # NEXT_STEP: environments whose next step is a reset
        self.infos: Mapping[str, Any] = {}

    def _mode(self) -> str:
        from gymnasium.vector import AutoresetMode

        if self.vector is None:
            return "disabled"
        mode = getattr(self.vector, "autoreset_mode", None) or self.vector.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        return AutoresetMode(mode).name.lower()

    def limit(self, watch: StepWatch) -> None:
        """Limit the time of every call by a watch."""
        self.step, self.reset = watch.watched(self.step, "a step"), watch.watched(self.reset, "the reset")

    def failed(self, during: str, error: BaseException, where: str) -> OffrlError:
        """The error for an exception, or an invalid answer, of an environment."""
        return calls.failure(self.name, during, error, where, hint="the episode up to there is kept, as truncated")

    # ------------------------------------------------------------------------------------------------------------- several
    def reset_all(self, seed: int | None) -> Any:
        """Reset every environment, number i with ``seed + i``; returns the observations ``[count, ...]``."""
        self._pending[:] = False
        observations, self.infos = self.reset(seed=seed)
        return self._fitted(observations)

    def step_all(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray, Any]:
        """Step every environment once.

        Returns:
            the observations after the step (the final one of an episode that ends), rewards, terminated, truncated, absent (a reset instead
            of a step), and the present observations, for `begin_after`: if the environment resets itself, those after the reset.
        """
        observations, rewards, terminated, truncated, infos = self.step(actions)
        observations, rewards = self._fitted(observations), _finite(rewards)
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
        """Continue after ends; returns the observations to act on next, and which environments start an episode with theirs.

        Args:
            done: environments whose episode has ended; ``cut``: those whose episode was cut.
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
            now = self._fitted(now)
        return now, begin

    def close(self) -> None:
        """Close the environments that were made here."""
        if self.owned:
            processes = getattr(self.vector, "processes", ())
            if self.vector is not None and not all(process.is_alive() for process in processes):  # a dead one never answers to a close
                for process in processes:
                    process.kill()
                    process.join()
                self.vector.closed = True
            calls.close(self.single if self.vector is None else self.vector, self.name)


def _vector(maker: Callable[[], Any], count: int, vectorization: str) -> tuple[Any, str]:
    """The vector environment, and the name of one of its environments."""
    import gymnasium
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

    from offrld.collect.checked import checked

    one = calls.made_by(maker)
    calls.spaces_of(one)
    name = calls.name_of(one)
    calls.close(one, name)  # an environment that cannot be made fails here, in one line, and not in a child process
    maker = partial(checked, maker)
    try:
        if vectorization == "sync":
            env_id = maker.args[0].args[0] if isinstance(maker.args[0], partial) and maker.args[0].func is make_env else ""
            if env_id.startswith(f"{NAMESPACE}/") and gymnasium.spec(env_id).vector_entry_point is not None:
                return gymnasium.make_vec(env_id, count), name
            return SyncVectorEnv([maker] * count, autoreset_mode=AutoresetMode.DISABLED), name
        return AsyncVectorEnv([maker] * count, context="spawn", autoreset_mode=AutoresetMode.DISABLED), name
    except OffrlError:
        raise
    except Exception as error:
        raise InvalidInput(f"{count} environments cannot be made: {calls.said(error)}", hint="make one alone to see why") from error


def _finite(rewards: Any) -> np.ndarray:
    """Return the rewards of all environments; raises `EnvironmentFailed` unless they are finite."""
    rewards = np.asarray(rewards)
    if rewards.dtype.kind not in "biuf" or rewards.ndim != 1:
        raise EnvironmentFailed(f"its rewards are {rewards.dtype}{list(rewards.shape)}, expected one number per environment")
    if not np.isfinite(rewards).all():
        env = int(np.argmin(np.isfinite(rewards)))
        raise EnvironmentFailed(f"the reward of environment {env} is {rewards[env]}, expected a finite number")
    return rewards


def _with_finals(observations: Any, finals: Any, envs: np.ndarray) -> Any:
    """Replace the observations of ``envs`` by their final ones."""
    if isinstance(observations, dict):
        if isinstance(finals, dict):
            return {name: _with_finals(field, finals[name], envs) for name, field in observations.items()}
        return {name: _with_finals(field, {int(e): finals[e][name] for e in envs}, envs) for name, field in observations.items()}
    replaced = np.array(observations)
    for env in envs:
        replaced[env] = finals[env]
    return replaced


__all__ = ["Environments"]
