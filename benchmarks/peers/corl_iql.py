"""IQL as a single-file implementation would have it: see `corl_common`."""

from __future__ import annotations

import torch
from corl_common import ACTION, HIDDEN, OBSERVATION, TwinQ, Update, adam, descend, follow, frozen_copy, measure, mlp
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(OBSERVATION, HIDDEN, HIDDEN, ACTION, last=nn.Tanh())
        self.log_std = nn.Parameter(torch.zeros(ACTION))

    def forward(self, observation: torch.Tensor) -> Normal:
        return Normal(self.net(observation), self.log_std.clamp(-20, 2).exp())


def make() -> Update:
    policy, critic, value = Policy(), TwinQ(), mlp(OBSERVATION, HIDDEN, HIDDEN, 1)
    target_critic = frozen_copy(critic)
    policy_adam, critic_adam, value_adam = adam(policy), adam(critic), adam(value)

    def update(batch: list[torch.Tensor]) -> dict[str, float]:
        observation, action, reward, following, terminal = batch
        with torch.no_grad():
            next_value = value(following).squeeze(-1)
            target_q = torch.min(*target_critic(observation, action))
        advantage = target_q - value(observation).squeeze(-1)
        value_loss = (torch.abs(0.7 - (advantage < 0).float()) * advantage**2).mean()
        log = {"value_loss": descend(value_adam, value_loss)}
        target = reward + (1 - terminal) * 0.99 * next_value
        log["q_loss"] = descend(critic_adam, sum(F.mse_loss(q, target) for q in critic(observation, action)) / 2)
        follow(target_critic, critic, 0.005)
        weight = torch.exp(3.0 * advantage.detach()).clamp(max=100.0)
        imitation = -policy(observation).log_prob(action).sum(-1)
        log["actor_loss"] = descend(policy_adam, (weight * imitation).mean())
        return log

    return update


if __name__ == "__main__":
    measure(make)
