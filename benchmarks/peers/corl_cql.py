"""CQL as a single-file implementation would have it: ten actions of each kind, each in its own row (see `corl_common`)."""

from __future__ import annotations

import math

import torch
from corl_common import ACTION, TwinQ, measure
from corl_sac import Policy, make

SAMPLES, WEIGHT = 10, 5.0


def penalty(policy: Policy, critic: TwinQ, batch: list[torch.Tensor], q: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    observation, _, _, following, _ = batch
    rows = observation.unsqueeze(1).repeat(1, SAMPLES, 1)  # [B, K, D]
    uniform = torch.empty(len(observation), SAMPLES, ACTION).uniform_(-1, 1)
    now, now_density = policy(observation, SAMPLES)
    after, after_density = policy(following, SAMPLES)
    candidates = (
        (uniform, torch.tensor(math.log(0.5) * ACTION)),
        (after.detach(), after_density.detach()),
        (now.detach(), now_density.detach()),
    )
    values = [critic(rows, actions) for actions, _ in candidates]
    total = torch.zeros(())
    for member, mine in enumerate(q):
        each = torch.cat([value[member] - density for value, (_, density) in zip(values, candidates, strict=True)], dim=1)
        total = total + WEIGHT * (torch.logsumexp(each, dim=1).mean() - mine.mean())
    return total


if __name__ == "__main__":
    measure(lambda: make(penalty))
