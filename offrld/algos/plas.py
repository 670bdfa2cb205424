"""PLAS: a policy in the latent space of a model of the data's actions, which decodes only to actions like the data's.

    L_VAE = mean (g(s, z) - a)^2 + beta mean KL(N(mu, std) || N(0, 1)),    z ~ N(mu, std) = e(s, a)
    a     = g(s, 2 pi(s)),    pi(s) in [-1, 1]^2A
    y     = r + gamma^n (1 - d) (lam min_i Qt_i(s', a') + (1 - lam) max_i Qt_i(s', a')),    a' by the target policy
    L_Q   = sum_i mean (Q_i(s, a) - y)^2                 (quantile Huber for the distributional Q functions)
    L_pi  = -mean Q_1(s, g(s, 2 pi(s)))

The first `warmup_steps` updates train only the VAE; it is then frozen, and all else trains. Metrics: `vae_loss`, `critic_loss`,
`actor_loss`.
"""

from __future__ import annotations

from offrld.engine import Algorithm
from offrld.losses import plas, td3

ALGORITHM = Algorithm(
    name="plas",
    summary="policy in the latent space of a model of the data's actions",
    paper="Zhou, Bajracharya & Held 2020, PLAS: Latent Action Space for Offline Reinforcement Learning (arXiv:2011.07213)",
    actions="continuous",
    config=plas.PLASConfig(),
    networks=plas.networks,
    noise=plas.noise,
    schedule=plas.schedule,
    act=plas.act,
    value=td3.value,
    targets=("actor", "critic"),
    presets={"paper": {}, "d3rlpy": {}},
)
