"""The kinds of Q functions, one class each: the layers that an ensemble puts on its encoders' features, and their values.

Shapes: N members, ``...`` the batch ``B`` (or candidates and batch ``K, B``), n discrete actions, M quantiles, F features.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from offrld.nets import q_plugins
from offrld.nets.context import context_of
from offrld.nets.encoders import Encoder, Network, Observation, Params, View, build
from offrld.nets.heads import headed
from offrld.nets.linear import Linear
from offrld.nets.q_settings import QFunction
from offrld.nets.values import Means, PackageNumbers, Proposal, ProposedQuantiles, Quantiles, Values


class Encoders:
    """The encoders of an ensemble's members: one ``NAME.i.encoder`` per member, or with ``shared`` one ``NAME.encoder`` for all."""

    def __init__(self, name: str, members: int, view: View, encoder: Encoder, action_size: int, *, shared: bool) -> None:
        self._prefix, self._shared = f"{name}.encoder.", shared
        self.each: list[Network]
        if shared:
            self.each = [build(f"{name}.encoder", view, encoder, action_size)] * members
        else:
            self.each = [build(f"{name}.{i}.encoder", view, encoder, action_size) for i in range(members)]

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params: Params = {}
        for encoder in self.each[:1] if self._shared else self.each:
            params |= encoder.init(generator, dtype)
        return params

    def features(self, params: Params, observation: Observation, action: Tensor | None, members: slice) -> list[Tensor]:
        """Return features ``[..., F]`` for each of the selected members."""
        if not self._shared:
            return [encoder(params, observation, action) for encoder in self.each[members]]
        if len(self.each) > 1 and torch.is_grad_enabled():
            params = {**params, **_gradient_divided(params, self._prefix, len(self.each))}
        return [self.each[0](params, observation, action)] * len(self.each[members])

    def headed(self, params: Params, heads: list[Linear], observation: Observation, action: Tensor | None, members: slice) -> Tensor:
        """Return the output of each member's head on its features, ``[N, ..., outputs]``."""
        if self._shared:
            features = self.features(params, observation, action, members)
            return _stack([head(params, h) for head, h in zip(heads, features, strict=True)])
        pairs = zip(self.each[members], heads, strict=True)
        return _stack([headed(params, encoder, head, observation, action) for encoder, head in pairs])


class Kind(ABC):
    """How the members of an ensemble represent values.

    Args:
        name: name of the ensemble; the layers of member i are ``NAME.i.LAYER``.
        features: feature size of each member's encoder.
        actions: number of discrete actions, all of which a member evaluates at once; None: the continuous action is an input.
    """

    def __init__(self, name: str, q: QFunction, features: Sequence[int], actions: int | None) -> None:
        self.name, self.q, self.actions = name, q, actions
        self.members = [self.layers(f"{name}.{i}", size) for i, size in enumerate(features)]

    @abstractmethod
    def layers(self, name: str, features: int) -> tuple[Linear, ...]:
        """Build the layers of one member, the head first; they draw their parameters in this order."""

    @abstractmethod
    def values(self, params: Params, encoders: Encoders, observation: Observation, action: Tensor | None, members: slice) -> Values:
        """Return the values of the selected members."""

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params: Params = {}
        for layer in itertools.chain(*self.members):
            params |= layer.init(generator, dtype)
        return params

    def _head(self, name: str, features: int, numbers: int) -> Linear:
        """Build a layer with ``numbers`` outputs, per discrete action if actions are discrete."""
        return Linear(f"{name}.head", features, numbers * (self.actions or 1))

    def _numbers(self, params: Params, encoders: Encoders, observation: Observation, action: Tensor | None, members: slice) -> Tensor:
        """Return the outputs of the heads: ``[N, ..., (n,) M]``."""
        outputs = encoders.headed(params, [head for head, *_ in self.members[members]], observation, action, members)
        return outputs if self.actions is None else outputs.unflatten(-1, (self.actions, -1))


class MeanKind(Kind):
    """One number, the mean of the returns. As in the papers, errors are squared for continuous actions and Huber for discrete ones."""

    def layers(self, name: str, features: int) -> tuple[Linear, ...]:
        return (self._head(name, features, 1),)

    def values(self, params: Params, encoders: Encoders, observation: Observation, action: Tensor | None, members: slice) -> Values:
        outputs = encoders.headed(params, [head for (head,) in self.members[members]], observation, action, members)
        return Means.of(outputs.squeeze(-1), huber=False) if self.actions is None else Means.of(outputs, huber=True)


class QuantileKind(Kind):
    """Quantiles at fixed fractions, the midpoints of M equal intervals (Dabney et al. 2017, QR-DQN)."""

    def layers(self, name: str, features: int) -> tuple[Linear, ...]:
        return (self._head(name, features, self.q.quantiles),)

    def values(self, params: Params, encoders: Encoders, observation: Observation, action: Tensor | None, members: slice) -> Values:
        quantiles = self._numbers(params, encoders, observation, action, members)
        count = quantiles.shape[-1]
        steps = torch.arange(count, dtype=quantiles.dtype, device=quantiles.device)
        return Quantiles(quantiles.mean(-1), quantiles, (steps + 0.5) / count)


class PackageKind(Kind):
    """Numbers whose meaning an installed package defines (see `offrld.nets.q_plugins`)."""

    def layers(self, name: str, features: int) -> tuple[Linear, ...]:
        return (self._head(name, features, self.q.quantiles),)

    def values(self, params: Params, encoders: Encoders, observation: Observation, action: Tensor | None, members: slice) -> Values:
        numbers = self._numbers(params, encoders, observation, action, members)
        package, options = q_plugins.load(self.q.type), self.q.options
        return PackageNumbers(package.mean(numbers, options), numbers, lambda mine, target: package.errors(mine, target, options))


class ImplicitQuantileKind(Kind):
    """Quantiles at fractions that are inputs (Dabney et al. 2018, IQN): random in a loss, evenly spaced for acting.

    ``NAME.i.embedding`` maps a fraction's cosines to a vector that multiplies the features.
    """

    def layers(self, name: str, features: int) -> tuple[Linear, ...]:
        return (self._head(name, features, 1), Linear(f"{name}.embedding", self.q.embed_size, features))

    def values(self, params: Params, encoders: Encoders, observation: Observation, action: Tensor | None, members: slice) -> Values:
        features = encoders.features(params, observation, action, members)
        h, context = features[0], context_of(params)
        if context is None:
            fractions = torch.linspace(0.0, 1.0, self.q.n_greedy_quantiles, dtype=h.dtype, device=h.device)  # [M]
            per_member = [fractions] * len(features)
        else:
            shape = (len(features), *h.shape[:-1], self.q.quantiles)
            fractions = context.uniform(f"{self.name}.fractions", shape, h)  # [N, ..., M]
            per_member = list(fractions.unbind(0))
        quantiles = self._curves(params, members, features, per_member)
        return Quantiles(quantiles.mean(-1), quantiles, fractions)

    def _curves(self, params: Params, members: slice, features: list[Tensor], fractions: list[Tensor]) -> Tensor:
        """Evaluate the members' quantile functions at fractions ``[M]`` or ``[..., M]``: ``[N, ..., (n,) M]``."""
        layers = zip(self.members[members], features, fractions, strict=True)
        curves = _stack([_curve(params, head, embedding, h, tau) for (head, embedding, *_), h, tau in layers])  # [N, ..., M, outputs]
        return curves.squeeze(-1) if self.actions is None else curves.transpose(-1, -2)


class ProposedQuantileKind(ImplicitQuantileKind):
    """Quantiles at fractions that a second network, ``NAME.i.proposal``, proposes (Yang et al. 2019, FQF)."""

    def layers(self, name: str, features: int) -> tuple[Linear, ...]:
        return (*super().layers(name, features), Linear(f"{name}.proposal", features, self.q.quantiles))

    def values(self, params: Params, encoders: Encoders, observation: Observation, action: Tensor | None, members: slice) -> Values:
        features = encoders.features(params, observation, action, members)
        proposals = [proposal for _, _, proposal in self.members[members]]
        logits = _stack([proposal(params, h.detach()) for proposal, h in zip(proposals, features, strict=True)])
        log_probability = F.log_softmax(logits, dim=-1)  # [N, ..., M]
        probability = log_probability.exp()
        fractions = probability.cumsum(-1)
        middles = (fractions - 0.5 * probability).detach()
        quantiles = self._curves(params, members, features, list(middles.unbind(0)))
        weight = probability.detach() if self.actions is None else probability.detach().unsqueeze(-2)

        def inner() -> Tensor:
            with torch.no_grad():
                return self._curves(params, members, features, list(fractions[..., :-1].unbind(0)))

        proposal = Proposal(fractions, inner, -(probability * log_probability).sum(-1), self.q.entropy_coeff)
        return ProposedQuantiles((weight * quantiles).sum(-1), quantiles, middles, proposal)


KINDS: dict[str, type[Kind]] = {"mean": MeanKind, "qr": QuantileKind, "iqn": ImplicitQuantileKind, "fqf": ProposedQuantileKind}


def kind_of(q: QFunction) -> type[Kind]:
    """Return the class that implements a Q function's type."""
    return KINDS.get(q.type, PackageKind)


def _curve(params: Params, head: Linear, embedding: Linear, features: Tensor, fractions: Tensor) -> Tensor:
    """Evaluate the quantile function of features ``[..., F]`` at fractions ``[M]`` or ``[..., M]``: ``[..., M, outputs]``."""
    frequencies = math.pi * torch.arange(1, embedding.inputs + 1, dtype=features.dtype, device=features.device)
    cosines = torch.cos(fractions.unsqueeze(-1) * frequencies)  # [..., M, E]
    embedded = torch.relu(embedding(params, cosines))  # [..., M, F]
    return head(params, features.unsqueeze(-2) * embedded)


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stack the tensors along a new first axis; a single tensor gives a view."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _gradient_divided(params: Params, prefix: str, by: int) -> Params:
    """Return the parameters under ``prefix`` with equal values but their gradient divided; gradients of inputs stay whole."""
    selected = {name: value for name, value in params.items() if name.startswith(prefix) and ".running_" not in name}
    return {name: value.detach() + (value - value.detach()) / by for name, value in selected.items()}
