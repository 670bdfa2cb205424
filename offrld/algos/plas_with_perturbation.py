"""PLASWithPerturbation: PLAS with a small learned correction of the decoded action, as the data's actions may not be the best.

    a = clip(b + action_flexibility tanh(xi(s, b)), -1, 1),    b = g(s, 2 pi(s))

xi has its own target network; one optimizer updates it together with the policy. All else is PLAS (see `plas`). Metrics: `vae_loss`,
`critic_loss`, `actor_loss`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from offrld.engine import Algorithm, Space, setting
from offrld.losses import plas, td3
from offrld.nets import ResidualPolicy


@dataclass(frozen=True)
class Config(plas.PLASConfig):
    action_flexibility: float = setting(0.05, "limit of the perturbation", unit=td3.RANGE, low=0.0)


def networks(config: Config, space: Space) -> plas.Nets:
    scale = config.action_flexibility
    perturbation = ResidualPolicy("perturbation", space.view, space.action_size, config.actor_encoder, scale=scale)
    return dataclasses.replace(plas.networks(config, space), perturbation=perturbation)


ALGORITHM = Algorithm(
    name="plas_with_perturbation",
    summary="PLAS with a small correction of the decoded action",
    paper="Zhou, Bajracharya & Held 2020, PLAS: Latent Action Space for Offline Reinforcement Learning (arXiv:2011.07213)",
    actions="continuous",
    config=Config(),
    networks=networks,
    noise=plas.noise,
    schedule=lambda config: plas.schedule(config, ("actor", "perturbation")),
    act=plas.act,
    value=td3.value,
    targets=("actor", "perturbation", "critic"),
    presets={"paper": {}, "d3rlpy": {}},
)
