"""COMBO: CQL on a mixture of real and imagined transitions: it lowers values at imagined states and raises them at real ones.

    C   = sum_i (mean over imagined s of logsumexp_k cat_i(s) - mean over real (s, a) of Q_i(s, a))     cat_i as in CQL (see `losses.cql`)
    L_Q = sum_i mean (Q_i(s, a) - y)^2 + conservative_weight C       the mean is over the whole mixture
    y   = r + gamma^n (1 - d) min_i Qt_i(s', tanh(mu(s')))        (soft_q_backup: SAC's)

The dynamics are trained first or come from another job (`dynamics=JOB`). Rollouts have no penalty. The order of updates is MOPO's (see
`mopo`). (d3rlpy's implementation ignores conservative_weight.) Vector observations. Metrics: `dynamics_loss`, `dynamics_error`,
`critic_loss`, `conservative_loss`, `actor_loss`, `temp_loss`, `temp`, `entropy`, `q_mean`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from offrld.engine import Algorithm, Batch, LossResult, Noise, Space, Stage, State, Step, setting
from offrld.losses import bellman, cql, model_based, sac
from offrld.nets import Params


@dataclass(frozen=True)
class Config(model_based.ModelBasedConfig):
    actor_learning_rate: float = setting(1e-4, "learning rate of the policy", low=0.0, exclusive_low=True)
    temp_learning_rate: float = setting(1e-4, "learning rate of the temperature; 0 keeps it fixed", low=0.0)
    conservative_weight: float = setting(1.0, "weight of the penalty on values", low=0.0)
    n_action_samples: int = setting(10, "actions of each kind in the penalty", unit="actions", low=1, high=1000)
    soft_q_backup: bool = setting(False, "subtract the entropy term in the target, as SAC does")


def noise(config: Config, space: Space) -> dict[str, Noise]:
    imagined = config.batch_size - model_based.real(config)
    shape = (config.n_action_samples, imagined, space.action_size)
    penalty = {"policy": Noise(shape), "next_policy": Noise(shape), "random": Noise(shape, "uniform")}
    return {**model_based.noise(config, space), **penalty}


def critic_loss(params: Params, config: Config, nets: model_based.Nets, state: State, batch: Batch) -> LossResult:
    batch, n_real = model_based.mixed(config, state, batch), model_based.real(config)
    if config.soft_q_backup:
        target = sac.soft_target(nets, state, batch)
    else:
        with torch.no_grad():
            action = nets.actor(state.params, batch.next_observation)
            target = bellman(batch, nets.critic.target(state.target, batch.next_observation, action))  # [B, M]
    values = nets.critic.values(params, batch.observation, batch.action)
    td_loss = values.error(target, batch.weight)
    observation, following = cast(Tensor, batch.observation), cast(Tensor, batch.next_observation)  # [B, D]: vectors only
    imagined = dataclasses.replace(batch, observation=observation[n_real:], next_observation=following[n_real:], weight=None)
    zero = td_loss.new_zeros(())
    pressed = cql.penalty(params, nets, state, imagined).mean(1) if n_real < config.batch_size else zero  # [N]
    held = batch.weighted(values.mean, -1)[:, :n_real].mean(1) if n_real else zero
    conservative = config.conservative_weight * (pressed - held).sum()
    return td_loss + conservative, {"critic_loss": td_loss, "conservative_loss": conservative}


def stages(config: Config) -> tuple[Stage, ...]:
    return model_based.stages(config, critic_loss)


def schedule(config: Config) -> tuple[Step, ...]:
    return stages(config)[-1].schedule


ALGORITHM = Algorithm(
    name="combo",
    summary="CQL on imagined transitions: conservative outside the data",
    paper="Yu et al. 2021, COMBO: Conservative Offline Model-Based Policy Optimization (arXiv:2102.08363)",
    actions="continuous",
    config=Config(),
    networks=model_based.networks,
    noise=noise,
    carry=model_based.carry,
    schedule=schedule,
    stages=stages,
    between=lambda learner, k: model_based.between(learner, k, 0.0),
    next_between=model_based.next_between,
    inputs={"dynamics": model_based.DYNAMICS},
    act=sac.act,
    sample=sac.sample,
    value=sac.value,
    targets=("critic",),
    presets={"paper": {}, "d3rlpy": {}},
)
