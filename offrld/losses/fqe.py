"""Fitted Q evaluation: the settings and steps that FQE and DiscreteFQE share.

    y = r + gamma^n (1 - d) min_i Qt_i(s', a'),    a' the evaluated policy's greedy action at s'

The policy is fixed, so its action at every row of the store is computed once, through its own scalers and in the environment's units, and
sampled as the batch's next action; then this run's action scaler applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offrld.engine import Optimizer, Step, ValueConfig, setting
from offrld.nets import Encoder, Params, QFunction


@dataclass(frozen=True)
class FQEConfig(ValueConfig):
    """Settings; the defaults are d3rlpy's."""

    batch_size: int = setting(100, "transitions per update", unit="transitions", low=1, high=1_000_000)
    policy: str | None = setting(None, "job whose policy is evaluated")
    learning_rate: float = setting(1e-4, "step size", low=0.0, exclusive_low=True)
    n_critics: int = setting(1, "size of the ensemble of Q functions", low=1, high=100)
    target_update_interval: int = setting(100, "updates between copies to the target", unit="updates", low=1, probe=2)
    encoder: Encoder = Encoder()
    optimizer: Optimizer = Optimizer()
    q_function: QFunction = QFunction()


def schedule(config: FQEConfig, loss: Any) -> tuple[Step, ...]:
    """The Q functions at every update, then a copy to the target every ``target_update_interval``."""
    return (
        Step("q", loss, ("q",), config.optimizer, config.learning_rate),
        Step("target", every=config.target_update_interval, polyak={"q": 1.0}),
    )


def act(params: Params, config: Any, nets: Any, observation: Any) -> Tensor:
    """Not here: the evaluated policy acts."""
    raise TypeError("an evaluation does not act; the policy that it evaluates does")
