"""One environment or several side by side, behind one face: reset where an episode begins, step, and the observation after each step.

gymnasium 1.x has three ways for a vector environment to go on after an end. What is made here resets nothing by itself
(``AutoresetMode.DISABLED``), so that every step of every environment is a step of an episode. Vector environments that are given may also
reset within the step that ends (``SAME_STEP``: the final observation is in the infos), or with the step after it (``NEXT_STEP``: that
step is not a step of an episode, and is marked absent).
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
        if not made and not isinstance(env, str) and not callable(env):
            raise InvalidInput(f"{env!r} is not an environment", hint="give an id, an environment, or a function that makes one")
        maker = partial(make_env, env) if isinstance(env, str) else None if made else env
        name = None
        self.owned = maker is not None
        self.step: Callable[..., Any]
        self.reset: Callable[..., Any]
        if count > 1 or vectorization == "async":
            if maker is None:
                raise InvalidInput(f"{count} environments cannot be made of one that is made", hint="give its id, or a function")
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
        self._pending = np.zeros(self.count, bool)  # NEXT_STEP: whose next step is a reset
        self.infos: Mapping[str, Any] = {}

    def _mode(self) -> str:
        from gymnasium.vector import AutoresetMode

        if self.vector is None:
            return "disabled"
        mode = getattr(self.vector, "autoreset_mode", None) or self.vector.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        return AutoresetMode(mode).name.lower()

    def limit(self, watch: StepWatch) -> None:
        """Let calls take no longer than the watch allows."""
        self.step, self.reset = watch.watched(self.step, "a step"), watch.watched(self.reset, "the reset")

    def failed(self, during: str, error: BaseException, where: str) -> OffrlError:
        """The error for what an environment has raised, or answered."""
        return calls.failure(self.name, during, error, where, hint="the episode up to there is kept, as truncated")

    # ------------------------------------------------------------------------------------------------------------- several
    def reset_all(self, seed: int | None) -> Any:
        """Reset every environment; the i-th with ``seed + i``. The observations ``[count, ...]``."""
        self._pending[:] = False
        observations, self.infos = self.reset(seed=seed)
        return self._fitted(observations)

    def step_all(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray, Any]:
        """One step of each.

        Returns:
            the observations after the step (of those that end: their last one), rewards, terminated, truncated, absent (no step, but a
            reset), and for `begin_after` what was observed now, if the environment resets itself.
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
            now = self._fitted(now)
        return now, begin

    def close(self) -> None:
        """Close what was made here."""
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
    calls.close(one, name)  # what cannot be made is said here, in one line, and not by a child process
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
    """The rewards of all environments. Raises `EnvironmentFailed`."""
    rewards = np.asarray(rewards)
    if rewards.dtype.kind not in "biuf" or rewards.ndim != 1:
        raise EnvironmentFailed(f"its rewards are {rewards.dtype}{list(rewards.shape)}, expected a number of each environment")
    if not np.isfinite(rewards).all():
        env = int(np.argmin(np.isfinite(rewards)))
        raise EnvironmentFailed(f"the reward of environment {env} is {rewards[env]}, expected a finite number")
    return rewards


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
