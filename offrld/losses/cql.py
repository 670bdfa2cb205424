"""Conservative Q-learning: CQL's settings, and the penalty on the values of unseen actions that CQL, CalQL and COMBO share.

    cat_i = [Q_i(s, a_k) - log pi(a_k | s), a_k ~ pi(s);   Q_i(s, a_k) - log pi(a_k | s'), a_k ~ pi(s');   Q_i(s, u_k) - A log 0.5]
    C_i   = mean (logsumexp_k cat_i - Q_i(s, a)),    K actions of each kind, u_k uniform on [-1, 1]^A

Actions and their densities carry no gradient. One evaluation computes the values of all 3 K actions; it computes the observation's part
of the first layer only once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrld.engine import Batch, Loss, LossResult, Noise, Optimizer, Space, State, Step, setting
from offrld.losses import sac
from offrld.losses.td import bellman
from offrld.nets import Params, PositiveScalar, remember

LARGEST_ALPHA = 1e6  # the dual variable is clipped here


@dataclass(frozen=True)
class CQLConfig(sac.SACConfig):
    """Settings of CQL and CalQL; the defaults are d3rlpy's."""

    actor_learning_rate: float = setting(1e-4, "learning rate of the policy", low=0.0, exclusive_low=True)
    temp_learning_rate: float = setting(1e-4, "learning rate of the temperature; 0 keeps it fixed", low=0.0)
    alpha_learning_rate: float = setting(1e-4, "learning rate of the dual variable; 0 keeps it fixed", low=0.0)
    initial_alpha: float = setting(1.0, "initial value of the dual variable, the weight of the penalty", low=0.0, exclusive_low=True)
    alpha_threshold: float = setting(10.0, "penalty at which the dual variable stays constant")
    conservative_weight: float = setting(5.0, "factor on the penalty and on its threshold", low=0.0)
    n_action_samples: int = setting(10, "actions of each kind in the penalty", unit="actions", low=1, high=1000)
    soft_q_backup: bool = setting(False, "subtract the entropy term in the target, as SAC does")
    max_q_backup: bool = setting(False, "use the best of n_action_samples next actions in the target")
    alpha_optimizer: Optimizer = Optimizer()

    def __post_init__(self) -> None:
        if self.soft_q_backup and self.max_q_backup:
            raise InvalidInput("soft_q_backup and max_q_backup are mutually exclusive", hint="set one of them to false")


@dataclass(frozen=True)
class Nets(sac.Nets):
    """The networks of CQL and CalQL."""

    alpha: PositiveScalar


def networks(config: CQLConfig, space: Space) -> Nets:
    """Build SAC's networks and the dual variable."""
    return Nets(**vars(sac.networks(config, space)), alpha=PositiveScalar("alpha", config.initial_alpha))


def noise(config: CQLConfig, space: Space) -> dict[str, Noise]:
    """Declare SAC's noise and that of the penalty's actions."""
    shape = (config.n_action_samples, config.batch_size, space.action_size)
    drawn = {**sac.noise(config, space), "policy": Noise(shape), "next_policy": Noise(shape), "random": Noise(shape, "uniform")}
    if not config.soft_q_backup:
        del drawn["next"]
    return drawn | ({"backup": Noise(shape)} if config.max_q_backup else {})


def carry(config: CQLConfig, space: Space) -> dict[str, tuple[int, ...]]:
    """Declare the penalty of the last Q update, with which `alpha_loss` moves the dual variable."""
    return {"conservative": ()}


def penalty(params: Params, nets: sac.Nets, state: State, batch: Batch, *, floor: Tensor | None = None) -> Tensor:
    """Return ``logsumexp_k cat_i`` at each observation, ``[N, B]``.

    Args:
        floor: lower bound ``[B]`` on the values of the policy's actions, applied before their densities are subtracted (CalQL).
    """
    with torch.no_grad():
        now, now_density = nets.actor.sample(state.params, batch.observation, batch.noise["policy"])  # [K, B, A], [K, B]
        after, after_density = nets.actor.sample(state.params, batch.next_observation, batch.noise["next_policy"])
        uniform = 2 * batch.noise["random"] - 1
        actions = torch.cat([now, after, uniform])  # [3K, B, A]
        density = torch.cat([now_density, after_density, torch.full_like(now_density, uniform.shape[-1] * math.log(0.5))])
    q = nets.critic(params, batch.observation, actions)  # [N, 3K, B]
    if floor is not None:
        policies = 2 * len(now)
        q = torch.cat([torch.maximum(q[:, :policies], floor), q[:, policies:]], dim=1)
    return torch.logsumexp(q - density, dim=1)


def target(config: CQLConfig, nets: sac.Nets, state: State, batch: Batch) -> Tensor:
    """Return the Bellman target ``[B, M]`` that the settings select."""
    if config.soft_q_backup:
        return sac.soft_target(nets, state, batch)
    with torch.no_grad():
        if config.max_q_backup:
            actions, _ = nets.actor.sample(state.params, batch.next_observation, batch.noise["backup"])  # [K, B, A]
            value, _ = nets.critic.values(state.target, batch.next_observation, actions).best(lam=1.0)  # min over members, max over actions
        else:
            value = nets.critic.target(state.target, batch.next_observation, nets.actor(state.params, batch.next_observation))
        return bellman(batch, value)


def critic_loss(params: Params, config: CQLConfig, nets: Nets, state: State, batch: Batch, *, floor: Tensor | None = None) -> LossResult:
    """Return ``L_Q + clip(alpha, 0, 1e6) sum_i w (C_i - tau)``; keep the penalty for `alpha_loss`."""
    values = nets.critic.values(params, batch.observation, batch.action)
    td_loss = values.error(target(config, nets, state, batch), batch.weight)
    pressed = batch.weighted(penalty(params, nets, state, batch, floor=floor), -1).mean(1)
    gap = pressed - batch.weighted(values.mean, -1).mean(1)  # [N]
    conservative = (config.conservative_weight * (gap - config.alpha_threshold)).sum()
    remember(params, conservative=conservative)
    alpha = nets.alpha(state.params).clamp(max=LARGEST_ALPHA)
    value = td_loss + alpha * conservative
    return value, {"critic_loss": td_loss, "conservative_loss": conservative, "alpha": alpha, "conservative_gap": gap.mean()}


def alpha_loss(params: Params, config: CQLConfig, nets: Nets, state: State, batch: Batch) -> LossResult:
    """Return ``-clip(alpha, 0, 1e6) mean_i w (C_i - tau)`` with the penalty of the Q functions' last update."""
    value = -nets.alpha(params).clamp(max=LARGEST_ALPHA) * state.carry["conservative"] / config.n_critics
    return value, {"alpha_loss": value}


def schedule(config: CQLConfig, critic_loss: Loss = critic_loss) -> tuple[Step, ...]:
    """Update the Q functions, the dual variable with their penalty, then temperature, policy and target as in SAC."""
    critic, *others = sac.schedule(config, critic_loss)
    if config.alpha_learning_rate == 0.0:
        return (critic, *others)
    return (critic, Step("alpha", alpha_loss, ("alpha",), config.alpha_optimizer, config.alpha_learning_rate), *others)
