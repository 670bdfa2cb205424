"""Fitted Q evaluation: the settings and steps that FQE and DiscreteFQE share.

    y = r + gamma^n (1 - d) min_i Qt_i(s', a'),    a' the evaluated policy's greedy action at s'

The policy is fixed, so its action at every row of the store is computed only once, through its own scalers and in the environment's units.
The sampler reads these as the batch's next actions; this run's action scaler then applies.
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
    policy: str | None = setting(None, "job whose policy to evaluate")
    learning_rate: float = setting(1e-4, "learning rate", low=0.0, exclusive_low=True)
    n_critics: int = setting(1, "number of Q functions in the ensemble", low=1, high=100)
    target_update_interval: int = setting(100, "updates between copies to the target network", unit="updates", low=1, probe=2)
    encoder: Encoder = Encoder()
    optimizer: Optimizer = Optimizer()
    q_function: QFunction = QFunction()


def schedule(config: FQEConfig, loss: Any) -> tuple[Step, ...]:
    """Update the Q functions at every update; copy them to the target network every ``target_update_interval``."""
    return (
        Step("q", loss, ("q",), config.optimizer, config.learning_rate),
        Step("target", every=config.target_update_interval, polyak={"q": 1.0}),
    )


def act(params: Params, config: Any, nets: Any, observation: Any) -> Tensor:
    """Raise `TypeError`: only the evaluated policy acts."""
    raise TypeError("a fitted Q evaluation does not act; use the policy that it evaluates")
