"""Decision Transformer for discrete actions, as in the paper's Atari experiments.

    tokens (R_1, s_1, a_1, ..., R_L, s_L),  R_t = r_t + r_(t+1) + ... to the episode's end
    L = mean over the real steps of -log softmax(logits_t)[a_t]
    rate = learning_rate * (n / warmup_tokens  while n < warmup_tokens, then  max(0.1, (1 + cos(pi p)) / 2)),
           p = (n - warmup_tokens) / (final_tokens - warmup_tokens),  n = real steps trained on so far

Acting takes the action with the largest logit. Metrics: `loss`, `learning_rate`.

Differences from published code: the loss leaves out padding (d3rlpy averages over it), checkpoints store the step count, and the warm-up
applies to the first update too, which otherwise runs at the full rate. Returns are divided by the range of the data's returns
(reward_scaler return; not in preset `paper`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from offrld.engine import Algorithm, LossResult, Optimizer, RewardScaler, State, Step, Windows, setting
from offrld.losses import procgen, sequence
from offrld.nets import Encoder, Params, SequenceModel, Transformer, remember

LEAST = 0.1  # final learning rate as a fraction of the peak


@dataclass(frozen=True)
class Config(sequence.SequenceConfig):
    batch_size: int = setting(128, "windows per update", unit="windows", low=1, high=1_000_000)
    reward_scaler: RewardScaler = RewardScaler(type="return")
    learning_rate: float = setting(6e-4, "peak learning rate", low=0.0, exclusive_low=True)
    warmup_tokens: int = setting(10_240, "real steps until the peak learning rate", unit="steps", low=1)
    final_tokens: int = setting(
        30_000_000,
        "real steps until the final learning rate, a tenth of the peak",
        unit="steps",
        low=1,
        probe={"": 1_000, "warmup_tokens": 100},
    )
    embedding_activation: str = setting("tanh", "activation of the embeddings", choices=("tanh", "relu", "swish", "gelu", "none"))
    transformer: Transformer = Transformer(heads=8, layers=6, activation="gelu", position_encoding="global")
    encoder: Encoder = Encoder(units=(128,), feature_size=128, last_activation=False)
    optimizer: Optimizer = Optimizer(type="gpt_adamw", beta2=0.95, weight_decay=0.1, clip_grad_norm=1.0)


@dataclass(frozen=True)
class Nets:
    actor: SequenceModel


def rate(config: Config, carry: dict[str, Tensor]) -> Tensor:
    """Return the factor on the learning rate after ``carry["tokens"]`` real steps."""
    tokens = carry["tokens"]
    rising = tokens.clamp(min=1.0) / config.warmup_tokens
    progress = (tokens - config.warmup_tokens) / max(1, config.final_tokens - config.warmup_tokens)
    falling = (0.5 * (1.0 + torch.cos(math.pi * progress.clamp(0.0, 1.0)))).clamp(min=LEAST)
    return torch.where(tokens < config.warmup_tokens, rising, falling)


def loss(params: Params, config: Config, nets: Nets, state: State, batch: Windows) -> LossResult:
    logits = nets.actor(params, batch)  # [B, L, n]
    # Padding holds zeros, which are a valid action; the mask removes it below.
    error = F.cross_entropy(logits.flatten(0, 1), batch.action.flatten(), reduction="none").reshape(batch.mask.shape)  # [B, L]
    value = sequence.mean_of_steps(error, batch.mask)
    remember(params, tokens=state.carry["tokens"] + batch.mask.sum())
    return value, {"loss": value, "learning_rate": config.learning_rate * rate(config, state.carry)}


# The transformer agents of gen_dgrl, with the optimizer settings that gen_dgrl parses but does not apply.
PROCGEN = {**procgen.images(), "batch_size": 64, "context_size": 128, "reward_scaler": "none", "learning_rate": 1e-3}

ALGORITHM = Algorithm(
    name="discrete_decision_transformer",
    summary="Decision Transformer for discrete actions, as for Atari",
    paper="Chen et al. 2021, Decision Transformer: Reinforcement Learning via Sequence Modeling (arXiv:2106.01345)",
    actions="discrete",
    config=Config(),
    networks=lambda config, space: Nets(sequence.model("actor", config, space, config.encoder, config.embedding_activation)),
    schedule=lambda config: (
        Step("actor", loss, ("actor",), config.optimizer, config.learning_rate, rate=lambda carry: rate(config, carry)),
    ),
    act=sequence.act("actor"),
    batch_kind="windows",
    carry=lambda config, space: {"tokens": ()},
    presets={
        "paper": {"reward_scaler": "none"},
        "procgen": PROCGEN,
        "procgen-bct": {**PROCGEN, "return_conditioned": False},
        "d3rlpy": {
            "reward_scaler": "none",
            "encoder.units": [256, 256],
            "encoder.last_activation": True,
            "encoder.feature_size": None,
            "optimizer.type": "adam",
            "optimizer.beta2": 0.999,
            "optimizer.weight_decay": 0.0,
            "optimizer.clip_grad_norm": None,
        },
    },
)
