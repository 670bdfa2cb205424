"""NFQ: Q-learning whose target is the network before the last update.

    y   = r + gamma^n (1 - d) min_i Qt_i(s', a*),    a* = argmax_a mean_i Qt_i(s', a)
    L_Q = sum_i mean Huber(Q_i(s, a) - y)                (quantile Huber for the distributional Q functions)

The target network is copied after every update. Metrics: `loss`, `q_mean`.
"""

from __future__ import annotations

from dataclasses import dataclass

from offrld.engine import Algorithm, Optimizer, Step, ValueConfig, setting
from offrld.losses import q_learning
from offrld.nets import Encoder, QFunction


@dataclass(frozen=True)
class Config(ValueConfig):
    batch_size: int = setting(32, "transitions per update", unit="transitions", low=1, high=1_000_000)
    learning_rate: float = setting(6.25e-5, "learning rate", low=0.0, exclusive_low=True)
    n_critics: int = setting(1, "number of Q functions in the ensemble", low=1, high=100)
    encoder: Encoder = Encoder()
    optimizer: Optimizer = Optimizer()
    q_function: QFunction = QFunction()


def schedule(config: Config) -> tuple[Step, ...]:
    return (Step("q", q_learning.dqn_loss, ("q",), config.optimizer, config.learning_rate, polyak={"q": 1.0}),)


ALGORITHM = Algorithm(
    name="nfq",
    summary="neural fitted Q iteration: Q-learning whose target is the network before the last update",
    paper="Riedmiller 2005, Neural Fitted Q Iteration",
    actions="discrete",
    config=Config(),
    networks=q_learning.networks,
    schedule=schedule,
    act=q_learning.scores,
    value=q_learning.value,
    targets=("q",),
    presets={"paper": {}, "d3rlpy": {}},
)
