"""RandomPolicy: actions that ignore the observation; a baseline, and a way to collect data. Nothing is learned.

uniform: every dimension is uniform on [-1, 1]; normal: N(0, normal_std), clipped to [-1, 1]. Actions are then scaled to the environment's
units. A policy file draws no random numbers: its action is a hash of the observation with the same distribution, so the same observation
gives the same action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine import ActionConfig, Algorithm, setting
from offrld.engine import Config as BaseConfig
from offrld.losses import random_policy
from offrld.nets import Params


@dataclass(frozen=True)
class Config(ActionConfig, BaseConfig):
    batch_size: int = setting(1, "transitions per update; nothing is learned from them", unit="transitions", low=1, high=1_000_000)
    distribution: str = setting("uniform", "distribution of the actions", choices=("uniform", "normal"))
    normal_std: float = setting(1.0, "standard deviation of the normal distribution", low=0.0, only={"distribution": ("normal",)})


def act(params: Params, config: Config, nets: random_policy.Nets, observation: Any) -> Tensor:
    uniform = nets.policy(params, observation)  # [B, A] within (0, 1)
    if config.distribution == "uniform":
        return 2 * uniform - 1
    return (config.normal_std * torch.special.ndtri(uniform)).clamp(-1.0, 1.0)


def sample(params: Params, config: Config, nets: random_policy.Nets, observation: Any, noise: Tensor) -> Tensor:
    if config.distribution == "uniform":
        return 2 * torch.special.ndtr(noise) - 1
    return (config.normal_std * noise).clamp(-1.0, 1.0)


ALGORITHM = Algorithm(
    name="random_policy",
    summary="random continuous actions: a baseline, and a way to collect data",
    paper="none: the usual baseline",
    actions="continuous",
    config=Config(),
    networks=random_policy.networks,
    schedule=lambda config: (),
    act=act,
    sample=sample,
    presets={"paper": {}, "d3rlpy": {}},
)
