"""Q functions in ensembles, and the state-value function.

Members are separate networks, not one batched product: on the CPU, separate products of this size are faster. `offrld.nets.q_kinds` defines
the kinds of Q functions, distributional or not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from offrld.nets.encoders import Encoder, Observation, Params, View
from offrld.nets.encoders.vector import VectorEncoder
from offrld.nets.heads import EncodedLinear
from offrld.nets.q_kinds import Encoders, kind_of
from offrld.nets.q_settings import QFunction
from offrld.nets.values import Reduction, Values


class _Ensemble:
    """``members`` Q functions ``NAME.i``: the code that continuous and discrete actions share.

    ``encoders`` holds each member's encoder; with ``share_encoder`` it is the same one for all.
    """

    def __init__(
        self, name: str, members: int, view: View, encoder: Encoder, q_function: QFunction, *, action_size: int, actions: int | None
    ) -> None:
        self.name = name
        self._encoders = Encoders(name, members, view, encoder, action_size, shared=q_function.share_encoder)
        self.encoders = self._encoders.each
        self._kind = kind_of(q_function)(name, q_function, [encoder.feature_size for encoder in self.encoders], actions)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return self._encoders.init(generator, dtype) | self._kind.init(generator, dtype)

    def _values(self, params: Params, observation: Observation, action: Tensor | None, members: slice) -> Values:
        """Return the values of the selected members."""
        vectors = isinstance(self.encoders[0], VectorEncoder)
        if vectors and action is not None and isinstance(observation, Tensor) and observation.shape[:-1] == action.shape[:-1]:
            observation, action = torch.cat([observation, action], dim=-1), None  # joined once, not once per member
        return self._kind.values(params, self._encoders, observation, action, members)


class Critics(_Ensemble):
    """``N`` Q functions of observation and continuous action."""

    def __init__(
        self, name: str, members: int, view: View, action_size: int, encoder: Encoder, q_function: QFunction = QFunction()
    ) -> None:
        super().__init__(name, members, view, encoder, q_function, action_size=action_size, actions=None)

    def values(self, params: Params, observation: Observation, action: Tensor, *, members: int | None = None) -> Values:
        """Return the values at observation ``[B, ...]`` and action ``[B, A]`` or ``[K, B, A]``; ``members``: of the first ones only."""
        return self._values(params, observation, action, slice(members))

    def __call__(self, params: Params, observation: Observation, action: Tensor, *, members: int | None = None) -> Tensor:
        """Return expected values, ``[N, B]`` or ``[N, K, B]``."""
        return self.values(params, observation, action, members=members).mean

    def target(self, params: Params, observation: Observation, action: Tensor, reduction: Reduction = "min", lam: float = 0.75) -> Tensor:
        """Return values for a Bellman target, ``[B, M]`` or ``[K, B, M]``, without gradient; `Values.reduce` reduces the ensemble."""
        with torch.no_grad():
            return self.values(params, observation, action).reduce(reduction, lam)

    def action_gradients(self, params: Params, observation: Observation, action: Tensor) -> Tensor:
        """Return ``dQ_i(s, a)/da`` of each member, ``[N, B, A]``; differentiable with respect to ``params``."""

        def total(actions: Tensor) -> Tensor:
            sums = [self._values(params, observation, a, slice(i, i + 1)).mean.sum() for i, a in enumerate(actions.unbind(0))]
            return torch.stack(sums).sum()

        return torch.func.grad(total)(action.expand(len(self.encoders), *action.shape))


class DiscreteCritics(_Ensemble):
    """``N`` Q functions over ``n`` discrete actions."""

    def __init__(self, name: str, members: int, view: View, actions: int, encoder: Encoder, q_function: QFunction = QFunction()) -> None:
        super().__init__(name, members, view, encoder, q_function, action_size=0, actions=actions)

    def values(self, params: Params, observation: Observation, *, members: int | None = None) -> Values:
        """Return the values of every action; ``members``: of the first ones only."""
        return self._values(params, observation, None, slice(members))

    def __call__(self, params: Params, observation: Observation, *, members: int | None = None) -> Tensor:
        """Return the expected values of every action, ``[N, B, n]``."""
        return self.values(params, observation, members=members).mean

    def target(
        self, params: Params, observation: Observation, action: Tensor | None, reduction: Reduction = "min", lam: float = 0.75
    ) -> Tensor:
        """Return values for a Bellman target, without gradient: ``[B, M]`` of actions ``[B]``, or ``[B, n, M]`` of every action."""
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
