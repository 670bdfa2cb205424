"""DiscreteBC: behaviour cloning of discrete actions by classification.

    L = mean(-log pi(a | s)) + beta mean(l(s)^2)

l are the normalised logits, that is, log probabilities (as in d3rlpy's second version). Metrics: `loss`, `imitation_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass

from offrld.engine import Algorithm, Batch, LossResult, Optimizer, Space, State, Step, setting
from offrld.engine import Config as BaseConfig
from offrld.losses import procgen, taken
from offrld.nets import CategoricalPolicy, Encoder, Params


@dataclass(frozen=True)
class Config(BaseConfig):
    batch_size: int = setting(100, "transitions per update", unit="transitions", low=1, high=1_000_000)
    learning_rate: float = setting(1e-3, "learning rate", low=0.0, exclusive_low=True)
    beta: float = setting(0.5, "weight of the penalty on the logits", low=0.0)
    encoder: Encoder = Encoder()
    optimizer: Optimizer = Optimizer()


@dataclass(frozen=True)
class Nets:
    policy: CategoricalPolicy


def networks(config: Config, space: Space) -> Nets:
    return Nets(policy=CategoricalPolicy("policy", space.view, space.action_size, config.encoder))


def loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    log_prob = nets.policy.log_prob(params, batch.observation)  # [B, n]
    imitation = -batch.mean(taken(log_prob, batch.action))
    value = imitation + config.beta * batch.mean(log_prob**2)
    return value, {"loss": value, "imitation_loss": imitation}


def schedule(config: Config) -> tuple[Step, ...]:
    return (Step("policy", loss, ("policy",), config.optimizer, config.learning_rate),)


ALGORITHM = Algorithm(
    name="discrete_bc",
    summary="behaviour cloning: imitates the data's discrete actions",
    paper="Pomerleau 1991, Efficient Training of Artificial Neural Networks for Autonomous Navigation",
    actions="discrete",
    config=Config(),
    networks=networks,
    schedule=schedule,
    act=lambda params, config, nets, observation: nets.policy(params, observation),
    presets={
        "paper": {"beta": 0.0},
        "d3rlpy": {},
        "procgen": {**procgen.images("encoder"), "batch_size": procgen.BATCH_SIZE, "learning_rate": procgen.LEARNING_RATE, "beta": 0.0},
    },
)
