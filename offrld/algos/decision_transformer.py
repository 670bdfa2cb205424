"""Decision Transformer: a transformer that predicts each step's action from the steps before it and the return-to-go.

    tokens (R_1, s_1, a_1, ..., R_L, s_L),  R_t = r_t + r_(t+1) + ... to the episode's end
    L = mean over the real steps of |a^_t - a_t|^2

Acting starts from a target return, subtracts each reward from it, and predicts from the last L steps. Metric: `loss`.

Differences from published code: d3rlpy divides the loss by the number of all positions, padding included. Here the divisor is the number of
real steps, so that the effective step size does not depend on the share of padding. Returns are divided by the range of the data's returns
(reward_scaler return), which suits any dataset; the paper's factor of 0.001 (preset `paper`) was chosen for locomotion.
"""

from __future__ import annotations

from dataclasses import dataclass

from offrld.engine import ActionConfig, Algorithm, LossResult, ObservationScaler, Optimizer, RewardScaler, State, Step, Windows, setting
from offrld.losses import sequence
from offrld.nets import Encoder, Params, SequenceModel


@dataclass(frozen=True)
class Config(ActionConfig, sequence.SequenceConfig):
    observation_scaler: ObservationScaler = ObservationScaler(type="standard")
    reward_scaler: RewardScaler = RewardScaler(type="return")
    learning_rate: float = setting(1e-4, "learning rate", low=0.0, exclusive_low=True)
    encoder: Encoder = Encoder(units=(128,), last_activation=False)
    optimizer: Optimizer = Optimizer(type="adamw", weight_decay=1e-4, clip_grad_norm=0.25, schedule="warmup", warmup_steps=10_000)


@dataclass(frozen=True)
class Nets:
    actor: SequenceModel


def loss(params: Params, config: Config, nets: Nets, state: State, batch: Windows) -> LossResult:
    action = nets.actor(params, batch)  # [B, L, A]
    value = sequence.mean_of_steps(((action - batch.action) ** 2).sum(-1), batch.mask)
    return value, {"loss": value}


ALGORITHM = Algorithm(
    name="decision_transformer",
    summary="Decision Transformer: supervised learning of actions given the return-to-go",
    paper="Chen et al. 2021, Decision Transformer: Reinforcement Learning via Sequence Modeling (arXiv:2106.01345)",
    actions="continuous",
    config=Config(),
    networks=lambda config, space: Nets(sequence.model("actor", config, space, config.encoder)),
    schedule=lambda config: (Step("actor", loss, ("actor",), config.optimizer, config.learning_rate),),
    act=sequence.act("actor"),
    batch_kind="windows",
    presets={
        "paper": {"reward_scaler.type": "multiply", "reward_scaler.multiplier": 0.001},
        "d3rlpy": {
            "observation_scaler": "none",
            "reward_scaler": "none",
            "encoder.units": [256, 256],
            "encoder.last_activation": True,
            "optimizer.type": "adam",
            "optimizer.weight_decay": 0.0,
            "optimizer.clip_grad_norm": None,
            "optimizer.schedule": "none",
        },
    },
)
