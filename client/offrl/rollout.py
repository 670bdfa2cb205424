"""A policy in a gymnasium environment, one episode after the other: used by the command line, the worker and the demo alike.

gymnasium is imported when it is needed and not before. Episodes are not run side by side: a batched matrix product differs from a single
one in its last bits, which a chaotic environment turns into other returns, and the returns here are the ones a robot would get.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offrl import environments
from offrl.environments import calls
from offrl.errors import EnvironmentFailed, InvalidInput, Unknown
from offrl.policy import Policy
from offrl.spaces import by_field, leaves, policy_converter

if TYPE_CHECKING:
    import gymnasium

_MAKE = "see whether gymnasium.make makes it"
MAX_STEPS = 100_000  # of one episode, where the environment has no time limit of its own


@dataclass(frozen=True)
class Evaluation:
    """What came of an evaluation: ``returns`` and ``lengths`` by episode, and the time of ``policy.act`` alone, per action."""

    env: str
    episodes: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    return_mean: float
    return_std: float
    latency_us: dict[str, float]  # median, p99
    target_return: float | None = None  # what a transformer was asked for

    def as_json(self) -> dict[str, Any]:
        """``{"env", "episodes", "return_mean", "return_std", "returns", "latency_us": {"median", "p99"}}``; of a transformer also
        ``target_return``."""
        asked = {} if self.target_return is None else {"target_return": self.target_return}
        return {
            "env": self.env,
            "episodes": self.episodes,
            "return_mean": self.return_mean,
            "return_std": self.return_std,
            "returns": list(self.returns),
            "latency_us": dict(self.latency_us),
            **asked,
        }


def evaluate(
    policy: Policy | str | Path | bytes,
    env: str | gymnasium.Env,
    episodes: int = 20,
    seed: int = 1000,
    *,
    target_return: float | None = None,
    max_steps: int = MAX_STEPS,
    on_episode: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run ``episodes`` episodes; episode i starts with ``env.reset(seed=seed + i)``. The same arguments give the same returns.

    Args:
        policy: a `Policy`, or what `Policy` takes.
        env: an id that gymnasium knows, or an environment (which stays open).
        target_return: what a transformer is to reach in each episode; None: the policy's own.
        max_steps: an episode is cut here if the environment does not end it; its return so far counts.
        on_episode: called with the number of episodes done; an exception in it ends the evaluation.

    Raises:
        Unknown: gymnasium has no environment of that id.
        InvalidInput: gymnasium or what the environment needs is not installed, the environment's spaces are not the policy's, a number
            is out of range, or a target return is given for a policy that takes none.
        EnvironmentFailed: the environment raised, or answered with something that is not an observation, reward or flag.
    """
    _at_least("episodes", episodes, 1)
    _at_least("seed", seed, 0)
    _at_least("max_steps", max_steps, 1)
    if not isinstance(policy, Policy):
        policy = Policy(policy)
    name = env if isinstance(env, str) else calls.name_of(env)
    environment = make_env(env) if isinstance(env, str) else env
    try:
        check_spaces(policy, environment, name)
        policy.reset(target_return)
        returns, lengths, latencies = _run(policy, environment, name, episodes, seed, target_return, max_steps, on_episode)
    finally:
        if isinstance(env, str):
            calls.close(environment, name)
    median, p99 = np.percentile(np.array(latencies) / 1000, [50, 99])
    return Evaluation(
        env=name,
        episodes=episodes,
        returns=tuple(returns),
        lengths=tuple(lengths),
        return_mean=float(np.mean(returns)),
        return_std=float(np.std(returns)),
        latency_us={"median": round(float(median), 2), "p99": round(float(p99), 2)},
        target_return=policy.target_return if target_return is None else float(target_return),
    )


def _run(
    policy: Policy,
    env: gymnasium.Env,
    name: str,
    episodes: int,
    seed: int,
    target_return: float | None,
    max_steps: int,
    on_episode: Callable[[int], None] | None,
) -> tuple[list[float], list[int], list[int]]:
    """Run the episodes; return by episode the returns and lengths, and by action the nanoseconds of `Policy.act`."""
    checked, act, clock = calls.Calls(env, observations=False), policy.act, time.perf_counter_ns
    step = checked.step
    to_env, seen = policy_converter(policy, env.action_space), by_field(env.observation_space)
    returns: list[float] = []
    lengths: list[int] = []
    latencies: list[int] = []
    for episode in range(episodes):
        total, length, reward, ended = 0.0, 0, 0.0, False
        during = "the reset"
        try:
            observation, _ = checked.reset(seed=seed + episode)
            policy.reset(target_return)
            while not ended and length < max_steps:
                during = "an observation"  # that the policy refuses
                observation = seen(observation)
                start = clock()
                action = act(observation, reward)
                latencies.append(clock() - start)
                during = "a step"
                observation, reward, terminated, truncated, _ = step(to_env(action))
                total += reward
                length += 1
                ended = terminated or truncated
        except BaseException as error:
            where = f"at step {length} of episode {episode + 1}"
            failed = calls.failure(name, during, error, where, hint=f"to see it again: reset it with seed={seed + episode}")
            if during == "an observation" and isinstance(failed, InvalidInput):
                raise EnvironmentFailed(failed.message, hint=failed.hint) from error
            raise failed from error
        returns.append(total)
        lengths.append(length)
        if on_episode is not None:
            on_episode(episode + 1)
    return returns, lengths, latencies


# ------------------------------------------------------------------------------------------------------------ environments
def make_env(env_id: str, **options: Any) -> gymnasium.Env:
    """``gymnasium.make`` whose failures are one line that says what to do: an unknown id (and the nearest known one), a missing package."""
    try:
        import gymnasium
        from gymnasium.error import DependencyNotInstalled, Error
    except ImportError:
        raise InvalidInput("running an environment needs gymnasium, which is not installed", hint='pip install "offrl[gym]"') from None
    environments.register()
    try:
        environments.register_package(env_id)
        return gymnasium.make(env_id, disable_env_checker=True, **options)
    except DependencyNotInstalled as error:
        raise _missing(env_id, str(error)) from None
    except Error as error:
        if env_id not in gymnasium.registry:  # unregistered, or no id at all
            hint = environments.unknown_hint(env_id, gymnasium.registry)
            raise Unknown(f"gymnasium knows no environment {env_id!r}", hint=hint) from None
        raise InvalidInput(f"environment {env_id!r} cannot be made: {_first_line(error)}", hint=_MAKE) from None
    except ModuleNotFoundError as error:
        module, colon, _ = env_id.partition(":")  # "MODULE:ID": gymnasium imports the module, which registers the environment
        if colon and f"'{module}'" in str(error):
            message = f"environment {env_id!r}: there is no Python module {module!r}"
            raise Unknown(message, hint="install the package that holds the environment") from None
        raise _missing(env_id, str(error), package=error.name) from None
    except InvalidInput:  # of an environment of ours
        raise
    except BaseException as error:  # environments are other people's code: whatever goes wrong in making one is about the id given
        calls.pass_on(error)
        raise InvalidInput(f"environment {env_id!r} cannot be made: {calls.said(error)}", hint=_MAKE) from error


def check_spaces(policy: Policy, env: gymnasium.Env, name: str) -> None:
    """Raises InvalidInput unless the environment's observations and actions are those of the policy."""
    import gymnasium

    observation, action = calls.spaces_of(env)
    for message in (_observation_mismatch(policy, observation), _action_mismatch(policy, action)):
        if message:
            own = f": --env {policy.env_id}" if policy.env_id else ""
            if getattr(policy, "foreign", False) and not policy.discrete and isinstance(action, gymnasium.spaces.Discrete):
                own = "; or --policy-argmax: the output holds scores"
            raise InvalidInput(
                f"environment {name!r} does not fit the policy: {message}", hint="evaluate it in the environment of its dataset" + own
            )


def _observation_mismatch(policy: Policy, space: gymnasium.Space) -> str:
    shapes, dtypes = policy.observation_shapes, policy.observation_dtypes
    given: Mapping[str, Any] = leaves(space)
    if "" in given:
        if len(shapes) > 1:
            return f"it has a single observation of shape {space.shape}, the policy expects the fields {', '.join(shapes)}"
        given = {next(iter(shapes)): space}
    for field, shape in shapes.items():
        if field not in given:
            return f"it has no observation field {field!r}, only {', '.join(given)}"
        if given[field].shape != shape:
            return f"its {field} has shape {given[field].shape}, the policy expects {shape}"
        dtype = given[field].dtype
        if dtype is not None and dtype.kind == "f" and dtypes[field].kind != "f":
            return f"its {field} has dtype {dtype}, the policy expects {dtypes[field]}"
    return ""


def _action_mismatch(policy: Policy, space: gymnasium.Space) -> str:
    import gymnasium

    if policy.discrete:
        if not isinstance(space, gymnasium.spaces.Discrete):
            return f"it takes {space}, the policy gives discrete actions"
        if policy.action_n is not None and policy.action_n != space.n:
            return f"it has {space.n} actions, the policy {policy.action_n}"
    elif not isinstance(space, gymnasium.spaces.Box):
        return f"it takes {space}, the policy gives continuous actions of shape {policy.action_shape}"
    elif int(np.prod(space.shape)) != int(np.prod(policy.action_shape)):
        return f"it takes actions of shape {space.shape}, the policy gives {policy.action_shape}"
    return ""


def _missing(env_id: str, reason: str, package: str | None = None) -> InvalidInput:
    commands = re.findall(r"pip install [^`]+", reason)
    if commands:
        hint = " && ".join(command.strip() for command in commands)
    elif "mujoco" in reason.lower():
        hint = 'pip install "gymnasium[mujoco]"'
    else:
        hint = f"pip install {package}" if package else "install the package that the environment needs"
    return InvalidInput(f"environment {env_id!r} needs a package that is not installed: {_first_line(reason)}", hint=hint)


def _first_line(error: Any) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else "no message"


def _at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InvalidInput(f"{name} is {value!r}", hint=f"pass a whole number of at least {least}")


__all__ = ["MAX_STEPS", "Evaluation", "check_spaces", "evaluate", "make_env"]
