"""TD3: DDPG with two critics, smoothed target actions and a delayed policy.

    y    = r + gamma^n (1 - d) min_i Qt_i(s', clip(pit(s') + eps, -1, 1)),    eps = clip(sigma N(0, 1), -c, c)
    L_Q  = sum_i mean (Q_i(s, a) - y)^2                  (quantile Huber for the distributional Q functions)
    L_pi = -mean Q_1(s, pi(s))

The policy and both targets move every `update_actor_interval` updates. Metrics: `critic_loss`, `actor_loss`.
"""

from __future__ import annotations

from offrld.engine import Algorithm, Batch, LossResult, State
from offrld.losses import td3
from offrld.nets import Params


def actor_loss(params: Params, config: td3.TD3Config, nets: td3.Nets, state: State, batch: Batch) -> LossResult:
    _, q = td3.policy_values(params, nets, state, batch)
    value = -batch.mean(q)
    return value, {"actor_loss": value}


ALGORITHM = Algorithm(
    name="td3",
    summary="twin delayed DDPG: for online data, or offline data with much exploration",
    paper="Fujimoto, van Hoof & Meger 2018, Addressing Function Approximation Error in Actor-Critic Methods (arXiv:1802.09477)",
    actions="continuous",
    config=td3.TD3Config(),
    networks=td3.networks,
    noise=td3.noise,
    schedule=lambda config: td3.schedule(config, actor_loss),
    act=td3.act,
    value=td3.value,
    targets=("actor", "critic"),
    presets={"paper": {}, "d3rlpy": {}},
)
