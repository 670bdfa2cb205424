"""The settings of an optimizer, and the tensors that each rule keeps per parameter.

`Optimizer` says how the gradients of a step move its parameters. The moments live in the training state rather than in an object of their
own: `parts_of` names them. `offrld.engine.definition.optimizer_step` moves the parameters.
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
BY_SIZE = tuple(name for name in OPTIMIZERS if name != "rprop")  # rprop reads nothing of a gradient but its sign
SCHEDULES = ("none", "warmup", "cosine", "step")
EPS = {"rmsprop": 1e-2, "adagrad": 1e-10, "adadelta": 1e-6}  # of all others: 1e-8
_DECAY = "share of the parameters taken off per unit of learning rate: as a gradient, in adamw and gpt_adamw apart from it"


@dataclass(frozen=True)
class Optimizer:
    """How the gradients of one step move its parameters; the learning rate is the algorithm's own setting."""

    type: str = setting(
        "adam", "rule that moves the parameters; gpt_adamw decays the weights of layers only", choices=OPTIMIZERS, probe="sgd"
    )
    beta1: float = setting(0.9, "decay of the mean of gradients", low=0.0, high=0.9999999, only=BETAS)
    beta2: float = setting(0.999, "decay of the mean of squared gradients", low=0.0, high=0.9999999, only=BETAS)
    amsgrad: bool = setting(False, "divide by the largest mean square so far (Reddi et al. 2018)", only=ADAMS)
    alpha: float = setting(0.95, "decay of the mean of squared gradients", low=0.0, high=1.0, only=("rmsprop",))
    centered: bool = setting(True, "divide by the deviation rather than the root mean square", only=("rmsprop",))
    eps: float | None = setting(
        None,
        "added to the divisor; none: 1e-8, with rmsprop 1e-2, adagrad 1e-10, adadelta 1e-6",
        low=0.0,
        only=(*BETAS, "rmsprop", "adagrad", "adadelta"),
        probe=1e-3,
    )
    rho: float = setting(0.9, "decay of the means of squared gradients and of squared moves", low=0.0, high=1.0, only=("adadelta",))
    momentum_decay: float = setting(0.004, "how fast the momentum reaches beta1", low=0.0, only=("nadam",))
    rate_decay: float = setting(0.0, "fall of the learning rate: rate / (1 + steps rate_decay)", low=0.0, only=("adagrad",), probe=0.5)
    shrink: float = setting(
        0.5, "factor on an element's move where its gradient changed sign", low=0.0, high=1.0, exclusive_low=True, only=("rprop",)
    )
    grow: float = setting(1.2, "factor on an element's move where its gradient kept its sign", low=1.0, only=("rprop",), probe=1.5)
    momentum: float = setting(0.0, "share of the last move in this one", low=0.0, high=1.0, only=("sgd", "rmsprop"), probe=0.9)
    dampening: float = setting(
        0.0, "share of the gradient kept out of the momentum", low=0.0, high=1.0, only=("sgd",), probe={"": 0.5, "momentum": 0.9}
    )
    nesterov: bool = setting(False, "look ahead along the momentum", only=("sgd",), probe={"": True, "momentum": 0.9})
    weight_decay: float = setting(0.0, _DECAY, low=0.0, probe=0.2, only=BY_SIZE)
    clip_grad_norm: float | None = setting(
        None, "largest norm of all gradients of a step together", low=0.0, exclusive_low=True, probe={"": 1e-3, "type": "sgd"}, only=BY_SIZE
    )
    schedule: str = setting("none", "course of the learning rate", choices=SCHEDULES)
    warmup_steps: int = setting(1000, "until the full rate", unit="steps", low=1, only={"schedule": ("warmup",)})
    cosine_steps: int = setting(
        1_000_000, "until the least rate, which stays", unit="steps", low=1, only={"schedule": ("cosine",)}, probe=9
    )
    min_factor: float = setting(
        0.0, "least share of the rate", low=0.0, high=1.0, only={"schedule": ("cosine",)}, probe={"": 0.5, "cosine_steps": 4}
    )
    step_size: int = setting(100_000, "between two cuts of the rate", unit="steps", low=1, only={"schedule": ("step",)}, probe=2)
    step_factor: float = setting(
        0.1, "what is left of the rate after a cut", low=0.0, high=1.0, only={"schedule": ("step",)}, probe={"": 0.5, "step_size": 2}
    )

    def __post_init__(self) -> None:
        if self.type == "sgd" and self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise InvalidInput("nesterov needs a momentum above 0 and no dampening", hint="for example momentum=0.9")


def parts_of(optimizer: Optimizer) -> tuple[str, ...]:
    """Name the tensors that the state keeps for each parameter, of its shape and dtype; they start as zeros."""
    if optimizer.type in UNFUSED:
        return UNFUSED[optimizer.type]
    momentum = ("momentum",) if optimizer.momentum > 0 and optimizer.type not in ADAMS else ()
    if optimizer.type == "sgd":
        return momentum
    if optimizer.type == "rmsprop":
        return (*(("first",) if optimizer.centered else ()), "second", *momentum)
    return ("first", "second", *(("largest",) if optimizer.amsgrad else ()))


def eps_of(optimizer: Optimizer) -> float:
    """The number that is added to the divisor: the setting, or the rule's own default."""
    return EPS.get(optimizer.type, 1e-8) if optimizer.eps is None else optimizer.eps
