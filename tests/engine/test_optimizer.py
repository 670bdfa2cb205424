"""Optimizers: each equals torch's of the same name, schedules equal torch's, and clipping and factors act per seed."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from offrl.errors import InvalidInput
from offrld import settings
from offrld.engine.definition import optimizer_step as ours
from offrld.engine.definition.optimizer import OPTIMIZERS, Optimizer, parts_of

SHAPES = {
    "net.0.weight": (4, 3), "net.0.bias": (4,), "net.0.norm.weight": (4,), "net.conv.weight": (2, 3, 2, 2), "net.time.embedding": (5, 2),
}  # fmt: skip
NAMES = tuple(SHAPES)
STEPS = 20
RATE = 0.03
DTYPES = {"dtype": torch.float64}


@dataclasses.dataclass(frozen=True)
class Config:
    o: Optimizer = Optimizer()


def start(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, **DTYPES) for shape in SHAPES.values()]


def gradients(k: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * (seed + 1) + k)
    return [torch.randn(shape, generator=generator, **DTYPES) * 0.5 for shape in SHAPES.values()]


def state(optimizer: Optimizer, params: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    return {part: [torch.zeros_like(p) for p in params] for part in parts_of(optimizer)}


def moved(optimizer: Optimizer, *, factors: Any = None, on_device: bool = False, seeds: tuple[int, ...] | None = None, steps: int = STEPS):
    """The parameters after some steps; ``seeds``: stacked along a first axis."""

    def together(of):
        return of(0) if seeds is None else [torch.stack(each) for each in zip(*(of(seed) for seed in seeds), strict=True)]

    params, count = together(start), torch.zeros(())
    parts = state(optimizer, params)
    for k in range(steps):
        ours.step(
            optimizer,
            RATE,
            params,
            together(lambda seed, k=k: gradients(k, seed)),
            parts,
            count,
            taken=torch.tensor(k) if on_device else k,
            names=NAMES,
            factor=factors,
            seeds_axis=seeds is not None,
        )
    assert count.item() == steps
    return params


def torchs(make, *, clip: float | None = None, scheduler=None, rates: list[float] | None = None) -> list[torch.Tensor]:
    params = [p.requires_grad_() for p in start()]
    optimizer = make(params)
    schedule = scheduler(optimizer) if scheduler else None
    for k in range(STEPS):
        for param, grad in zip(params, gradients(k), strict=True):
            param.grad = grad
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(params, clip)
        if rates is not None:
            rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule:
            schedule.step()
    return [p.detach() for p in params]


def same(one, other, tolerance: float = 1e-12) -> None:
    for name, a, b in zip(NAMES, one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def gpt_groups(params: list[torch.Tensor], decay: float) -> list[dict[str, Any]]:
    """Return the result of nanoGPT's rule for `SHAPES`, written out."""
    weights = ("net.0.weight", "net.conv.weight")
    return [
        {"params": [p for n, p in zip(NAMES, params, strict=True) if n in weights], "weight_decay": decay},
        {"params": [p for n, p in zip(NAMES, params, strict=True) if n not in weights], "weight_decay": 0.0},
    ]


ADAM = [
    {"betas": betas, "eps": eps, "weight_decay": decay, "amsgrad": amsgrad}
    for betas, eps, decay, amsgrad in itertools.product([(0.9, 0.999), (0.5, 0.8)], [1e-8, 1e-3], [0.0, 0.1], [False, True])
]


@pytest.mark.parametrize("kind", ["adam", "adamw", "gpt_adamw"])
@pytest.mark.parametrize("options", ADAM, ids=str)
def test_the_adams_equal_those_of_torch(kind, options):
    mine = Optimizer(
        type=kind,
        beta1=options["betas"][0],
        beta2=options["betas"][1],
        eps=options["eps"],
        weight_decay=options["weight_decay"],
        amsgrad=options["amsgrad"],
    )
    if kind == "gpt_adamw":
        expected = torchs(lambda params: torch.optim.AdamW(gpt_groups(params, options["weight_decay"]), lr=RATE, **options))
    else:
        expected = torchs(lambda params: {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](params, lr=RATE, **options))
    same(moved(mine), expected)


SGD = [
    {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "weight_decay": decay}
    for momentum, dampening, nesterov, decay in itertools.product([0.0, 0.9], [0.0, 0.3], [False, True], [0.0, 0.1])
    if not nesterov or (momentum > 0 and dampening == 0)
]


@pytest.mark.parametrize("on_device", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd_equals_that_of_torch(options, on_device):
    same(moved(Optimizer(type="sgd", **options), on_device=on_device), torchs(lambda params: torch.optim.SGD(params, lr=RATE, **options)))


RMSPROP = [
    {"alpha": alpha, "eps": eps, "centered": centered, "momentum": momentum, "weight_decay": decay}
    for alpha, eps, centered, momentum, decay in itertools.product([0.95, 0.7], [1e-2, 1e-4], [False, True], [0.0, 0.9], [0.0, 0.1])
]


@pytest.mark.parametrize("options", RMSPROP, ids=str)
def test_rmsprop_equals_that_of_torch(options):
    same(moved(Optimizer(type="rmsprop", **options)), torchs(lambda params: torch.optim.RMSprop(params, lr=RATE, **options)))


# Without a fused kernel: our settings beside torch's of the same meaning.
OTHERS = [
    ("adamax", {}, {}), ("adamax", {"beta1": 0.5, "beta2": 0.8, "eps": 1e-3}, {"betas": (0.5, 0.8), "eps": 1e-3}),
    ("nadam", {}, {}),
    ("nadam", {"beta1": 0.5, "beta2": 0.8, "momentum_decay": 0.3}, {"betas": (0.5, 0.8), "momentum_decay": 0.3}),
    ("radam", {}, {}), ("radam", {"beta1": 0.5, "beta2": 0.8, "eps": 1e-3}, {"betas": (0.5, 0.8), "eps": 1e-3}),
    ("adagrad", {}, {}), ("adagrad", {"rate_decay": 0.2, "eps": 1e-3}, {"lr_decay": 0.2, "eps": 1e-3}),
    ("adadelta", {}, {}), ("adadelta", {"rho": 0.5, "eps": 1e-3}, {"rho": 0.5, "eps": 1e-3}),
    ("rprop", {}, {"step_sizes": (1e-4 * RATE, 5e3 * RATE)}),
    ("rprop", {"shrink": 0.01, "grow": 50.0}, {"etas": (0.01, 50.0), "step_sizes": (1e-4 * RATE, 5e3 * RATE)}),
]  # fmt: skip
TORCHS = {
    "adamax": torch.optim.Adamax, "nadam": torch.optim.NAdam, "radam": torch.optim.RAdam, "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta, "rprop": torch.optim.Rprop,
}  # fmt: skip


@pytest.fixture
def exact_torch():
    """Torch keeps the product of NAdam's momenta in its default dtype, whatever that of the parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("on_device", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("kind", "options", "of_torch"), OTHERS, ids=str)
def test_the_other_rules_equal_those_of_torch(kind, options, of_torch, decay, on_device, exact_torch):
    if kind == "rprop" and decay:
        pytest.skip("torch's has none either")
    decays = {"weight_decay": decay} if decay else {}
    expected = torchs(lambda params: TORCHS[kind](params, lr=RATE, **of_torch, **decays))
    same(moved(Optimizer(type=kind, **options, **decays), on_device=on_device), expected, 1e-11)


def test_every_optimizer_of_torch_has_its_rule_or_a_reason():
    known = {name.lower() for name in vars(torch.optim) if isinstance(getattr(torch.optim, name), type)} - {"optimizer"}
    without = {"lbfgs", "sparseadam", "adafactor", "muon", "asgd"}  # the reasons: offrld/engine/definition/rules.py
    assert known - without <= set(OPTIMIZERS)


def test_the_defaults_are_those_of_the_field():
    same(moved(Optimizer()), torchs(lambda params: torch.optim.Adam(params, lr=RATE)))
    expected = torchs(lambda params: torch.optim.RMSprop(params, lr=RATE, alpha=0.95, eps=1e-2, centered=True))
    same(moved(Optimizer(type="rmsprop")), expected)


def test_a_constant_gradient_leaves_centred_rmsprop_finite_in_float32():
    params = [torch.zeros(1000)]
    optimizer = Optimizer(type="rmsprop", eps=1e-8)
    parts, grads = state(optimizer, params), [torch.linspace(0.1, 1000, 1000)]
    for k in range(300):
        ours.step(optimizer, 1e-3, params, grads, parts, torch.zeros(()), taken=k, names=("a.weight",))
    assert torch.isfinite(params[0]).all()


@pytest.mark.parametrize("limit", [1e-2, 1.0, 1e3])
def test_gradients_are_clipped_by_the_norm_of_all_of_them_as_torch_does(limit):
    same(moved(Optimizer(type="sgd", clip_grad_norm=limit)), torchs(lambda params: torch.optim.SGD(params, lr=RATE), clip=limit))


def test_clipping_leaves_the_callers_gradients_alone():
    grads = gradients(0)
    ours.clipped(grads, 1e-3)
    same(grads, gradients(0), 0.0)


SCHEDULES = [
    (
        Optimizer(type="sgd", schedule="warmup", warmup_steps=7),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: min((k + 1) / 7, 1)),
    ),
    (
        Optimizer(type="sgd", schedule="cosine", cosine_steps=STEPS, min_factor=0.2),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.2 * RATE),
    ),
    (
        Optimizer(type="sgd", schedule="step", step_size=6, step_factor=0.3),
        lambda o: torch.optim.lr_scheduler.StepLR(o, 6, gamma=0.3),
    ),
    (Optimizer(type="sgd"), None),
]  # fmt: skip


@pytest.mark.parametrize("on_device", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize(("mine", "scheduler"), SCHEDULES, ids=["warmup", "cosine", "step", "none"])
def test_the_learning_rate_follows_torchs_scheduler(mine, scheduler, on_device):
    rates: list[float] = []
    expected = torchs(lambda params: torch.optim.SGD(params, lr=RATE), scheduler=scheduler, rates=rates)
    same(moved(mine, on_device=on_device), expected)
    for k, rate in enumerate(rates):
        factor = ours.factor_at(mine, torch.tensor(k) if on_device else k)
        assert float(factor) * RATE == pytest.approx(rate, rel=1e-12)


def test_the_cosine_stays_at_its_end():
    optimizer = Optimizer(schedule="cosine", cosine_steps=10, min_factor=0.1)
    assert ours.factor_at(optimizer, 5) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert [float(ours.factor_at(optimizer, k)) for k in (10, 15, 1000)] == pytest.approx([0.1] * 3)


EVERY = [
    Optimizer(weight_decay=0.1), Optimizer(type="adamw", weight_decay=0.1, amsgrad=True), Optimizer(type="gpt_adamw", weight_decay=0.1),
    Optimizer(type="sgd", momentum=0.9, weight_decay=0.1), Optimizer(type="sgd", momentum=0.9, dampening=0.5),
    Optimizer(type="rmsprop", momentum=0.5, weight_decay=0.1), Optimizer(type="rmsprop", centered=False),
    *(Optimizer(type=kind, weight_decay=0.0 if kind == "rprop" else 0.1) for kind in TORCHS),
]  # fmt: skip
every = pytest.mark.parametrize("optimizer", EVERY, ids=lambda o: f"{o.type}-{o.momentum:g}-{o.dampening:g}")


@every
def test_a_factor_of_the_learning_rate_is_the_learning_rate_times_it(optimizer):
    params, parts = start(), state(optimizer, start())
    ours.step(optimizer, RATE * 0.3, params, gradients(0), parts, torch.zeros(()), taken=0, names=NAMES)
    for factor in (0.3, torch.tensor(0.3, dtype=torch.float64)):
        same(moved(optimizer, factors=factor, steps=1), params)


@every
@pytest.mark.parametrize("clip", [None, 0.5])
def test_seeds_stacked_move_as_each_alone_does_by_its_own_norm_and_factor(optimizer, clip):
    optimizer = dataclasses.replace(optimizer, clip_grad_norm=clip)
    seeds, factors = (0, 3, 5), torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    together = moved(optimizer, seeds=seeds, factors=factors)
    plain = moved(optimizer, seeds=seeds)
    for position, seed in enumerate(seeds):
        for factor, stacked in ((float(factors[position]), together), (None, plain)):
            alone, count = start(seed), torch.zeros(())
            parts = state(optimizer, alone)
            for k in range(STEPS):
                ours.step(optimizer, RATE, alone, gradients(k, seed), parts, count, taken=k, names=NAMES, factor=factor)
            same([p[position] for p in stacked], alone)


def test_gradients_with_another_memory_layout_are_read_correctly():
    mine, plain = start(), start()
    grads = gradients(0)
    strided = [g.transpose(0, -1).contiguous().transpose(0, -1) if g.dim() > 1 else g for g in grads]
    assert not strided[0].is_contiguous()
    for params, given in ((mine, strided), (plain, grads)):
        ours.step(Optimizer(), RATE, params, given, state(Optimizer(), params), torch.zeros(()), taken=0, names=NAMES)
    same(mine, plain, 0.0)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"type": "sgd", "beta1": 0.5}, "'o.beta1' has no effect with o.type 'sgd'"),
        ({"momentum": 0.5}, "'o.momentum' has no effect with o.type 'adam'"),
        ({"warmup_steps": 5}, "'o.warmup_steps' has no effect with o.schedule 'none'"),
        ({"type": "rprop", "weight_decay": 0.1}, "'o.weight_decay' has no effect with o.type 'rprop'"),
        ({"type": "sgd", "nesterov": True}, "o: nesterov needs momentum above 0"),
    ],
)
def test_settings_that_the_optimizer_ignores_are_refused(values, text):
    with pytest.raises(InvalidInput) as caught:
        settings.build(Config(), {f"o.{name}": value for name, value in values.items()})
    assert text in str(caught.value)
