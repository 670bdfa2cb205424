"""Returns to the end of the episode, cached per snapshot for every 16th row, and lambda returns over windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from offrl_store.arguments import number
from offrl_store.errors import InvalidInput
from offrl_store.kernels import kernels
from offrl_store.reader import StoreReader


def returns_of(reward: np.ndarray, records: np.ndarray, gamma: float) -> Any:
    """Make the kernel's ``Returns`` of these episodes: one pass over their rewards, half a byte of memory per row.

    A sum at sampling time would read to the end of the episode for each transition (500 of 1,000 rewards on average: half a microsecond).
    A full column of returns would be as large as the rewards, and 256 look-ups in it would miss the processor's caches. A sum for every
    16th row fits the caches, and the rewards between two sums are adjacent to the one that is read anyway.
    """
    spans = np.stack([records["first_row"], records["steps"]], axis=1).astype(np.int64)
    base = int(spans[:, 0].min()) >> 4
    marks = np.zeros((int(spans.sum(axis=1).max()) >> 4) - base + 1)
    return kernels().Returns(spans, reward, gamma, marks, base)


def last_reward(reward: np.ndarray, records: np.ndarray, step_reward: float) -> np.ndarray:
    """Return int64 [E]: the time step of the last reward of each episode that differs from ``step_reward``, or -1 without one."""
    last = np.full(len(records), -1, np.int64)
    for e, (first, steps) in enumerate(zip(records["first_row"].tolist(), records["steps"].tolist(), strict=True)):
        other = reward[first : first + steps] != step_reward
        if other.any():
            last[e] = steps - 1 - int(np.argmax(other[::-1]))
    return last


def rewards(store: StoreReader, replacement: Any) -> np.ndarray:
    """Return the column of rewards to sample from: the store's, or its ``replacement`` if not None. Raises InvalidInput."""
    own = store.column("reward")
    if replacement is None:
        return own
    array = isinstance(replacement, np.ndarray)
    if not array or replacement.shape != own.shape or replacement.dtype.name not in ("float32", "float64"):
        form = f"{replacement.dtype} {list(replacement.shape)}" if array else type(replacement).__name__
        raise InvalidInput(
            f"reward is {form}, expected one float32 or float64 number for each of the {len(own)} rows of the store",
            hint='make it from store.column("reward")',
        )
    return np.ascontiguousarray(replacement)


def lambda_returns(reward: Any, next_value: Any, discount: Any, decay: float, out: np.ndarray | None = None) -> np.ndarray:
    """Compute lambda returns (Sutton 1988) of windows: G_t = r_t + d_t ((1 - decay) v_t + decay G_{t+1}), and G = v after the last step.

    Args:
        reward: [B, L], or [L] for one window.
        next_value: like reward; v_t, the value of the state after step t.
        discount: like reward; gamma, or 0 if the step ends the task. Steps after a discount of 0 do not count.
        decay: lambda, from 0 (one step) to 1 (Monte Carlo, with the last value at the end).
        out: float32 array to fill; a new one by default.

    Returns ``out``. Sums are in float64. Raises InvalidInput.
    """
    decay = number(decay, "decay", 0.0, 1.0)
    arrays = [np.asarray(value, np.float32) for value in (reward, next_value, discount)]
    shape = arrays[0].shape
    if len(shape) not in (1, 2) or any(array.shape != shape for array in arrays):
        raise InvalidInput(
            f"reward, next_value, discount have the shapes {', '.join(str(list(a.shape)) for a in arrays)}; expected [B, L] or [L] for all"
        )
    if out is None:
        out = np.empty(shape, np.float32)
    elif not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != np.float32 or not out.flags.writeable:
        raise InvalidInput(f"out must be a writable float32 array of shape {list(shape)}")
    kernels().lambda_returns(*[np.atleast_2d(array) for array in arrays], decay, np.atleast_2d(out))
    return out
