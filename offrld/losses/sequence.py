"""Sequence models: the settings that the decision transformers and TACR share, and means over the real steps of windows."""

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
    context_size: int = setting(20, "steps in the policy's context window", unit="steps", low=1, high=10_000)
    max_timestep: int = setting(
        1000, "largest time step with its own embedding; later steps share it", unit="steps", low=1, high=10_000_000
    )
    return_conditioned: bool = setting(True, "condition the policy on a target return; if false, imitate the data")
    reward_scaler: RewardScaler = RewardScaler()
    transformer: Transformer = Transformer()


def model(name: str, config: SequenceConfig, space: Space, encoder: Encoder, embedding_activation: str | None = None) -> SequenceModel:
    """Build the transformer that a config describes."""
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
    """Return the mean of ``value [B, L]`` over the real steps; padding enters neither the sum nor the count."""
    return (value * mask).sum() / mask.sum()


def shifted(value: Tensor) -> Tensor:
    """Return ``value [B, L, ...]`` moved one step back: each step holds the next step's value, the last one zeros."""
    return torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)


def act(network: str) -> Any:
    """Return an algorithm's ``act``: it computes the greedy action, or the scores, at the last step of a window."""
    return lambda params, config, nets, window: getattr(nets, network).last(params, window)
