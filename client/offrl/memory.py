"""What a policy remembers within an episode: its last frames, or the context that a transformer takes and gives back.

Both are kept outside the graph, by the caller; what is done with them is inside. Nothing here is for several threads at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from offrl.errors import InvalidInput

REWARD = "reward"  # input: reward of the step before
TARGET_RETURN = "target_return"  # input: the return to reach, read at an episode's first step
CONTEXT = "context."  # prefix of the inputs that carry the context
NEXT = "next_"  # output NEXT + X is the next step's input X
LENGTH = CONTEXT + "length"  # steps of the episode so far; 0 starts one, whatever else the context holds

Run = Callable[[list[str], dict[str, np.ndarray]], list[np.ndarray]]


class Frames:
    """The last ``count`` observations of an episode, joined along their first axis, the newest last; zeros before its begin.

    Args:
        shapes: of the graph's inputs without the batch axis: ``(count * C, ...)``.
    """

    def __init__(self, count: int, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype]) -> None:
        self._stacked = {name: np.zeros((1, *shape), dtypes[name]) for name, shape in shapes.items()}
        self._size = {name: shape[0] // count for name, shape in shapes.items()}

    def push(self, frames: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add one frame of each field, ``[1, C, ...]``; the stacks ``[1, count * C, ...]``, which are valid until the next call."""
        for name, frame in frames.items():
            stacked, size = self._stacked[name], self._size[name]
            stacked[:, :-size] = stacked[:, size:]
            stacked[:, -size:] = frame
        return dict(self._stacked)

    def clear(self) -> None:
        """Forget all frames."""
        for stacked in self._stacked.values():
            stacked.fill(0)


class Context:
    """The context of one or several episodes that run side by side, fed back from output to input at each step.

    Args:
        tensors: name -> (dtype, shape without the batch axis) of the context's inputs.
        target_return: the return to reach where the caller names none.
        action: name of the output that is the action.
    """

    def __init__(self, tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]], target_return: float, action: str) -> None:
        self.target_return = target_return
        self._tensors = dict(tensors)
        self._outputs = [action, *(NEXT + name for name in tensors)]
        self._target: float | np.ndarray = target_return
        self._state: dict[str, np.ndarray] | None = None
        self._given: dict[str, np.ndarray] = {}

    def reset(self, target_return: Any = None) -> None:
        """Forget the episodes; the next step starts new ones that are to reach ``target_return`` (a number, or one for each)."""
        self._target = self.target_return if target_return is None else _numbers(TARGET_RETURN, target_return)
        self._state = None

    def step(self, run: Run, observation: dict[str, np.ndarray], reward: Any = None, starts: Any = None) -> np.ndarray:
        """One step of each episode: ``observation`` ``[B, ...]`` by field to the actions ``[B, ...]``.

        Args:
            reward: of the step before, a number or ``[B]``; None: 0. It does not count where an episode starts.
            starts: bool ``[B]``, which episodes start with this step; None: those after `reset`, which all do.

        Raises:
            InvalidInput: another number of episodes than at the step before, or a reward that is not a finite number.
        """
        batch = len(next(iter(observation.values())))
        state = self._begin(batch) if self._state is None else self._state
        if len(state[LENGTH]) != batch:
            raise InvalidInput(
                f"given {batch} observations, but {len(state[LENGTH])} episodes are under way",
                hint="call reset() before another number of episodes",
            )
        if starts is not None:
            state = {**state, LENGTH: np.where(_flags(starts, batch), 0, state[LENGTH])}
        if type(reward) is float and reward - reward == 0.0:  # the usual case: finite
            self._given[REWARD].fill(reward)
        elif reward is not None:
            self._given[REWARD][:] = _per_episode(REWARD, _numbers(REWARD, reward), batch)
        else:
            self._given[REWARD].fill(0.0)
        action, *following = run(self._outputs, observation | self._given | state)
        self._state = dict(zip(self._tensors, following, strict=True))
        return action

    def _begin(self, batch: int) -> dict[str, np.ndarray]:
        self._given = {
            REWARD: np.zeros(batch, np.float32),
            TARGET_RETURN: np.ascontiguousarray(_per_episode(TARGET_RETURN, self._target, batch), np.float32),
        }
        return {name: np.zeros((batch, *shape), dtype) for name, (dtype, shape) in self._tensors.items()}


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} is {value!r}", hint="pass a number, or one for each episode") from None
    if not np.isfinite(numbers).all():
        raise InvalidInput(f"{name} is {value!r}", hint="pass a finite number")
    return numbers


def _per_episode(name: str, value: Any, batch: int) -> np.ndarray:
    value = np.asarray(value)
    if value.shape not in ((), (batch,)):
        raise InvalidInput(f"{name} has shape {value.shape} for {batch} episodes", hint=f"pass a number, or {batch} of them")
    return np.broadcast_to(value, (batch,))


def _flags(value: Any, batch: int) -> np.ndarray:
    flags = np.asarray(value)
    if flags.shape != (batch,) or flags.dtype.kind != "b":
        raise InvalidInput(f"starts is {flags.dtype} of shape {flags.shape} for {batch} episodes", hint=f"pass {batch} booleans")
    return flags


__all__ = ["CONTEXT", "LENGTH", "NEXT", "REWARD", "TARGET_RETURN", "Context", "Frames"]
