"""Sequence models: the settings that decision transformers and their actor-critic share, and means over the real steps of windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine import Config, RewardScaler, Space, setting
from offrld.nets import Encoder, SequenceModel, Transformer


@dataclass(frozen=True)
class SequenceConfig(Config):
    """Settings of every algorithm whose policy is a transformer over the last steps."""

    batch_size: int = setting(64, "windows per update", unit="windows", low=1, high=1_000_000)
    context_size: int = setting(20, "steps that the policy sees at once", unit="steps", low=1, high=10_000)
    max_timestep: int = setting(
        1000, "largest time step with an embedding of its own; later steps share it", unit="steps", low=1, high=10_000_000
    )
    return_conditioned: bool = setting(True, "condition the policy on a target return; false: imitate the data")
    reward_scaler: RewardScaler = RewardScaler()
    transformer: Transformer = Transformer()


def model(name: str, config: SequenceConfig, space: Space, encoder: Encoder, embedding_activation: str | None = None) -> SequenceModel:
    """The transformer of a config."""
    return SequenceModel(
        name,
        space.view,
        space.action_size,
        discrete=space.discrete,
        context_size=config.context_size,
        max_timestep=config.max_timestep,
        encoder=encoder,
        transformer=config.transformer,
        embedding_activation=embedding_activation,
        returns=config.return_conditioned,
    )


def mean_of_steps(value: Tensor, mask: Tensor) -> Tensor:
    """The mean of ``value [B, L]`` over the real steps; padding counts neither in the sum nor in the number."""
    return (value * mask).sum() / mask.sum()


def shifted(value: Tensor) -> Tensor:
    """``value [B, L, ...]`` of the next step at each step, zeros at the last."""
    return torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)


def act(network: str) -> Any:
    """An algorithm's ``act``: the greedy action, or the scores, at the last step of a window."""
    return lambda params, config, nets, window: getattr(nets, network).last(params, window)
