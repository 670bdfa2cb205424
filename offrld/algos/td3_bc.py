"""TD3+BC: TD3 with a behaviour-cloning term that keeps the policy near the data.

    y    = r + gamma^n (1 - d) min_i Qt_i(s', clip(pit(s') + eps, -1, 1)),    eps = clip(sigma N(0, 1), -c, c)
    L_Q  = sum_i mean (Q_i(s, a) - y)^2                  (quantile Huber for the distributional Q functions)
    L_pi = -lam mean Q_1(s, pi(s)) + mean (a - pi(s))^2,    lam = alpha / mean |Q_1(s, pi(s))|

The policy and both targets move every `update_actor_interval` updates. Metrics: `critic_loss`, `actor_loss`, `bc_loss`, `q_mean`.

By default observations are standardised, as in the paper and in d3rlpy's first version (preset `d3rlpy-v1`); d3rlpy's second version does
not standardise them (preset `d3rlpy`).
"""

from __future__ import annotations

from dataclasses import dataclass

from offrld.engine import Algorithm, Batch, LossResult, ObservationScaler, State, setting
from offrld.losses import td3
from offrld.nets import Params


@dataclass(frozen=True)
class Config(td3.TD3Config):
    observation_scaler: ObservationScaler = ObservationScaler(type="standard")
    alpha: float = setting(2.5, "weight of the Q term relative to the imitation term", low=0.0)


def actor_loss(params: Params, config: Config, nets: td3.Nets, state: State, batch: Batch) -> LossResult:
    action, q = td3.policy_values(params, nets, state, batch)
    weight = config.alpha / q.abs().mean().detach()
    imitation = batch.mean((batch.action - action) ** 2)
    value = imitation - weight * batch.mean(q)
    return value, {"actor_loss": value, "bc_loss": imitation, "q_mean": q.mean()}


ALGORITHM = Algorithm(
    name="td3_bc",
    summary="TD3 with a behaviour-cloning term: simple and strong on data of mixed quality",
    paper="Fujimoto & Gu 2021, A Minimalist Approach to Offline Reinforcement Learning (arXiv:2106.06860)",
    actions="continuous",
    config=Config(),
    networks=td3.networks,
    noise=td3.noise,
    schedule=lambda config: td3.schedule(config, actor_loss),
    act=td3.act,
    value=td3.value,
    targets=("actor", "critic"),
    presets={"paper": {}, "d3rlpy": {"observation_scaler": "none"}, "d3rlpy-v1": {"observation_scaler": "standard"}},
)
