"""An independent computation of updates in plain NumPy float64, against which the algorithms are tested.

The networks are reimplemented here from the parameters' names and shapes alone. Gradients use the complex step: with a perturbation
``i h d`` of a parameter, ``Im(loss) / h`` is the derivative along ``d`` to the last digit, because nothing is subtracted (Squire & Trapp
1998). So everything works on complex arrays: comparisons use the real part, and `stop` drops the imaginary part, like detaching a tensor.
A test writes a loss as in the paper; `replay` compares values, gradients, the order of steps, the optimizer's steps and the target
networks, and checks that nothing else changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from offrld.algos import ALGORITHMS
from offrld.engine import Learner

H = 1e-40
Arrays = dict[str, np.ndarray]


# --- Elementary functions ---
def stop(x):
    """Return ``x`` without its derivative."""
    return np.real(x).copy()


def where_less(x, y):
    return np.real(x) < np.real(y)


def relu(x):
    return np.where(np.real(x) > 0, x, 0)


def absolute(x):
    return np.where(np.real(x) < 0, -x, x)


def clip(x, low, high):
    return np.where(np.real(x) < low, low, np.where(np.real(x) > high, high, x))


def lowest(values):
    """Return the elementwise minimum of a list of arrays."""
    out = values[0]
    for value in values[1:]:
        out = np.where(where_less(value, out), value, out)
    return out


def highest(values):
    return -lowest([-value for value in values])


def softplus(x):
    return np.log1p(np.exp(x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_softmax(x):
    top = np.real(x).max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def logsumexp(x, axis):
    top = np.real(x).max(axis, keepdims=True)
    return (np.log(np.exp(x - top).sum(axis, keepdims=True)) + top).squeeze(axis)


def huber(e):
    return np.where(np.abs(np.real(e)) < 1, 0.5 * e * e, absolute(e) - 0.5)


# --- Networks ---
def layers(p: Arrays, name: str, x, mask: list | None = None):
    """Compute the encoder ``NAME.encoder``: linear, ReLU, and layer norm if it has one."""
    i = 0
    while f"{name}.encoder.{i}.weight" in p:
        layer = f"{name}.encoder.{i}"
        x = x @ p[f"{layer}.weight"].T + p[f"{layer}.bias"]
        if mask is not None:
            mask.append(np.real(x) > 0)
        x = relu(x)
        if f"{layer}.norm.weight" in p:
            centred = x - x.mean(-1, keepdims=True)
            x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
            x = x * p[f"{layer}.norm.weight"] + p[f"{layer}.norm.bias"]
        i += 1
    return x


def net(p: Arrays, name: str, *inputs):
    """Encoder and head."""
    return layers(p, name, np.concatenate(inputs, -1)) @ p[f"{name}.head.weight"].T + p[f"{name}.head.bias"]


def normal_log_density(x, mean, log_std):
    return (-0.5 * ((x - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)


def squashed_sample(p: Arrays, name: str, s, noise, low=-20.0, high=2.0):
    """Action ``[B, A]`` of a squashed normal policy and its log density ``[B]``: the normal's, less the logarithm of the tanh's slope."""
    mean, log_std = np.split(net(p, name, s), 2, -1)
    log_std = clip(log_std, low, high)
    u = mean + np.exp(log_std) * noise
    return np.tanh(u), normal_log_density(u, mean, log_std) - (2 * (np.log(2) - u - softplus(-2 * u))).sum(-1)


def decode(p: Arrays, s, z, squash=True):
    out = net(p, "vae.decoder", s, z)
    return np.tanh(out) if squash else out


def vae_loss(p: Arrays, x: Any, beta: float):
    mean, log_std = np.split(net(p, "vae.encoder", x.observation, x.action), 2, -1)
    log_std = clip(log_std, -4, 15)
    again = decode(p, x.observation, mean + np.exp(log_std) * x.noise["vae"])
    divergence = -0.5 * (1 + 2 * log_std - mean**2 - np.exp(2 * log_std))
    return np.mean((again - x.action) ** 2) + beta * np.mean(divergence)


# --- Values ---
@dataclass(frozen=True)
class Value:
    """Of one member: expected values ``[B]``, quantiles ``[B, M]`` at fractions ``[M]`` or ``[B, M]``; of fqf what trains its proposals."""

    mean: Any
    quantiles: Any
    fractions: Any = None
    proposal: Any = 0.0

    def error(self, y, discrete=False):
        """Return the batch mean of the error against targets ``[B, M']``."""
        if self.fractions is None:
            e = self.mean - y[:, 0]
            return np.mean(huber(e) if discrete else e * e)
        total = 0.0
        for b in range(len(y)):
            tau = self.fractions if np.ndim(self.fractions) == 1 else self.fractions[b]
            for j in range(self.quantiles.shape[1]):
                e = y[b] - self.quantiles[b, j]
                total = total + np.mean(np.where(np.real(e) < 0, 1 - tau[j], tau[j]) * huber(e))
        return total / len(y) + np.mean(self.proposal)


def _head(p: Arrays, name: str, h):
    return h @ p[f"{name}.head.weight"].T + p[f"{name}.head.bias"]


def member(p: Arrays, name: str, kind: str, *inputs, action=None) -> Value:
    """Q function ``name`` at its inputs; of discrete actions ``[B]`` where given, else a continuous one's single value."""
    h = layers(p, name, np.concatenate(inputs, -1))
    rows = np.arange(len(h))

    if kind == "mean":
        out = _head(p, name, h)  # [B, n]
        q = out[rows, 0 if action is None else action]
        return Value(q, q[:, None])
    if kind == "qr":
        out = _head(p, name, h)
        m = M_QR
        quantiles = out.reshape(len(h), -1, m)[rows, 0 if action is None else action]
        return Value(quantiles.mean(-1), quantiles, (2 * np.arange(1, m + 1) - 1) / (2 * m))

    def curve(fractions):  # [B, M]
        embed = p[f"{name}.embedding.weight"].shape[1]
        cosine = np.cos(np.pi * fractions[..., None] * np.arange(1, embed + 1))  # [B, M, E]
        phi = relu(cosine @ p[f"{name}.embedding.weight"].T + p[f"{name}.embedding.bias"])
        return _head(p, name, h[:, None, :] * phi)[rows, :, 0 if action is None else action]  # [B, M]

    assert kind == "fqf"
    logits = stop(h) @ p[f"{name}.proposal.weight"].T + p[f"{name}.proposal.bias"]
    log_q = log_softmax(logits)
    q = np.exp(log_q)
    tau = np.cumsum(q, -1)
    before = np.concatenate([np.zeros((len(h), 1)), tau[:, :-1]], -1)
    middle = stop((tau + before) / 2)
    quantiles = curve(middle)
    inner, theta = stop(curve(stop(tau[:, :-1]))), stop(quantiles)
    gradient = 2 * inner - theta[:, :-1] - theta[:, 1:]
    surrogate = 1e-4 * (gradient * tau[:, :-1]).sum(-1)
    entropy = -(q * log_q).sum(-1)
    return Value((stop(q) * quantiles).sum(-1), quantiles, middle, surrogate - stop(surrogate) - ENTROPY * entropy)


M_QR, ENTROPY = 5, 0.3
KINDS: dict[str, dict[str, Any]] = {
    "mean": {},
    "qr": {"q_function.type": "qr", "q_function.n_quantiles": M_QR},
    "fqf": {"q_function.type": "fqf", "q_function.n_quantiles": 3, "q_function.embed_size": 4, "q_function.entropy_coeff": ENTROPY},
}


def choose(values: list[Value], how: str) -> Any:
    """Per sample, all quantiles of the member with the least (greatest) expected value: ``[B, M]``."""
    means = np.stack([np.real(value.mean) for value in values])
    number = means.argmin(0) if how == "min" else means.argmax(0)
    return np.stack([values[number[b]].quantiles[b] for b in range(means.shape[1])])


def chosen_mean(values: list[Value], how: str) -> Any:
    return (lowest if how == "min" else highest)([value.mean for value in values])


# --- Updates ---
@dataclass(frozen=True)
class Move:
    """A step as the test expects it: the networks it moves, by which rate, with which loss ``(p, x) -> scalar``."""

    name: str
    nets: tuple[str, ...]
    rate: float
    loss: Callable[[Arrays, Any], Any]
    moments: str | None = None
    adam: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Follow:
    """Target networks that move: network -> rate."""

    rates: Mapping[str, float]


@dataclass(frozen=True)
class Clamp:
    """A parameter that is clipped to its limits."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Rewrite:
    """The memory before the next step, ``(memory, p, the memory that the next loss saw) -> memory``."""

    change: Callable[[Arrays, Arrays, Arrays], Arrays]


@dataclass(frozen=True)
class _Seen:
    """The inputs, the result and the gradients of a loss."""

    step: str
    value: float
    metrics: dict[str, float]
    p: Arrays
    t: Arrays
    memory: Arrays
    batch: dict[str, Any]
    gradients: Arrays


class Trace:
    """Create a learner of one seed and record its losses during ``updates`` updates.

    Attributes:
        p, t: parameters and target copies before the first update.
        seen: for each update what each loss saw, in order.
        after: parameters and targets after each update.
    """

    def __init__(self, name: str, store: Any, values: Mapping[str, Any], updates: int, inputs: Mapping[str, Any] | None = None) -> None:
        algorithm, self.updates = ALGORITHMS[name], updates
        defaults = {"batch_size": 6, **_tiny(algorithm.config), **({"n_steps": 2} if hasattr(algorithm.config, "n_steps") else {})}
        self.config = algorithm.configure({**defaults, **values})
        watched = {"schedule": lambda config: tuple(self._watched(step) for step in algorithm.schedule(config))}
        if algorithm.stages is not None:
            stages = algorithm.stages
            watched["stages"] = lambda config: tuple(
                dataclasses.replace(stage, schedule=tuple(self._watched(step) for step in stage.schedule)) for stage in stages(config)
            )
        self.algorithm = dataclasses.replace(algorithm, **watched)
        self.learner = Learner.create(self.algorithm, self.config, store, dtype=torch.float64, runner="eager", inputs=inputs)
        self.config = self.learner.config
        self.p, self.t = self._state()
        self.seen: list[list[_Seen]] = []
        self.after: list[tuple[Arrays, Arrays]] = []
        for _ in range(updates):
            self.seen.append([])
            self.learner.run(1)
            self.after.append(self._state())

    def _state(self) -> tuple[Arrays, Arrays]:
        state = self.learner.state
        return tuple({n: v[0].detach().numpy().copy() for n, v in part.items()} for part in (state.params, state.target))

    def _watched(self, step: Any) -> Any:
        if step.loss is None:
            return step

        def loss(params, config, nets, state, batch):
            value, metrics = step.loss(params, config, nets, state, batch)
            leaves = {n: v for n, v in params.items() if isinstance(v, torch.Tensor) and v.requires_grad}
            found = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True)
            self.seen[-1].append(
                _Seen(
                    step.name,
                    value.item(),
                    {n: m.item() for n, m in metrics.items()},
                    _arrays(params),
                    _arrays(state.target),
                    _arrays(state.carry),
                    _fields(batch),
                    {n: g.numpy().copy() for n, g in zip(leaves, found, strict=True)},
                )
            )
            return value, metrics

        return dataclasses.replace(step, loss=loss)


def _tiny(config: Any) -> dict[str, Any]:
    found = {}
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        if hasattr(value, "units") and hasattr(value, "layer_norm"):
            found[f"{field_.name}.units"] = [5, 4]
    return found


def _arrays(tensors: Mapping[str, Any]) -> Arrays:
    return {n: v.detach().numpy().copy() for n, v in tensors.items() if isinstance(v, torch.Tensor)}


def _fields(batch: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in dataclasses.fields(batch):
        value = getattr(batch, part.name)
        found[part.name] = _arrays(value) if isinstance(value, dict) else None if value is None else value.numpy().copy()
    return found


class Inputs(SimpleNamespace):
    """What a loss of a test reads: the fields of the batch, ``p`` and ``t`` (constants), ``memory``, ``config``; and ``remember`` and
    ``buffers``, which it fills with new values of the memory and of statistics that no gradient moves."""

    def bellman(self, value):
        """``r + gamma^n (1 - d) value`` of quantiles ``[B, M]``, without derivative."""
        return stop(self.reward[:, None] + (self.discount * (1 - self.terminal))[:, None] * value)

    def critics(self, p: Arrays, s, a, members: int | None = None, name: str = "critic") -> list[Value]:
        """Return the members' values at continuous actions."""
        kind = self.config.q_function.type if hasattr(self.config, "q_function") else "mean"
        return [member(p, f"{name}.{i}", kind, s, a) for i in range(members or self.config.n_critics)]

    def loss_of(self, values: list[Value], y, discrete=False):
        """Return the sum over members of the batch mean of the error."""
        return sum(value.error(y, discrete) for value in values)


def replay(trace: Trace, plan: Callable[[int], list[Move | Follow | Clamp | Rewrite]], targets: tuple[str, ...]) -> None:
    """Compare the learner's updates with the plan of each update ``k``."""
    random = np.random.default_rng(3)
    p, memory = dict(trace.p), None
    t = {n: v for n, v in p.items() if n.split(".")[0] in targets}
    _same(trace.t, t, "targets at the start")
    moments: dict[str, dict[str, Any]] = {}
    for k in range(trace.updates):
        seen = iter(trace.seen[k])
        planned = plan(k)
        assert [s.step for s in trace.seen[k]] == [m.name for m in planned if isinstance(m, Move)], f"steps of update {k}"
        for move in planned:
            if isinstance(move, Follow):
                chosen = {n: rate for network, rate in move.rates.items() for n in t if n.split(".")[0] == network}
                assert {n.split(".")[0] for n in chosen} == set(move.rates)
                t = {n: (1 - chosen[n]) * v + chosen[n] * p[n] if n in chosen else v for n, v in t.items()}
                continue
            if isinstance(move, Clamp):
                p[move.name] = np.clip(p[move.name], move.low, move.high)
                continue
            if isinstance(move, Rewrite):
                following = trace.seen[k][0].memory
                memory = move.change({n: np.zeros_like(v) for n, v in following.items()} if memory is None else memory, p, following)
                continue
            where = f"update {k}, step {move.name}"
            s = next(seen)
            memory = {n: np.zeros_like(v) for n, v in s.memory.items()} if memory is None else memory
            _same(s.p, p, where)
            _same(s.t, t, where)
            _same(s.memory, memory, where)
            mine = [n for n in p if n.split(".")[0] in move.nets and ".running_" not in n]
            assert sorted(s.gradients) == sorted(mine), where
            given = {"config": trace.config, "p": s.p, "t": s.t, "memory": s.memory, "metrics": s.metrics, **s.batch}
            x = Inputs(remember={}, buffers={}, **given)
            value = move.loss(dict(s.p), x)
            np.testing.assert_allclose(s.value, np.real(value), rtol=1e-9, atol=1e-12, err_msg=where)
            memory = memory | {n: np.real(v) for n, v in x.remember.items()}
            buffers = dict(x.buffers)
            for name in mine:
                direction = random.normal(size=s.p[name].shape)
                expected = np.imag(move.loss({**s.p, name: s.p[name] + 1j * H * direction}, x)) / H
                found = np.sum(s.gradients[name] * direction)
                size = np.linalg.norm(s.gradients[name]) * np.linalg.norm(direction)
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10 * size + 1e-14, err_msg=f"{where}: gradient of {name}")
            state = moments.setdefault(move.moments or move.name, {"count": 0, "m": {}, "v": {}})
            state["count"] += 1
            for name in mine:
                p[name] = _adam(state, name, p[name], s.gradients[name], move.rate, **move.adam)
            p |= buffers
        _same(trace.after[k][0], p, f"parameters after update {k}")
        _same(trace.after[k][1], t, f"targets after update {k}")


def _adam(state, name, value, gradient, rate, eps=1e-8, weight_decay=0.0):
    """One step of Adam (Kingma & Ba 2015) with the weight decay in the gradient."""
    gradient = gradient + weight_decay * value
    state["m"][name] = 0.9 * state["m"].get(name, 0.0) + 0.1 * gradient
    state["v"][name] = 0.999 * state["v"].get(name, 0.0) + 0.001 * gradient**2
    m = state["m"][name] / (1 - 0.9 ** state["count"])
    v = state["v"][name] / (1 - 0.999 ** state["count"])
    return value - rate * m / (np.sqrt(v) + eps)


def _same(found: Arrays, expected: Arrays, where: str) -> None:
    assert sorted(found) == sorted(expected), where
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=f"{where}: {name}")
