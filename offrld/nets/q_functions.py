"""Q functions in ensembles, distributional or not, and the state-value function.

Members are separate networks, not one batched product: on the CPU separate products of this size are the faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.errors import InvalidInput
from offrld.nets import q_plugins
from offrld.nets.context import context_of
from offrld.nets.encoders import Encoder, Observation, Params, View, build
from offrld.nets.encoders.vector import VectorEncoder
from offrld.nets.heads import EncodedLinear, headed
from offrld.nets.linear import Linear
from offrld.nets.values import Proposal, Reduction, Values
from offrld.settings import setting

DEFAULT_QUANTILES = {"mean": 1, "qr": 32, "iqn": 64, "fqf": 32}


@dataclass(frozen=True)
class QFunction:
    """How a Q function represents values.

    ``mean``: a number. ``qr``: quantiles at fixed fractions (Dabney et al. 2017, arXiv:1710.10044). ``iqn``: quantiles at random
    fractions, which are inputs (Dabney et al. 2018, arXiv:1806.06923). ``fqf``: quantiles at fractions that a second net proposes
    (Yang et al. 2019, arXiv:1911.02140). Installed packages may add further ones (see docs/extending.md).
    """

    type: str = setting(
        "mean", "what the Q function learns: the mean of the returns, or their quantiles", choices=q_plugins.types, probe="qr"
    )
    n_quantiles: int | None = setting(
        None,
        "quantiles that the loss is made of (none: 32 for qr and fqf, 64 for iqn)",
        unit="quantiles",
        low=1,
        high=10_000,
        only=("qr", "iqn", "fqf"),
        probe=8,
    )
    n_greedy_quantiles: int = setting(32, "evenly spaced quantiles to act by", unit="quantiles", low=2, high=10_000, only=("iqn",))
    embed_size: int = setting(64, "cosines that a fraction is embedded in", low=1, high=10_000, only=("iqn", "fqf"))
    entropy_coeff: float = setting(0.0, "weight of the entropy of the proposed fractions", low=0.0, only=("fqf",), probe=0.5)
    share_encoder: bool = setting(False, "one encoder for all members; its gradient is divided by their number")
    options: dict[str, Any] = setting({}, "what a Q function of an installed package takes beside these", only=q_plugins.plugins)

    def __post_init__(self) -> None:
        if self.options and self.type in q_plugins.BUILT_IN:
            raise InvalidInput(f"Q function {self.type!r} takes no options, got {self.options}", hint="leave options out")

    @property
    def quantiles(self) -> int:
        """The number of quantiles, its default resolved."""
        if self.type not in DEFAULT_QUANTILES:
            return q_plugins.size_of(self.type, self.options)
        return DEFAULT_QUANTILES[self.type] if self.type == "mean" or self.n_quantiles is None else self.n_quantiles


class _Member:
    """The layers of one Q function on its encoder's features: ``NAME.head``; iqn and fqf ``NAME.embedding``; fqf ``NAME.proposal``."""

    def __init__(self, name: str, features: int, outputs: int, q: QFunction) -> None:
        self.head = Linear(f"{name}.head", features, outputs * (1 if q.type in ("mean", "iqn", "fqf") else q.quantiles))
        self.embedding = Linear(f"{name}.embedding", q.embed_size, features) if q.type in ("iqn", "fqf") else None
        self.proposal = Linear(f"{name}.proposal", features, q.quantiles) if q.type == "fqf" else None

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params = self.head.init(generator, dtype)
        for layer in (self.embedding, self.proposal):
            if layer is not None:
                params |= layer.init(generator, dtype)
        return params

    def curve(self, params: Params, features: Tensor, fractions: Tensor) -> Tensor:
        """The quantile function at fractions ``[M]`` or ``[..., M]``, of features ``[..., F]``: ``[..., M, outputs]``."""
        frequencies = math.pi * torch.arange(1, self.embedding.inputs + 1, dtype=features.dtype, device=features.device)
        cosines = torch.cos(fractions.unsqueeze(-1) * frequencies)  # [..., M, E]
        embedded = torch.relu(self.embedding(params, cosines))  # [..., M, F]
        return self.head(params, features.unsqueeze(-2) * embedded)


class _Ensemble:
    """``members`` Q functions ``NAME.i`` with ``outputs`` values each; what continuous and discrete ones have in common.

    ``encoders`` holds the encoder of each member; with ``share_encoder`` they are one and the same.
    """

    def __init__(
        self, name: str, members: int, view: View, encoder: Encoder, q_function: QFunction, *, action_size: int, outputs: int
    ) -> None:
        self.name = name
        self._q, self._outputs = q_function, outputs
        self._continuous = action_size > 0  # one value per member, of the action that is given
        if q_function.share_encoder:
            self.encoders = [build(f"{name}.encoder", view, encoder, action_size)] * members
        else:
            self.encoders = [build(f"{name}.{i}.encoder", view, encoder, action_size) for i in range(members)]
        self._members = [_Member(f"{name}.{i}", e.feature_size, outputs, q_function) for i, e in enumerate(self.encoders)]

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params: Params = {}
        for encoder in self.encoders[:1] if self._q.share_encoder else self.encoders:
            params |= encoder.init(generator, dtype)
        for member in self._members:
            params |= member.init(generator, dtype)
        return params

    def _values(self, params: Params, observation: Observation, action: Tensor | None, members: slice) -> Values:
        """Of some members."""
        chosen = self._members[members]
        joins = action is not None and isinstance(observation, Tensor) and isinstance(self.encoders[0], VectorEncoder)
        if joins and observation.shape[:-1] == action.shape[:-1]:  # join them once, not once per member
            observation, action = torch.cat([observation, action], dim=-1), None
        if self._q.type in ("iqn", "fqf"):
            features = self._features(params, observation, action, members)
            return (self._implicit if self._q.type == "iqn" else self._proposed)(params, chosen, features)
        outputs = self._outputs_of(params, observation, action, members)
        if self._q.type == "mean":
            return Values.of_means(outputs.squeeze(-1), "squared") if self._continuous else Values.of_means(outputs, "huber")
        numbers = outputs if self._continuous else outputs.unflatten(-1, (self._outputs, -1))  # [N, ..., (n,) M]
        return self._fixed(numbers) if self._q.type == "qr" else self._of_package(numbers)

    def _outputs_of(self, params: Params, observation: Observation, action: Tensor | None, members: slice) -> Tensor:
        """What the heads of some members give, ``[N, ..., outputs]``."""
        chosen = self._members[members]
        if self._q.share_encoder:
            features = self._features(params, observation, action, members)
            return _stack([member.head(params, h) for member, h in zip(chosen, features, strict=True)])
        pairs = zip(self.encoders[members], chosen, strict=True)
        return _stack([headed(params, encoder, member.head, observation, action) for encoder, member in pairs])

    def _features(self, params: Params, observation: Observation, action: Tensor | None, members: slice) -> list[Tensor]:
        """Features ``[..., F]`` for each of some members."""
        if not self._q.share_encoder:
            return [encoder(params, observation, action) for encoder in self.encoders[members]]
        if len(self.encoders) > 1 and torch.is_grad_enabled():
            params = {**params, **_gradient_divided(params, f"{self.name}.encoder.", len(self.encoders))}
        return [self.encoders[0](params, observation, action)] * len(self.encoders[members])

    # --- Quantile regression: fixed fractions ---
    def _fixed(self, quantiles: Tensor) -> Values:
        count = quantiles.shape[-1]
        steps = torch.arange(count, dtype=quantiles.dtype, device=quantiles.device)
        return Values(quantiles.mean(-1), quantiles, "quantile", (steps + 0.5) / count)

    # --- A package's: what its numbers mean it says itself ---
    def _of_package(self, numbers: Tensor) -> Values:
        package, options = q_plugins.load(self._q.type), self._q.options
        return Values(package.mean(numbers, options), numbers, "own", own=lambda mine, target: package.errors(mine, target, options))

    # --- Implicit quantiles: random fractions in a loss, evenly spaced ones where there is no context ---
    def _implicit(self, params: Params, members: list[_Member], features: list[Tensor]) -> Values:
        h, context = features[0], context_of(params)
        if context is None:
            fractions = torch.linspace(0.0, 1.0, self._q.n_greedy_quantiles, dtype=h.dtype, device=h.device)  # [M]
            each = [fractions] * len(members)
        else:
            shape = (len(members), *h.shape[:-1], self._q.quantiles)
            fractions = context.uniform(f"{self.name}.fractions", shape, h)  # [N, ..., M]
            each = list(fractions.unbind(0))
        quantiles = self._curves(params, members, features, each)
        return Values(quantiles.mean(-1), quantiles, "quantile", fractions)

    # --- Fully parametrised quantiles: proposed fractions ---
    def _proposed(self, params: Params, members: list[_Member], features: list[Tensor]) -> Values:
        logits = _stack([member.proposal(params, h.detach()) for member, h in zip(members, features, strict=True)])
        log_probability = F.log_softmax(logits, dim=-1)  # [N, ..., M]
        probability = log_probability.exp()
        fractions = probability.cumsum(-1)
        middles = (fractions - 0.5 * probability).detach()
        quantiles = self._curves(params, members, features, list(middles.unbind(0)))
        weight = probability.detach() if self._continuous else probability.detach().unsqueeze(-2)

        def inner() -> Tensor:
            with torch.no_grad():
                return self._curves(params, members, features, list(fractions[..., :-1].unbind(0)))

        proposal = Proposal(fractions, inner, -(probability * log_probability).sum(-1), self._q.entropy_coeff)
        return Values((weight * quantiles).sum(-1), quantiles, "quantile", middles, proposal)

    def _curves(self, params: Params, members: list[_Member], features: list[Tensor], fractions: list[Tensor]) -> Tensor:
        """The quantile functions of the members: ``[N, ..., (n,) M]``."""
        out = _stack([m.curve(params, h, each) for m, h, each in zip(members, features, fractions, strict=True)])  # [N, ..., M, n]
        return out.squeeze(-1) if self._continuous else out.transpose(-1, -2)


class Critics(_Ensemble):
    """``N`` Q functions of observation and continuous action."""

    def __init__(
        self, name: str, members: int, view: View, action_size: int, encoder: Encoder, q_function: QFunction = QFunction()
    ) -> None:
        super().__init__(name, members, view, encoder, q_function, action_size=action_size, outputs=1)

    def values(self, params: Params, observation: Observation, action: Tensor, *, members: int | None = None) -> Values:
        """At observation ``[B, ...]`` and action ``[B, A]`` or ``[K, B, A]``; of the first ``members`` only, when given."""
        return self._values(params, observation, action, slice(members))

    def __call__(self, params: Params, observation: Observation, action: Tensor, *, members: int | None = None) -> Tensor:
        """Expected values, ``[N, B]`` or ``[N, K, B]``."""
        return self.values(params, observation, action, members=members).mean

    def target(self, params: Params, observation: Observation, action: Tensor, reduction: Reduction = "min", lam: float = 0.75) -> Tensor:
        """Values for a Bellman target, ``[B, M]`` or ``[K, B, M]``, without gradient: the ensemble reduced by `Values.reduce`."""
        with torch.no_grad():
            return self.values(params, observation, action).reduce(reduction, lam)

    def action_gradients(self, params: Params, observation: Observation, action: Tensor) -> Tensor:
        """``dQ_i(s, a)/da`` of each member, ``[N, B, A]``, itself differentiable with respect to ``params``."""

        def total(actions: Tensor) -> Tensor:
            each = [self._values(params, observation, a, slice(i, i + 1)).mean.sum() for i, a in enumerate(actions.unbind(0))]
            return torch.stack(each).sum()

        return torch.func.grad(total)(action.expand(len(self._members), *action.shape))


class DiscreteCritics(_Ensemble):
    """``N`` Q functions over ``n`` discrete actions."""

    def __init__(self, name: str, members: int, view: View, actions: int, encoder: Encoder, q_function: QFunction = QFunction()) -> None:
        super().__init__(name, members, view, encoder, q_function, action_size=0, outputs=actions)

    def values(self, params: Params, observation: Observation, *, members: int | None = None) -> Values:
        """Of every action; of the first ``members`` only, when given."""
        return self._values(params, observation, None, slice(members))

    def __call__(self, params: Params, observation: Observation, *, members: int | None = None) -> Tensor:
        """Expected values of every action, ``[N, B, n]``."""
        return self.values(params, observation, members=members).mean

    def target(
        self, params: Params, observation: Observation, action: Tensor | None, reduction: Reduction = "min", lam: float = 0.75
    ) -> Tensor:
        """Values for a Bellman target without gradient: of actions ``[B]`` ``[B, M]``, or of every action ``[B, n, M]``."""
        with torch.no_grad():
            values = self.values(params, observation)
            return (values if action is None else values.taken(action)).reduce(reduction, lam)


class ValueFunction:
    """A state-value function ``V(s)``: observation ``[B, ...]`` to ``[B]``."""

    def __init__(self, name: str, view: View, encoder: Encoder) -> None:
        self.name = name
        self._net = EncodedLinear(name, view, 1, encoder)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return self._net.init(generator, dtype)

    def __call__(self, params: Params, observation: Observation) -> Tensor:
        return self._net(params, observation).squeeze(-1)  # [B]


def _stack(tensors: list[Tensor]) -> Tensor:
    """Along a new first axis; of one tensor a view."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _gradient_divided(params: Params, prefix: str, by: int) -> Params:
    """The parameters under ``prefix``, the same in value, with their gradient divided; that of inputs passes as it is."""
    chosen = {name: value for name, value in params.items() if name.startswith(prefix) and ".running_" not in name}
    return {name: value.detach() + (value - value.detach()) / by for name, value in chosen.items()}
