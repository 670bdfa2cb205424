"""TD3+BC as a single-file implementation would have it: see `corl_common`."""

from __future__ import annotations

import torch
from corl_common import ACTION, HIDDEN, OBSERVATION, Q, Update, adam, descend, follow, frozen_copy, measure, mlp
from torch import nn
from torch.nn import functional as F


def make() -> Update:
    actor = mlp(OBSERVATION, HIDDEN, HIDDEN, ACTION, last=nn.Tanh())
    critics = [Q(), Q()]
    actor_target, critic_targets = frozen_copy(actor), [frozen_copy(critic) for critic in critics]
    actor_adam, critic_adam = adam(actor), adam(*critics)
    count = 0

    def update(batch: list[torch.Tensor]) -> dict[str, float]:
        nonlocal count
        observation, action, reward, following, terminal = batch
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
            next_action = (actor_target(following) + noise).clamp(-1, 1)
            next_q = torch.min(*(critic(following, next_action) for critic in critic_targets))
            target = reward + (1 - terminal) * 0.99 * next_q
        log = {"critic_loss": descend(critic_adam, sum(F.mse_loss(critic(observation, action), target) for critic in critics))}
        count += 1
        if count % 2 == 0:
            chosen = actor(observation)
            q = critics[0](observation, chosen)
            log["actor_loss"] = descend(actor_adam, -2.5 / q.abs().mean().detach() * q.mean() + F.mse_loss(chosen, action))
            for target_net, online in zip([actor_target, *critic_targets], [actor, *critics], strict=True):
                follow(target_net, online, 0.005)
        return log

    return update


if __name__ == "__main__":
    measure(make)
