"""EDAC: SAC-N with diversified members, so that fewer of them are pessimistic enough.

    L_Q += eta mean_B sum_{i != j} <g_i, g_j> / (N - 1),    g_i = dQ_i(s, a)/da normalised (divided by |g| + 1e-10)

All else is SAC-N (see `sac_n`). Metrics: `critic_loss`, `diversity_loss`, `actor_loss`, `temp_loss`, `temp`, `entropy`, `q_mean`,
`q_std` (over the members at the policy's actions).

d3rlpy does not implement EDAC; the settings are CORL's, and preset `d3rlpy` equals `paper`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offrld.engine import Algorithm, Batch, LossResult, State, setting
from offrld.losses import sac, sac_n
from offrld.nets import Params


@dataclass(frozen=True)
class Config(sac_n.SACNConfig):
    eta: float = setting(1.0, "weight of the diversity term on the members' action gradients", low=0.0)


def critic_loss(params: Params, config: Config, nets: sac.Nets, state: State, batch: Batch) -> LossResult:
    td_loss, metrics = sac.critic_loss(params, config, nets, state, batch)
    gradients = nets.critic.action_gradients(params, batch.observation, batch.action)  # [N, B, A]
    directions = gradients / (torch.linalg.vector_norm(gradients, dim=-1, keepdim=True) + 1e-10)
    # The sum over all pairs is the square of the sum; the terms with i = j are the sum of the squares.
    pairs = (directions.sum(0) ** 2).sum(-1) - (directions**2).sum((0, 2))  # [B]
    diversity = batch.mean(pairs) / (config.n_critics - 1)
    return td_loss + config.eta * diversity, {**metrics, "diversity_loss": diversity}


ALGORITHM = Algorithm(
    name="edac",
    summary="SAC-N with diversified members: as pessimistic with fewer of them",
    paper="An et al. 2021, Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble (arXiv:2110.01548)",
    actions="continuous",
    config=Config(),
    networks=sac_n.networks,
    noise=sac_n.noise,
    schedule=lambda config: sac_n.schedule(config, critic_loss),
    act=sac.act,
    sample=sac.sample,
    value=sac.value,
    targets=("critic",),
    presets={"paper": {}, "d3rlpy": {}},
)
