"""SAC as a single-file implementation would have it, and what CQL adds to it: see `corl_common` and `corl_cql`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from corl_common import ACTION, HIDDEN, OBSERVATION, TwinQ, Update, adam, descend, follow, frozen_copy, measure, mlp
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn import functional as F


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(OBSERVATION, HIDDEN, HIDDEN, 2 * ACTION)

    def forward(self, observation: torch.Tensor, repeat: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if repeat is not None:
            observation = observation.unsqueeze(1).repeat(1, repeat, 1)
        mean, log_std = self.net(observation).chunk(2, -1)
        normal = Normal(mean, log_std.clamp(-20, 2).exp())
        distribution = TransformedDistribution(normal, TanhTransform(cache_size=1), validate_args=False)
        action = distribution.rsample()
        return action, distribution.log_prob(action).sum(-1)


Penalty: TypeAlias = Callable[[Policy, TwinQ, list[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], torch.Tensor]


def make(penalty: Penalty | None = None) -> Update:
    """Make an update of SAC. A penalty is added to the critics' loss; the target then has no entropy."""
    policy, critic = Policy(), TwinQ()
    target_critic = frozen_copy(critic)
    log_alpha = torch.zeros((), requires_grad=True)
    policy_adam, critic_adam, alpha_adam = adam(policy), adam(critic), torch.optim.Adam([log_alpha], lr=3e-4)

    def update(batch: list[torch.Tensor]) -> dict[str, float]:
        observation, action, reward, following, terminal = batch
        chosen, log_prob = policy(observation)
        log = {"alpha_loss": descend(alpha_adam, -(log_alpha * (log_prob.detach() - ACTION)).mean())}
        alpha = log_alpha.exp().detach()
        log["actor_loss"] = descend(policy_adam, (alpha * log_prob - torch.min(*critic(observation, chosen))).mean())
        with torch.no_grad():
            next_action, next_log_prob = policy(following)
            next_q = torch.min(*target_critic(following, next_action))
            target = reward + (1 - terminal) * 0.99 * (next_q if penalty else next_q - alpha * next_log_prob)
        q = critic(observation, action)
        loss = sum(F.mse_loss(each, target) for each in q)
        log["critic_loss"] = descend(critic_adam, loss + penalty(policy, critic, batch, q) if penalty else loss)
        follow(target_critic, critic, 0.005)
        return log

    return update


if __name__ == "__main__":
    measure(make)
