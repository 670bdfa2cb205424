"""The policy of a sequence model as a module. It is a pure function: it takes the context of an episode and returns the next one.

The context is the last L steps: observations and actions in the environment's units, returns-to-go in units of the scaled rewards, and the
number of steps so far. The graph does everything: it subtracts the reward from the return-to-go, shifts the window, masks positions before
the episode's start and counts time steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.memory import CONTEXT, LENGTH, REWARD, TARGET_RETURN
from offrl_store import EpisodeStore
from offrld.engine.batches.feed import view_observation
from offrld.engine.definition.algorithm import Algorithm
from offrld.engine.definition.run import Scalers
from offrld.engine.definition.space import Space
from offrld.engine.learner.data import observation_column, stacked_rows
from offrld.engine.learner.policy_networks import PolicyModule
from offrld.nets import Params
from offrld.preprocess.rewards import reward_column

ACTION, RETURN_TO_GO, OBSERVATION = f"{CONTEXT}action", f"{CONTEXT}return_to_go", f"{CONTEXT}observation"
BEST = 0.1  # the default target is the mean return of this fraction of episodes; the single best one may be luck


@dataclass(frozen=True)
class EpisodeInput:
    """An input other than the observation: dtype, shape without the batch axis, and range of its values (``field``: that field's range)."""

    dtype: str
    shape: tuple[int, ...]
    low: Any = None
    high: Any = None
    field: str | None = None


@dataclass(frozen=True)
class ActingWindow:
    """The last L steps of B episodes, scaled, as `Algorithm.act` takes them; the last action, still unknown, is zeros."""

    observation: Any
    action: Tensor
    returns_to_go: Tensor
    timesteps: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Returns:
    """Returns of a dataset's episodes, and their conversion to scaled rewards.

    Attributes:
        target: mean of the best tenth (of at least one episode), in the environment's rewards.
        low, high: the smallest and the largest return.
        slope, offset: the least-squares line from returns to returns of scaled rewards; exact for scalers that multiply.
    """

    target: float
    low: float
    high: float
    slope: float = 1.0
    offset: float = 0.0

    @classmethod
    def of(cls, store: EpisodeStore, episodes: np.ndarray | Sequence[int], scaler: Any) -> Returns:
        """Compute the returns of some episodes (by number), with the training run's reward scaler or None."""
        raw = _sums(store, episodes, store.column("reward"))
        best = np.sort(raw)[-max(1, round(BEST * len(raw))) :]
        target, low, high = float(best.mean()), float(raw.min()), float(raw.max())
        if scaler is None:
            return cls(target, low, high)
        scaled = _sums(store, episodes, np.asarray(reward_column(scaler, store)))
        spread = raw - raw.mean()
        # If all returns are equal, no line is defined: use slope 1 through the target and its scaled return.
        slope = float(spread @ scaled / (spread @ spread)) if spread @ spread > 0 else 1.0
        return cls(target, low, high, slope, float(scaled.mean() - slope * raw.mean()))


class SequencePolicy(PolicyModule):
    """``forward(inputs) -> (action, *next context)``; inputs are one mapping, or keyword arguments.

    Inputs, by their names in `input_names`: each observation field ``[B, ...]``; ``reward [B]`` of the previous step;
    ``target_return [B]``, used at an episode's first step; and the context, whose tensors `context` names. ``context.length`` 0 starts an
    episode, whatever else the context holds. The outputs after the action are the context of the next step, in the same order.

    Attributes:
        context_size: number of steps L in the window.
        target_return: the default target.
        episode_inputs: all inputs other than the observation.
        context: names of the inputs that are the context.
    """

    return_slope: Tensor
    return_offset: Tensor

    def __init__(
        self, algorithm: Algorithm, config: Any, nets: Any, params: Params, space: Space, scalers: Scalers, returns: Returns
    ) -> None:
        super().__init__(algorithm, config, nets, params, space, scalers)
        self.context_size = length = int(config.context_size)
        self.target_return = returns.target
        self._keep("rewards", scalers.reward)
        self.register_buffer("return_slope", torch.tensor(returns.slope, dtype=torch.float32))
        self.register_buffer("return_offset", torch.tensor(returns.offset, dtype=torch.float32))
        inputs = space.inputs
        # The name is `context.observation` for a single field, `context.observation.NAME` for several.
        self._past = {name: OBSERVATION if len(inputs) == 1 else f"{OBSERVATION}.{name}" for name in inputs}
        span = max(abs(returns.low), abs(returns.high), 1e-3)
        low, high = sorted(returns.slope * bound + returns.offset for bound in (-span, span))
        self.episode_inputs = {
            REWARD: EpisodeInput("float32", (), -span / length, span / length),
            TARGET_RETURN: EpisodeInput("float32", (), returns.low, returns.high),
            **{
                held: EpisodeInput(inputs[name][0], (length, *inputs[name][1]), field=self.input_names[name])
                for name, held in self._past.items()
            },
            ACTION: EpisodeInput("int64", (length,), 0, space.action_size - 1)
            if space.discrete
            else EpisodeInput("float32", (length, space.action_size), space.low, space.high),
            RETURN_TO_GO: EpisodeInput("float32", (length,), low, high),
            LENGTH: EpisodeInput("int64", (), 0, 2 * length),
        }
        self.context = [name for name in self.episode_inputs if name.startswith(CONTEXT)]

    def start(self, batch: int, target_return: float | None = None) -> dict[str, Tensor]:
        """Return all inputs other than the observation at the first step of ``batch`` episodes."""
        inputs = {name: torch.zeros(batch, *spec.shape, dtype=getattr(torch, spec.dtype)) for name, spec in self.episode_inputs.items()}
        inputs[TARGET_RETURN].fill_(self.target_return if target_return is None else target_return)
        return inputs

    def recorded(self, store: EpisodeStore, first: int, rows: np.ndarray, target_return: float) -> dict[str, Tensor]:
        """Return all inputs at the rows ``[B]`` of a recorded episode that starts at row ``first``.

        They are those of a policy with this target return that took the recorded actions.
        """
        length, frames = self.context_size, self.space.frame_stack
        before = np.maximum(rows[:, None] + np.arange(-length, 0), first)  # [B, L]; steps before the episode are masked
        inputs: dict[str, np.ndarray] = {}
        for name, held in self._past.items():
            column = observation_column(store, name)
            inputs[self.input_names[name]] = stacked_rows(column, rows, first, frames)
            inputs[held] = np.stack([stacked_rows(column, at, first, frames) for at in before.T], axis=1)
        reward = np.array(store.column("reward")[first : int(rows.max()) + 1], np.float32)  # a copy: the store is read-only
        scaler = self._scaler("rewards")
        scaled = reward if scaler is None else scaler(torch.from_numpy(reward)).numpy()
        start = target_return * float(self.return_slope) + float(self.return_offset)
        to_go = start - np.concatenate([[0.0], np.cumsum(scaled[:-1], dtype=np.float64)])  # [T]
        inputs[ACTION] = store.column("action")[before]
        inputs[RETURN_TO_GO] = to_go[before - first]
        inputs[REWARD] = np.where(rows > first, reward[rows - first - 1], 0.0)
        inputs[TARGET_RETURN] = np.full(len(rows), target_return)
        inputs[LENGTH] = rows - first
        observed = {self.input_names[name]: spec for name, spec in self.space.inputs.items()}
        specs = {**observed, **{name: (spec.dtype, spec.shape) for name, spec in self.episode_inputs.items()}}
        return {name: torch.from_numpy(value.astype(specs[name][0])).reshape(len(rows), *specs[name][1]) for name, value in inputs.items()}

    def scores(self, named: Mapping[str, Tensor] | None = None, /, **inputs: Tensor) -> Tensor:
        """Return what the greedy choice depends on: discrete scores ``[B, n]``, or the continuous action in [-1, 1]."""
        inputs = inputs if named is None else dict(named)
        return self._scores(inputs, self._moved(inputs))

    def forward(self, named: Mapping[str, Tensor] | None = None, /, **inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = inputs if named is None else dict(named)
        moved = self._moved(inputs)
        action = self.chosen(self._scores(inputs, moved))
        moved[ACTION] = torch.cat([moved[ACTION][:, :-1], action.unsqueeze(1)], dim=1)
        return (action, *(moved[name] for name in self.context))

    def _moved(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the context with the current step appended; its action is zeros."""
        count = inputs[LENGTH]  # [B]
        moved = {held: _moved(inputs[held], inputs[self.input_names[name]]) for name, held in self._past.items()}
        moved[ACTION] = _moved(inputs[ACTION], torch.zeros_like(inputs[ACTION][:, 0]))
        scaler, reward = self._scaler("rewards"), inputs[REWARD]
        reward = reward if scaler is None else scaler(reward)
        target = inputs[TARGET_RETURN] * self.return_slope + self.return_offset
        moved[RETURN_TO_GO] = _moved(inputs[RETURN_TO_GO], torch.where(count == 0, target, inputs[RETURN_TO_GO][:, -1] - reward))
        moved[LENGTH] = count + 1
        return moved

    def _scores(self, inputs: dict[str, Tensor], moved: dict[str, Tensor]) -> Tensor:
        length = self.context_size
        timesteps = moved[LENGTH].unsqueeze(1) + torch.arange(
            1 - length, 1, device=moved[LENGTH].device
        )  # [B, L]; below 1 before the episode
        action = moved[ACTION]
        scaler = None if self.space.discrete else self.scalers().action
        window = ActingWindow(
            observation=view_observation(
                {name: moved[held] for name, held in self._past.items()}, self.scalers(), torch.float32, action.device, lead=2
            ),
            action=action if scaler is None else scaler(action),
            returns_to_go=moved[RETURN_TO_GO],
            timesteps=timesteps.clamp(min=0),
            mask=(timesteps > 0).to(torch.float32),
        )
        return self._algorithm.act(self.network_parameters(), self._config, self._nets, window)


def _moved(window: Tensor, newest: Tensor) -> Tensor:
    """Shift ``window [B, L, ...]`` by one step and append ``newest [B, ...]``."""
    return torch.cat([window[:, 1:], newest.unsqueeze(1)], dim=1)


def _sums(store: EpisodeStore, episodes: np.ndarray | Sequence[int], rewards: np.ndarray) -> np.ndarray:
    """Return the sum of ``rewards`` (one per row) over each episode's steps."""
    table = store.episode_table
    spans = zip(table["first_row"][episodes], table["steps"][episodes], strict=True)
    return np.array([np.sum(rewards[first : first + steps], dtype=np.float64) for first, steps in spans])
