"""The settings of an optimizer, and the tensors that each rule keeps per parameter.

`Optimizer` defines how the gradients of a step move its parameters. The moments are part of the training state, not of a separate object;
`parts_of` names them. `offrld.engine.definition.optimizer_step` moves the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from offrl.errors import InvalidInput
from offrld.settings import setting

# The tensors that each rule without a fused kernel keeps (see `offrld.engine.definition.rules`).
UNFUSED = {
    "adamax": ("first", "largest"), "nadam": ("first", "second", "lacking"), "radam": ("first", "second"), "adagrad": ("sum",),
    "adadelta": ("second", "moves"), "rprop": ("previous", "excess"),
}  # fmt: skip
ADAMS = ("adam", "adamw", "gpt_adamw")
BETAS = (*ADAMS, "adamax", "nadam", "radam")
OPTIMIZERS = (*ADAMS, "sgd", "rmsprop", *UNFUSED)
BY_SIZE = tuple(name for name in OPTIMIZERS if name != "rprop")  # rprop uses only a gradient's sign
SCHEDULES = ("none", "warmup", "cosine", "step")
EPS = {"rmsprop": 1e-2, "adagrad": 1e-10, "adadelta": 1e-6}  # all others: 1e-8
_DECAY = "decay of the parameters per unit of learning rate: added to the gradient, or decoupled in adamw and gpt_adamw"


@dataclass(frozen=True)
class Optimizer:
    """How the gradients of one step move its parameters; the learning rate is the algorithm's own setting."""

    type: str = setting("adam", "update rule; gpt_adamw decays only the weights of layers", choices=OPTIMIZERS, probe="sgd")
    beta1: float = setting(0.9, "decay rate of the mean of gradients", low=0.0, high=0.9999999, only=BETAS)
    beta2: float = setting(0.999, "decay rate of the mean of squared gradients", low=0.0, high=0.9999999, only=BETAS)
    amsgrad: bool = setting(False, "divide by the largest mean square so far (Reddi et al. 2018)", only=ADAMS)
    alpha: float = setting(0.95, "decay rate of the mean of squared gradients", low=0.0, high=1.0, only=("rmsprop",))
    centered: bool = setting(True, "divide by the standard deviation instead of the root mean square", only=("rmsprop",))
    eps: float | None = setting(
        None,
        "added to the divisor; none: 1e-8, but 1e-2 for rmsprop, 1e-10 for adagrad, 1e-6 for adadelta",
        low=0.0,
        only=(*BETAS, "rmsprop", "adagrad", "adadelta"),
        probe=1e-3,
    )
    rho: float = setting(0.9, "decay rate of the means of squared gradients and of squared updates", low=0.0, high=1.0, only=("adadelta",))
    momentum_decay: float = setting(0.004, "rate at which the momentum approaches beta1", low=0.0, only=("nadam",))
    rate_decay: float = setting(0.0, "decay of the learning rate: rate / (1 + steps * rate_decay)", low=0.0, only=("adagrad",), probe=0.5)
    shrink: float = setting(
        0.5, "factor on an element's step size when its gradient changes sign", low=0.0, high=1.0, exclusive_low=True, only=("rprop",)
    )
    grow: float = setting(1.2, "factor on an element's step size while its gradient keeps its sign", low=1.0, only=("rprop",), probe=1.5)
    momentum: float = setting(
        0.0, "fraction of the previous update that is added to this one", low=0.0, high=1.0, only=("sgd", "rmsprop"), probe=0.9
    )
    dampening: float = setting(
        0.0, "fraction of the gradient that the momentum leaves out", low=0.0, high=1.0, only=("sgd",), probe={"": 0.5, "momentum": 0.9}
    )
    nesterov: bool = setting(False, "use Nesterov momentum", only=("sgd",), probe={"": True, "momentum": 0.9})
    weight_decay: float = setting(0.0, _DECAY, low=0.0, probe=0.2, only=BY_SIZE)
    clip_grad_norm: float | None = setting(
        None,
        "largest norm of a step's gradients, all parameters together; larger ones are scaled down",
        low=0.0,
        exclusive_low=True,
        probe={"": 1e-3, "type": "sgd"},
        only=BY_SIZE,
    )
    schedule: str = setting("none", "schedule of the learning rate", choices=SCHEDULES)
    warmup_steps: int = setting(1000, "steps until the full learning rate", unit="steps", low=1, only={"schedule": ("warmup",)})
    cosine_steps: int = setting(
        1_000_000, "steps until the final learning rate, which then stays", unit="steps", low=1, only={"schedule": ("cosine",)}, probe=9
    )
    min_factor: float = setting(
        0.0,
        "final learning rate as a fraction of the full one",
        low=0.0,
        high=1.0,
        only={"schedule": ("cosine",)},
        probe={"": 0.5, "cosine_steps": 4},
    )
    step_size: int = setting(
        100_000, "steps between reductions of the learning rate", unit="steps", low=1, only={"schedule": ("step",)}, probe=2
    )
    step_factor: float = setting(
        0.1,
        "factor on the learning rate at each reduction",
        low=0.0,
        high=1.0,
        only={"schedule": ("step",)},
        probe={"": 0.5, "step_size": 2},
    )

    def __post_init__(self) -> None:
        if self.type == "sgd" and self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise InvalidInput("nesterov needs momentum above 0 and dampening 0", hint="for example momentum=0.9")


def parts_of(optimizer: Optimizer) -> tuple[str, ...]:
    """List the tensors that the state keeps for each parameter, in its shape and dtype; they start as zeros."""
    if optimizer.type in UNFUSED:
        return UNFUSED[optimizer.type]
    momentum = ("momentum",) if optimizer.momentum > 0 and optimizer.type not in ADAMS else ()
    if optimizer.type == "sgd":
        return momentum
    if optimizer.type == "rmsprop":
        return (*(("first",) if optimizer.centered else ()), "second", *momentum)
    return ("first", "second", *(("largest",) if optimizer.amsgrad else ()))


def eps_of(optimizer: Optimizer) -> float:
    """Return the number that is added to the divisor: the setting, or the rule's default."""
    return EPS.get(optimizer.type, 1e-8) if optimizer.eps is None else optimizer.eps
