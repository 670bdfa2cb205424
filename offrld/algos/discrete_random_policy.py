"""DiscreteRandomPolicy: uniformly random actions that ignore the observation. Nothing is learned.

A policy file draws no random numbers: its action is a hash of the observation, so the same observation gives the same action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offrld.engine import Algorithm, setting
from offrld.engine import Config as BaseConfig
from offrld.losses import random_policy
from offrld.nets import Params


@dataclass(frozen=True)
class Config(BaseConfig):
    batch_size: int = setting(1, "transitions per update; nothing is learned from them", unit="transitions", low=1, high=1_000_000)


def act(params: Params, config: Config, nets: random_policy.Nets, observation: Any) -> Tensor:
    return nets.policy(params, observation)  # the argmax of n independent, identically distributed numbers is uniform


ALGORITHM = Algorithm(
    name="discrete_random_policy",
    summary="random discrete actions: a baseline, and a way to collect data",
    paper="none: the usual baseline",
    actions="discrete",
    config=Config(),
    networks=random_policy.networks,
    schedule=lambda config: (),
    act=act,
    presets={"paper": {}, "d3rlpy": {}},
)
