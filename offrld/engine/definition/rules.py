"""Rules of `torch.optim` that have no fused kernel: they map gradients to the parameters' update per unit of learning rate.

Each rule equals the torch optimizer of the same name and works element by element. Its state therefore has the parameters' shapes, with or
without a seed axis, and starts as zeros. ``k`` counts the steps from 1: a number, or a 0-d tensor if a captured graph must see it change.
Torch's other optimizers do not have this form: LBFGS evaluates the loss several times, SparseAdam needs sparse gradients, Adafactor and
Muon process whole matrices, and ASGD averages the parameters, and the policy would have to use that average.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from offrld.engine.definition.optimizer import Optimizer, eps_of

Number = float | Tensor
Tensors = list[Tensor]
Rule = Callable[[Optimizer, Tensors, dict[str, Tensors], Number], Tensors]
STEP_SIZES = (1e-4, 5e3)  # rprop's limits of an element's step, relative to the learning rate: torch's limits at its default rate, 0.01
RECTIFIED = 5.0  # radam divides by the root mean square once the average is longer than this


def adamax(spec: Optimizer, grads: Tensors, parts: dict[str, Tensors], k: Number) -> Tensors:
    """Adam with the largest gradient instead of the root mean square (Kingma & Ba 2015)."""
    first, largest = parts["first"], parts["largest"]
    torch._foreach_lerp_(first, grads, 1 - spec.beta1)
    torch._foreach_mul_(largest, spec.beta2)
    torch._foreach_maximum_(largest, torch._foreach_add(torch._foreach_abs(grads), eps_of(spec)))
    return _times(torch._foreach_div(first, largest), 1 / (1 - _power(spec.beta1, k)))


def nadam(spec: Optimizer, grads: Tensors, parts: dict[str, Tensors], k: Number) -> Tensors:
    """Adam with Nesterov's momentum (Dozat 2016)."""
    first, lacking = parts["first"], parts["lacking"]  # `lacking`: 1 minus the product of all momenta so far
    now, following = (spec.beta1 * (1 - 0.5 * _power(0.96, step * spec.momentum_decay)) for step in (k, k + 1))
    torch._foreach_lerp_(first, grads, 1 - spec.beta1)
    torch._foreach_mul_(lacking, now)
    _add(lacking, 1 - now)
    ahead = _add(_times(lacking, following), 1 - following)
    move = torch._foreach_div(_times(first, following), ahead)
    torch._foreach_add_(move, torch._foreach_div(_times(grads, 1 - now), lacking))
    second = parts["second"]
    _square_mean(second, grads, spec.beta2)
    unbiased = _times(second, 1 / (1 - _power(spec.beta2, k)))
    return list(torch._foreach_div(move, torch._foreach_add(torch._foreach_sqrt(unbiased), eps_of(spec))))


def radam(spec: Optimizer, grads: Tensors, parts: dict[str, Tensors], k: Number) -> Tensors:
    """Adam that divides by the root mean square only once its variance is tractable (Liu et al. 2020)."""
    first, second = parts["first"], parts["second"]
    torch._foreach_lerp_(first, grads, 1 - spec.beta1)
    _square_mean(second, grads, spec.beta2)
    longest = 2 / (1 - spec.beta2) - 1
    decayed = _power(spec.beta2, k)
    length = longest - 2 * k * decayed / (1 - decayed)
    share = (1 - decayed) * (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    long_enough: Number
    rectified: Number
    if isinstance(length, Tensor) and isinstance(share, Tensor):
        long_enough = (length > RECTIFIED).to(length.dtype)
        rectified = share.clamp(min=0).sqrt() * long_enough
    else:
        long_enough = float(length > RECTIFIED)
        rectified = math.sqrt(max(float(share), 0.0)) * long_enough
    divisor = torch._foreach_add(torch._foreach_sqrt(second), eps_of(spec))
    move = _add(_times(torch._foreach_reciprocal(divisor), rectified), 1 - long_enough)
    torch._foreach_mul_(move, first)
    return _times(move, 1 / (1 - _power(spec.beta1, k)))


def adagrad(spec: Optimizer, grads: Tensors, parts: dict[str, Tensors], k: Number) -> Tensors:
    """Gradient descent whose rate falls with each element's sum of squared gradients (Duchi et al. 2011)."""
    torch._foreach_addcmul_(parts["sum"], grads, grads)
    divisor = torch._foreach_add(torch._foreach_sqrt(parts["sum"]), eps_of(spec))
    return _times(torch._foreach_div(grads, divisor), 1 / (1 + (k - 1) * spec.rate_decay))


def adadelta(spec: Optimizer, grads: Tensors, parts: dict[str, Tensors], k: Number) -> Tensors:
    """Gradient descent with updates scaled by the root mean square of the previous ones (Zeiler 2012)."""
    second, moves = parts["second"], parts["moves"]
    _square_mean(second, grads, spec.rho)
    ratio = torch._foreach_div(torch._foreach_add(moves, eps_of(spec)), torch._foreach_add(second, eps_of(spec)))
    move = torch._foreach_mul(torch._foreach_sqrt(ratio), grads)
    _square_mean(moves, move, spec.rho)
    return list(move)


def rprop(spec: Optimizer, grads: Tensors, parts: dict[str, Tensors], k: Number) -> Tensors:
    """Steps that use only the gradient's sign and grow while it stays the same (Riedmiller & Braun 1993); for whole batches.

    The state stores an element's step divided by the learning rate, minus 1: it starts as zero, and a schedule still has effect.
    """
    least, largest = (size - 1 for size in STEP_SIZES)
    move = []
    for grad, previous, excess in zip(grads, parts["previous"], parts["excess"], strict=True):
        product = grad * previous
        factor = torch.where(product > 0, spec.grow, torch.where(product < 0, spec.shrink, 1.0)).to(excess.dtype)
        excess.copy_(((1 + excess) * factor - 1).clamp(least, largest))
        direction = torch.where(product < 0, 0.0, grad)  # after a change of sign, an element pauses for one step
        previous.copy_(direction)
        move.append(direction.sign() * (1 + excess))
    return move


RULES: dict[str, Rule] = {"adamax": adamax, "nadam": nadam, "radam": radam, "adagrad": adagrad, "adadelta": adadelta, "rprop": rprop}


def _square_mean(mean: Tensors, values: Tensors | tuple[Tensor, ...], decay: float) -> None:
    torch._foreach_mul_(mean, decay)
    torch._foreach_addcmul_(mean, values, values, value=1 - decay)


def _times(tensors: Tensors | tuple[Tensor, ...], factor: Number) -> Tensors:
    return list(torch._foreach_mul(tensors, factor.to(tensors[0].dtype) if isinstance(factor, Tensor) else factor))


def _add(tensors: Tensors, term: Number) -> Tensors:
    """Add in place. `_foreach_add_` with a tensor would read it back to the host as a number."""
    torch._foreach_add_(tensors, [term.to(tensors[0].dtype)] * len(tensors) if isinstance(term, Tensor) else term)
    return tensors


def _power(base: float, exponent: Number) -> Number:
    # Not float ** tensor: this power stays on the tensor's device and in its dtype.
    return torch.full_like(exponent, base) ** exponent if isinstance(exponent, Tensor) else base**exponent
