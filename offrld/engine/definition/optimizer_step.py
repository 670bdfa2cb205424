"""Move parameters in place by one step of their optimizer.

Each rule equals the torch optimizer of the same name; `offrld.engine.definition.rules` has the rules without a fused kernel. The learning
rate is a pure function of the number of completed steps (`factor_at`), so it needs no state of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from offrld.engine.definition import rules
from offrld.engine.definition.optimizer import Optimizer, eps_of


def step(
    optimizer: Optimizer,
    learning_rate: float,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    parts: dict[str, list[Tensor]],
    count: Tensor,
    *,
    taken: int | Tensor,
    names: Sequence[str],
    factor: float | Tensor | None = None,
    seeds_axis: bool = False,
) -> None:
    """Move ``params`` in place by one step, with their ``parts`` and ``count``. Safe to capture in a CUDA graph.

    Args:
        learning_rate: the rate before the schedule applies.
        params, grads: lists of equal length, on one device and of one dtype; the gradients are not modified.
        parts: lists like ``params``, by the names of `parts_of`.
        count: number of completed steps, a 0-d float32 tensor on the parameters' device. All parameters share it: 36 small parameters take
            20 us this way, but 130 us with one counter each through `torch.optim`.
        taken: the same number for the schedule; a 0-d integer tensor if a captured graph must see it change.
        names: names of the parameters; one that ends in ``.weight`` belongs to a linear or convolution layer, or to a norm (`decays`).
        factor: factor on the learning rate: a number, a 0-d tensor, or ``[S]`` with ``seeds_axis`` (one per seed, which costs a copy).
        seeds_axis: the tensors are ``[S, ...]``, for S seeds; each seed's gradients are clipped separately.
    """
    if not params:
        return
    with torch.no_grad():
        # The fused CPU kernels assume that gradients have the parameters' memory layout; those of a batched product do not.
        moving = [grad if grad.is_contiguous() else grad.contiguous() for grad in grads]
        if optimizer.clip_grad_norm is not None:
            moving = clipped(moving, optimizer.clip_grad_norm, seeds_axis=seeds_axis)
        rate = learning_rate * factor_at(optimizer, taken)
        by_seed = factor if isinstance(factor, Tensor) and factor.dim() == 1 else None
        if factor is not None and by_seed is None:
            rate = rate * factor
        if isinstance(rate, Tensor):  # the fused CUDA kernels read a tensor as float32
            rate = rate.item() if rate.device.type == "cpu" else rate.to(torch.float32)
        before = [param.clone() for param in params] if by_seed is not None else []
        count.add_(1)
        _RULES[optimizer.type](Move(optimizer, rate, list(params), moving, parts, count, taken, tuple(names)))
        if by_seed is not None:  # every rule's move is linear in the rate
            for start, param in zip(before, params, strict=True):
                param.copy_(torch.lerp(start, param, _along(by_seed.to(param.dtype), param)))


def polyak(targets: list[Tensor], online: list[Tensor], rate: float) -> None:
    """Move targets in place: ``target += rate * (online - target)``; a rate of 1 copies exactly."""
    with torch.no_grad():
        if rate == 1.0:
            torch._foreach_copy_(targets, online)
        else:
            torch._foreach_lerp_(targets, online, rate)


# --- Schedules and gradients ---
def factor_at(optimizer: Optimizer, taken: int | Tensor) -> float | Tensor:
    """Return the schedule's factor on the learning rate after ``taken`` completed steps; a 0-d tensor for a 0-d tensor.

    With k = ``taken``: warmup: min((k + 1) / warmup_steps, 1). cosine (Loshchilov & Hutter 2017, without restarts): from 1 to min_factor
    in cosine_steps, then constant. step: step_factor for every full step_size. This equals torch's schedulers, stepped after each step.
    """
    k = taken.double() if isinstance(taken, Tensor) else taken
    if optimizer.schedule == "warmup":
        return _least((k + 1) / optimizer.warmup_steps, 1.0)
    if optimizer.schedule == "cosine":
        angle = _least(k / optimizer.cosine_steps, 1.0) * math.pi
        cosine = torch.cos(angle) if isinstance(angle, Tensor) else math.cos(angle)
        return optimizer.min_factor + (1 - optimizer.min_factor) * (1 + cosine) / 2
    if optimizer.schedule == "step":
        cuts = k // optimizer.step_size
        # Not float ** tensor: the power of a 0-d tensor stays on its device and in its dtype.
        return torch.full_like(cuts, optimizer.step_factor) ** cuts if isinstance(cuts, Tensor) else optimizer.step_factor**cuts
    return 1.0


def clipped(grads: list[Tensor], limit: float, *, seeds_axis: bool = False) -> list[Tensor]:
    """Return new gradients whose total norm is at most ``limit``, with ``seeds_axis`` for each seed. Does not branch on values."""
    if seeds_axis:
        norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads])  # [parameters, S]
        share = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)  # [S]
        return [grad * _along(share, grad) for grad in grads]
    total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    return list(torch._foreach_mul(grads, (limit / (total + 1e-6)).clamp(max=1.0)))


def decays(name: str) -> bool:
    """Return whether gpt_adamw decays a parameter: only the ``weight`` of a linear or convolution layer.

    It does not decay biases, norms (part of their name ends in ``norm``), embedding tables (``..._embedding``) or any other parameter.
    """
    *path, last = name.split(".")
    return last == "weight" and not any(piece.endswith(("norm", "_embedding")) for piece in path)


# --- Rules ---
Rate = float | Tensor


class Move(NamedTuple):
    """One step of an optimizer, which a rule performs in place. Lists have one entry per parameter."""

    spec: Optimizer
    rate: Rate  # the learning rate of this step
    params: list[Tensor]
    grads: list[Tensor]
    parts: dict[str, list[Tensor]]
    steps: Tensor  # completed steps, including this one; a 0-d float32 tensor
    taken: int | Tensor  # completed steps before this one, for the schedule
    names: tuple[str, ...]


Rule = Callable[[Move], None]


def _adam(move: Move) -> None:
    """Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019) with torch's fused kernels, the fastest on the CPU and on CUDA."""
    spec = move.spec
    eps = eps_of(spec)
    kernel: Callable[..., None] = torch._fused_adam_ if spec.type == "adam" else torch._fused_adamw_
    lists = (move.params, move.grads, move.parts["first"], move.parts["second"], move.parts.get("largest", []))
    for positions, decay in _groups(move.names, spec.weight_decay) if spec.type == "gpt_adamw" else ((None, spec.weight_decay),):
        group = lists if positions is None else tuple([tensors[i] for i in positions] if tensors else [] for tensors in lists)
        kernel(
            *group,
            [move.steps] * len(group[0]),
            lr=move.rate,
            beta1=spec.beta1,
            beta2=spec.beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=spec.amsgrad,
            maximize=False,
        )


@functools.lru_cache(maxsize=1024)
def _groups(names: tuple[str, ...], decay: float) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Return the positions of the parameters that decay, and of the others, each group with its decay."""
    groups = [tuple(i for i, name in enumerate(names) if decays(name) == decaying) for decaying in (True, False)]
    return tuple((positions, weight) for positions, weight in zip(groups, (decay, 0.0), strict=True) if positions)


def _sgd(move: Move) -> None:
    """Gradient descent with momentum; the momentum starts as the whole first gradient, regardless of dampening."""
    spec, params, grads, taken = move.spec, move.params, move.grads, move.taken
    momenta = move.parts.get("momentum", [])
    if momenta and spec.dampening > 0 and isinstance(taken, Tensor):
        # The fused kernel takes the dampening as a number, and a captured graph would keep the number of its first step.
        share = 1.0 - spec.dampening * (taken > 0).to(params[0].dtype)
        decayed = torch._foreach_add(grads, params, alpha=spec.weight_decay)
        torch._foreach_mul_(momenta, spec.momentum)
        torch._foreach_add_(momenta, torch._foreach_mul(decayed, share))
        _descend(params, momenta, move.rate)
        return
    torch._fused_sgd_(
        params,
        grads,
        momenta,
        weight_decay=spec.weight_decay,
        momentum=spec.momentum,
        lr=move.rate,
        dampening=spec.dampening if isinstance(taken, Tensor) or taken > 0 else 0.0,
        nesterov=spec.nesterov,
        maximize=False,
        is_first_step=False,
    )


def _rmsprop(move: Move) -> None:
    """RMSprop (Hinton 2012; centred: Graves 2013), for which torch has no fused kernel."""
    spec, params, grads, parts = move.spec, move.params, move.grads, move.parts
    second = parts["second"]
    if spec.weight_decay:
        grads = list(torch._foreach_add(grads, params, alpha=spec.weight_decay))
    torch._foreach_mul_(second, spec.alpha)
    torch._foreach_addcmul_(second, grads, grads, value=1 - spec.alpha)
    if spec.centered:
        torch._foreach_lerp_(parts["first"], grads, 1 - spec.alpha)
        divisor = torch._foreach_addcmul(second, parts["first"], parts["first"], value=-1)
        torch._foreach_clamp_min_(divisor, 0.0)  # rounding can make the variance of a constant gradient negative
        torch._foreach_sqrt_(divisor)
    else:
        divisor = torch._foreach_sqrt(second)
    torch._foreach_add_(divisor, eps_of(spec))
    if spec.momentum > 0:
        torch._foreach_mul_(parts["momentum"], spec.momentum)
        torch._foreach_addcdiv_(parts["momentum"], grads, divisor)
        _descend(params, parts["momentum"], move.rate)
    else:
        _descend(params, torch._foreach_div(grads, divisor), move.rate)


def _by_rule(move: Move) -> None:
    """The rules without a fused kernel."""
    spec, grads, taken = move.spec, move.grads, move.taken
    if spec.weight_decay:
        grads = list(torch._foreach_add(grads, move.params, alpha=spec.weight_decay))
    k = (taken.double() if isinstance(taken, Tensor) else taken) + 1
    _descend(move.params, rules.RULES[spec.type](spec, grads, move.parts, k), move.rate)


def _descend(params: list[Tensor], directions: list[Tensor] | tuple[Tensor, ...], rate: Rate) -> None:
    if isinstance(rate, Tensor):
        torch._foreach_sub_(params, torch._foreach_mul(directions, rate))
    else:
        torch._foreach_add_(params, directions, alpha=-rate)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``[S]`` to ``[S, 1, ...]`` with the number of dimensions of ``like``."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def _least(value: float | Tensor, limit: float) -> float | Tensor:
    return value.clamp(max=limit) if isinstance(value, Tensor) else min(value, limit)


_RULES: dict[str, Rule] = {
    "adam": _adam, "adamw": _adam, "gpt_adamw": _adam, "sgd": _sgd, "rmsprop": _rmsprop, **dict.fromkeys(rules.RULES, _by_rule),
}  # fmt: skip
