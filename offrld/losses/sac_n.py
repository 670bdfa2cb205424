"""Large ensembles against overestimation: the settings, networks and losses that SAC-N and EDAC share, as in CORL.

    L_alpha = -mean (log alpha (log pi(a^ | s) - A))        the gradient is that of log alpha (in `sac`: of alpha)
    L_pi    = mean (alpha log pi(a^ | s) - min_i Q_i(s, a^))
    L_Q     = sum_i mean (Q_i(s, a) - y)^2,    y = r + gamma^n (1 - d) (min_i Qt_i(s', a~) - alpha log pi(a~ | s'))

The updates follow this order; each uses a fresh sample of the policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offrld.engine import Batch, Loss, LossResult, Noise, Space, State, Step, setting
from offrld.losses import sac
from offrld.nets import Critics, Encoder, Params, PositiveScalar, SquashedNormalPolicy

LOG_STD_RANGE = (-5.0, 2.0)
BIAS, ACTOR_HEAD, CRITIC_HEAD = 0.1, 1e-3, 3e-3  # EDAC's initialisation: trunk biases, and uniform limits of the heads


@dataclass(frozen=True)
class SACNConfig(sac.SACConfig):
    """Settings of SAC-N and EDAC; the defaults are the papers'."""

    n_critics: int = setting(10, "number of Q functions in the ensemble", low=2, high=1000)
    actor_encoder: Encoder = Encoder(units=(256, 256, 256))
    critic_encoder: Encoder = Encoder(units=(256, 256, 256))


class SmallHeadPolicy(SquashedNormalPolicy):
    """A policy with EDAC's initialisation."""

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return _small_heads(super().init(generator, dtype), ACTOR_HEAD, generator)


class SmallHeadCritics(Critics):
    """Q functions with EDAC's initialisation."""

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return _small_heads(super().init(generator, dtype), CRITIC_HEAD, generator)


def _small_heads(params: Params, limit: float, generator: torch.Generator) -> Params:
    """Set the trunk's biases to `BIAS` and draw the head uniformly from [-limit, limit]."""
    for name, value in params.items():
        if ".head." in name:
            drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64) * (2 * limit) - limit
            params[name] = drawn.to(value.dtype)
        elif name.endswith(".bias") and "norm" not in name:
            params[name] = torch.full_like(value, BIAS)
    return params


def networks(config: SACNConfig, space: Space) -> sac.Nets:
    """Build SAC's networks with EDAC's initialisation."""
    view, size = space.view, space.action_size
    return sac.Nets(
        actor=SmallHeadPolicy("actor", view, size, config.actor_encoder, log_std_range=LOG_STD_RANGE),
        critic=SmallHeadCritics("critic", config.n_critics, view, size, config.critic_encoder, config.q_function),
        temp=PositiveScalar("temp", config.initial_temperature),
    )


def noise(config: SACNConfig, space: Space) -> dict[str, Noise]:
    """Declare SAC's noise and that of the temperature's own sample."""
    return {**sac.noise(config, space), "temp": Noise((config.batch_size, space.action_size))}


def temp_loss(params: Params, config: SACNConfig, nets: sac.Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        _, log_prob = nets.actor.sample(state.params, batch.observation, batch.noise["temp"])
        excess = batch.mean(log_prob - batch.action.shape[-1])
    value = -nets.temp.log(params) * excess
    return value, {"temp_loss": value, "temp": nets.temp(params)}


def actor_loss(params: Params, config: SACNConfig, nets: sac.Nets, state: State, batch: Batch) -> LossResult:
    action, log_prob = nets.actor.sample(params, batch.observation, batch.noise["actor"])
    members = nets.critic(state.params, batch.observation, action)  # [N, B]
    q = members.amin(0)
    value = batch.mean(nets.temp(state.params) * log_prob - q)
    spread = members.std(0, unbiased=False).mean()
    return value, {"actor_loss": value, "q_mean": q.mean(), "q_std": spread, "entropy": -log_prob.mean()}


def schedule(config: SACNConfig, critic_loss: Loss = sac.critic_loss) -> tuple[Step, ...]:
    """Update the temperature, the policy, the Q functions and the target, in this order."""
    temp = Step("temp", temp_loss, ("temp",), config.temp_optimizer, config.temp_learning_rate)
    return (
        *((temp,) if config.temp_learning_rate > 0 else ()),
        Step("actor", actor_loss, ("actor",), config.actor_optimizer, config.actor_learning_rate),
        Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate, polyak={"critic": config.tau}),
    )
