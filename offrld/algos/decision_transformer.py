"""Decision Transformer: a transformer that predicts the action of each step from the steps before and the return that is still to come.

    tokens (R_1, s_1, a_1, ..., R_L, s_L),  R_t = r_t + r_(t+1) + ... to the episode's end
    L = mean over the real steps of |a^_t - a_t|^2

Acting starts from a target return, subtracts each reward from it, and predicts from the last L steps. Metric: `loss`.

Differs from the published code: d3rlpy divides the loss by the number of all positions, padding included; here by the real steps, so that
the step size does not depend on how many windows start with an episode. Returns are divided by the range of the data's returns
(reward_scaler return), which suits every dataset; the paper's 0.001 (preset `paper`) was chosen for locomotion.
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
    learning_rate: float = setting(1e-4, "step size", low=0.0, exclusive_low=True)
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
    summary="Decision Transformer: supervised learning of actions given the return to come",
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
