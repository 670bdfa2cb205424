"""Calls into environments, which are third-party code: their exceptions are reported as theirs, and their answers are checked.

`Calls` makes the calls into one environment; `failure` turns an exception of one into the error to raise. Evaluations, collectors and
online training use both.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
from numpy import ndarray, vdot

from offrl.errors import EnvironmentFailed, InvalidInput, OffrlError

OLD_GYM = (
    "this is the API of the old gym: shimmy.GymV21CompatibilityV0(env=env) converts it, of gym 0.26 GymV26CompatibilityV0 "
    "(pip install shimmy); "
    "or let step return (observation, reward, terminated, truncated, info) and reset(seed=, options=) return (observation, info)"
)
MOST = float(np.finfo(np.float32).max)  # largest reward
LEAST = -MOST
SHORT = 32  # length up to which Python sums a vector faster than NumPy
_UNPACKED = re.compile(r"values to unpack \(expected (\d)")


class Calls:
    """One environment whose answers are checked: an observation outside its space is refused, never changed.

    A number in another dtype is accepted if the cast keeps its value; a reward or a flag may be an array of one element.

    Args:
        env: an object with gymnasium's ``reset`` and ``step``.
        observations: whether to check observations; False for a policy that checks them itself.

    Raises:
        InvalidInput: the environment has no spaces, or those of the old gym.
    """

    def __init__(self, env: Any, *, observations: bool = True) -> None:
        self.env = env
        self.observation_space, self.action_space = spaces_of(env)
        self._step, self._reset = env.step, env.reset
        self._fitted: Callable[[Any], Any] | None = None
        self._dtype: np.dtype | None = None  # of a plain observation
        self._shape: tuple[int, ...] | None = None
        if observations:
            self._fitted = fitter(self.observation_space)
            if getattr(self.observation_space, "shape", None) is not None and not hasattr(self.observation_space, "spaces"):
                self._dtype, self._shape = np.dtype(self.observation_space.dtype), tuple(self.observation_space.shape)
        self._floats = self._dtype is not None and self._dtype.kind == "f"
        self._short = self._floats and self._shape is not None and len(self._shape) == 1 and self._shape[0] <= SHORT

    def reset(self, **options: Any) -> tuple[Any, Mapping[str, Any]]:
        """Reset; return the first observation and the info. Raises `EnvironmentFailed`, and whatever the environment raises."""
        answer = self._reset(**options)
        if not isinstance(answer, tuple | list) or len(answer) != 2 or not (answer[1] is None or isinstance(answer[1], Mapping)):
            raise EnvironmentFailed(f"its reset returned {_kind_of(answer)} instead of (observation, info)", hint=OLD_GYM)
        observation, info = answer
        return observation if self._fitted is None else self._fitted(observation), {} if info is None else info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Mapping[str, Any]]:
        """Step; return the five values. Raises `EnvironmentFailed`, and whatever the environment raises."""
        answer = self._step(action)
        if (answer.__class__ is not tuple and not isinstance(answer, tuple | list)) or len(answer) != 5:
            four = isinstance(answer, tuple | list) and len(answer) == 4
            answered = "4 values (observation, reward, done, info)" if four else _kind_of(answer)
            raise EnvironmentFailed(f"its step returned {answered} instead of 5", hint=OLD_GYM)
        observation, reward, terminated, truncated, info = answer
        # The common case takes the fewest operations, because this call adds them to every step.
        if self._fitted is not None and not (
            observation.__class__ is ndarray
            and observation.dtype is self._dtype
            and observation.shape == self._shape
            and (isfinite(sum(observation.tolist())) if self._short else not self._floats or isfinite(vdot(observation, observation)))
        ):
            observation = self._fitted(observation)
        if reward.__class__ is not float or not LEAST <= reward <= MOST:
            reward = _reward(reward)
        if terminated.__class__ is not bool:
            terminated = _flag("terminated", terminated)
        if truncated.__class__ is not bool:
            truncated = _flag("truncated", truncated)
        if info.__class__ is not dict and not (info is None or isinstance(info, Mapping)):
            raise EnvironmentFailed(f"its info is {_kind_of(info)} instead of a dict")
        return observation, reward, terminated, truncated, {} if info is None else info


def spaces_of(env: Any) -> tuple[Any, Any]:
    """Return the observation and action space of an environment. Raises `InvalidInput`."""
    from gymnasium import Space

    found = []
    for what in ("observation_space", "action_space"):
        try:
            space = getattr(env, what, None)
        except Exception as error:
            raise InvalidInput(f"{name_of(env)} has no {what}: {said(error)}", hint="declare it in __init__") from error
        if space is None:
            raise InvalidInput(f"{name_of(env)} has no {what}", hint=f"declare it in __init__: self.{what} = gymnasium.spaces.Box(...)")
        if not isinstance(space, Space):
            kind = f"{type(space).__module__}.{type(space).__name__}"
            hint = OLD_GYM if kind.startswith("gym.") else "declare a space of gymnasium.spaces"
            raise InvalidInput(f"{name_of(env)}: its {what} is a {kind}, not a space of gymnasium", hint=hint)
        found.append(space)
    return found[0], found[1]


def name_of(env: Any) -> str:
    """Return the environment's id, or the name of its class."""
    spec = getattr(env, "spec", None)
    return str(getattr(spec, "id", None) or type(getattr(env, "unwrapped", env)).__name__)


def made_by(maker: Callable[[], Any]) -> Any:
    """Call a function that makes an environment. Raises `InvalidInput`, and the `OffrlError` of the function."""
    name = getattr(maker, "__name__", None) or (repr(maker.func.__name__) if isinstance(maker, partial) else type(maker).__name__)
    try:
        env = maker()
    except OffrlError:
        raise
    except BaseException as error:
        pass_on(error)
        raise InvalidInput(f"the environment of {name} cannot be made: {said(error)}", hint="call it by hand to see where") from error
    if not (hasattr(env, "reset") and hasattr(env, "step")):
        raise InvalidInput(f"{name} gives {_kind_of(env)}, not an environment", hint="return the environment")
    return env


def failure(name: str, during: str, error: BaseException, where: str, hint: str = "") -> OffrlError:
    """Return the error to raise for an exception of a call into the environment ``name``.

    Args:
        during: "a step", "the reset", ...
        where: the step and the episode.
        hint: used if the error has no hint of its own.

    Raises ``error`` itself if it is not the environment's, such as Ctrl-C.
    """
    pass_on(error)
    if isinstance(error, OffrlError):
        return type(error)(f"{name}, {where}: {error.message}", hint=error.hint or hint)
    what = said(error)
    if isinstance(error, multiprocessing.TimeoutError):
        what = "no answer in time"
    elif isinstance(error, EOFError | BrokenPipeError | ConnectionResetError):
        what, hint = f"{what}: a process of the environment has ended", hint or "run one environment alone to see why"
    elif _old_api(during, error):
        hint = OLD_GYM
    return EnvironmentFailed(f"{name} failed in {during} {where}: {what}", hint=hint)


def _old_api(during: str, error: BaseException) -> bool:
    """Whether a wrapper of gymnasium, or the reset itself, failed because of the API of the old gym."""
    text = str(error)
    if isinstance(error, TypeError):
        return "argument 'seed'" in text or "argument 'options'" in text
    found = _UNPACKED.search(text) if isinstance(error, ValueError) else None
    return found is not None and found[1] == ("2" if "reset" in during else "5")


@contextmanager
def blamed(name: str, during: str, where: str, hint: str = "") -> Iterator[None]:
    """Turn every exception in the block into a `failure` of the environment ``name``."""
    try:
        yield
    except BaseException as error:
        raise failure(name, during, error, where, hint) from error


def close(env: Any, name: str) -> None:
    """Close an environment. A failure only warns, because the results exist already."""
    try:
        env.close()
    except BaseException as error:
        pass_on(error)
        warnings.warn(f"{name} failed in close: {said(error)}", stacklevel=2)


def said(error: BaseException) -> str:
    """Format an exception as one line."""
    if isinstance(error, OffrlError):
        return error.message
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def pass_on(error: BaseException) -> None:
    """Raise an exception that is not the environment's. In workers, which ignore Ctrl-C, a KeyboardInterrupt is the environment's."""
    if isinstance(error, GeneratorExit):
        raise error
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        raise error


# ------------------------------------------------------------------------------------------------------------------ answers
def _kind_of(value: Any) -> str:
    """Describe a value of the wrong kind briefly."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} values"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return repr(value)[:80] if value is None or isinstance(value, int | float | complex | str) else f"a {type(value).__name__}"


def _single(value: Any) -> Any:
    """Return the number in a number or an array of one element; None for anything else."""
    try:
        array = np.asarray(value)
    except Exception:
        return None
    return array.reshape(()).item() if array.size == 1 and array.dtype.kind in "biuf" else None


def _reward(value: Any) -> float:
    number = value if isinstance(value, float) else _single(value)  # also MuJoCo's np.float64
    if number is None:
        raise EnvironmentFailed(f"its reward is {_kind_of(value)}, expected a number")
    if not LEAST <= number <= MOST:
        kind = "which float32 does not hold" if isfinite(number) else "expected a finite number"
        raise EnvironmentFailed(f"its reward is {number}, {kind}")
    return float(number)


def _flag(name: str, value: Any) -> bool:
    number = _single(value)
    if number not in (0, 1):
        raise EnvironmentFailed(f"its {name} is {_kind_of(value)}, expected True or False")
    return bool(number)


def fitter(space: Any, name: str = "") -> Callable[[Any], Any]:
    """Return a function that checks an observation against ``space`` and casts it; it raises `EnvironmentFailed` naming the field."""
    from gymnasium.spaces import Dict

    where = f"observation {name!r}" if name else "observation"
    if isinstance(space, Dict):
        inner = {key: fitter(each, f"{name}.{key}" if name else key) for key, each in space.spaces.items()}
        return partial(_mapping, where, inner)
    if space.shape is None or space.dtype is None:
        return lambda value: value  # Tuple, Text, ...: they are never stored, and a user of one checks it
    return partial(_leaf, where, np.dtype(space.dtype), tuple(space.shape))


def _mapping(where: str, inner: Mapping[str, Callable[[Any], Any]], value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise EnvironmentFailed(f"its {where} is {_kind_of(value)}, its space is a Dict of {', '.join(map(str, inner))}")
    if value.keys() != inner.keys():
        missing, more = [key for key in inner if key not in value], [key for key in value if key not in inner]
        what = f"has no {', '.join(map(repr, missing))}" if missing else f"has {', '.join(map(repr, more))}, which its space has not"
        raise EnvironmentFailed(f"its {where} {what}", hint=f"the space declares {', '.join(map(str, inner))}")
    return {key: fitted(value[key]) for key, fitted in inner.items()}


def _leaf(where: str, dtype: np.dtype, shape: tuple[int, ...], value: Any) -> Any:
    typed = hasattr(value, "dtype")
    try:
        array = np.asarray(value)
    except Exception as error:
        raise EnvironmentFailed(f"its {where} is not an array of numbers: {said(error)}", hint=f"pass {dtype}{list(shape)}") from None
    if array.dtype.kind not in "biuf":
        given = f"{_kind_of(value)} of {array.dtype}" if typed else _kind_of(value)
        raise EnvironmentFailed(f"its {where} is {given}, its space declares {dtype}{list(shape)}")
    if array.shape != shape:
        raise EnvironmentFailed(f"its {where} has shape {array.shape}, its space declares {shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        at = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        raise EnvironmentFailed(f"its {where}{list(at) if at else ''} is {array[at]}, expected a finite number")
    if array.dtype == dtype:
        return value if typed else array
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        same = cast.astype(array.dtype) == array
        if dtype.kind in "iu":
            same &= (cast < 0) == (array < 0)
    if same.all() or (not typed and array.dtype.kind == dtype.kind == "f" and np.isfinite(cast).all()):
        return cast  # Python's numbers have no dtype: they get the space's
    at = tuple(np.argwhere(~same)[0].tolist())
    raise EnvironmentFailed(
        f"its {where}{list(at) if at else ''} is {array[at]!r} ({array.dtype}), which {dtype}, the dtype of its space, does not hold",
        hint=f"declare the space as {array.dtype}, or let the environment return {dtype}",
    )


__all__ = ["OLD_GYM", "Calls", "blamed", "close", "failure", "fitter", "made_by", "name_of", "pass_on", "said", "spaces_of"]
