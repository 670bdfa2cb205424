"""The network that an export is made from and compared with: its inputs and outputs, what it gives on the observations of the check.

Every export knows the policy by this alone: named inputs (the observation's fields, then what a policy that remembers takes beside them)
and outputs (the action, then the next context), in this order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import nn

from offrl.errors import CheckFailed
from offrl.memory import CONTEXT, NEXT
from offrld.export import parity
from offrld.export.parity import BATCH_SIZES, TOLERANCE, WINDOW_BATCH_SIZES, ObservationSpec

TAKEN = f"{NEXT}{CONTEXT}action"  # output: the actions that were taken, the newest last
OBSERVATION = "observation"  # name of the input if the dataset has one observation field


class EpisodeInput(Protocol):
    """An input beside the observation, as `offrld.engine.learner.sequence_policy.EpisodeInput`."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def low(self) -> Any: ...
    @property
    def high(self) -> Any: ...
    @property
    def field(self) -> str | None: ...


class Remembering(Protocol):
    """What a policy that remembers has beside its ``forward``."""

    @property
    def episode_inputs(self) -> Mapping[str, EpisodeInput]: ...
    @property
    def context_size(self) -> int: ...
    @property
    def target_return(self) -> float: ...


def outputs(policy: Any, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The action, and what else the policy gives."""
    given = call(policy, inputs)
    return given if isinstance(given, tuple) else (given,)


def call(function: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
    """``function`` of the inputs: by position where there is only the observation, else by name."""
    return function(inputs[OBSERVATION]) if list(inputs) == [OBSERVATION] else function(**inputs)


def on_cpu(module: nn.Module) -> nn.Module:
    """The module itself, or a copy where some of it lies on another device: the parity check is against torch on the CPU."""
    tensors = [*module.parameters(), *module.buffers()]
    return module if all(t.device.type == "cpu" for t in tensors) else copy.deepcopy(module).to("cpu")


# ------------------------------------------------------------------------------------------------------------------ inputs
def observation_specs(observation: Any, samples: Any) -> dict[str, ObservationSpec]:
    """The inputs that are observation fields; for arguments see `offrld.export.onnx.export_policy`."""
    if isinstance(observation, Mapping):
        return {name: ObservationSpec.of(value, None if samples is None else samples[name]) for name, value in observation.items()}
    return {OBSERVATION: ObservationSpec.of(observation, samples)}


def episode_specs(module: nn.Module, fields: Mapping[str, ObservationSpec]) -> dict[str, ObservationSpec]:
    """The inputs beside the observation of a policy that remembers; those that hold observations have the range of their field."""
    specs: dict[str, ObservationSpec] = {}
    for name, described in module.episode_inputs.items() if remembers(module) else ():
        if name in fields:
            message = f"an observation field is called {name!r}, as is an input of every transformer's policy"
            raise CheckFailed(message, hint="rename the field in the dataset")
        ranged = described if described.field is None else fields[described.field]
        bounded = ranged.low is not None and ranged.high is not None
        bounds = (np.asarray(ranged.low), np.asarray(ranged.high)) if bounded else ()
        specs[name] = ObservationSpec(np.dtype(described.dtype), described.shape, *bounds)
    return specs


def remembers(module: nn.Module) -> TypeGuard[Remembering]:
    """Whether the policy takes and gives the context of an episode."""
    return hasattr(module, "episode_inputs")


def following(specs: Mapping[str, ObservationSpec]) -> list[str]:
    """Names of the outputs that carry the next context."""
    return [NEXT + name for name in specs if name.startswith(CONTEXT)]


def example(specs: Mapping[str, ObservationSpec]) -> dict[str, torch.Tensor]:
    """Inputs to trace with. Not a batch of 1: that is taken for a constant."""
    return {name: torch.from_numpy(spec.draw(np.random.default_rng(0), 2, 1.0)) for name, spec in specs.items()}


# ------------------------------------------------------------------------------------------------------------------- check
class Reference:
    """What torch gives on the observations of the check.

    Attributes:
        specs: all inputs.
        batch_sizes: of the check.
        beyond: whether there are observations beyond the data's range among them.
        inputs: by name, of each batch.
        actions: ``[B, A]`` or ``[B]`` of each batch.
        following: the next context, by output name, of each batch.
        scores: ``[B, n]`` of each batch, of a discrete module that offers them.
        candidates: actions ``[K, B, A]`` and scores ``[K, B]`` of each batch, of a module that takes the best of several.
        context: ``length`` and ``target_return`` of a policy that remembers.
    """

    def __init__(self, module: nn.Module, specs: Mapping[str, ObservationSpec], discrete: bool) -> None:
        """Raises `CheckFailed` where the network gives NaN, or actions of another form than is due."""
        self.specs, self.discrete = specs, discrete
        self.context = {"length": module.context_size, "target_return": module.target_return} if remembers(module) else None
        self.batch_sizes = WINDOW_BATCH_SIZES if remembers(module) else BATCH_SIZES
        self.inputs = parity.observations(specs, self.batch_sizes)
        given = [[value.numpy() for value in outputs(module, tensors_of(inputs))] for inputs in self.inputs]
        scored = discrete and hasattr(module, "scores")
        scores = [call(module.scores, tensors_of(inputs)).numpy() for inputs in self.inputs] if scored else None
        within, judged = len(self.batch_sizes), scores or [each[0] for each in given]
        self.beyond = len(self.inputs) > within and all(np.isfinite(array).all() for array in judged[within:])
        if not self.beyond:  # what no data looks like may overflow on its way through a network that is in order
            self.inputs, given, scores = self.inputs[:within], given[:within], scores and scores[:within]
        self.actions, self.scores = [each[0] for each in given], scores
        self.following = {name: [each[1 + i] for each in given] for i, name in enumerate(following(specs))}
        offered = (
            None
            if discrete or not hasattr(module, "candidates")
            else [call(module.candidates, tensors_of(inputs)) for inputs in self.inputs]
        )
        chosen_from = [tuple(part.numpy() for part in each) for each in offered or () if each is not None]
        self.candidates = chosen_from or None
        self.whole = not discrete and getattr(getattr(module, "space", None), "whole", False)
        self.exact = [call(module.unrounded, tensors_of(inputs)).numpy() for inputs in self.inputs] if self.whole else None
        dtype, ndim = self.actions[0].dtype, self.actions[0].ndim
        if (dtype, ndim) != ((np.int64, 1) if discrete else (np.float32, 2)):
            shown = f"{dtype} [{', '.join('B' + 'A' * (ndim - 1))}]"
            raise CheckFailed(f"the policy gives {shown}", hint=f"expected {'int64 [B]' if discrete else 'float32 [B, A]'}")
        if not all(np.isfinite(x).all() for x in [*self.actions, *(self.scores or [])]):
            raise _not_finite(module, specs)

    def difference(self, given: Sequence[Sequence[np.ndarray]], scores: list[np.ndarray] | None = None) -> float:
        """The largest difference of what an export gives.

        Args:
            given: its outputs, the action and the next context, on each batch of ``inputs``.
            scores: its scores on each, where it has them.
        """
        actions = [each[0] for each in given]
        if self.discrete:
            difference = parity.choice_difference(self.actions, actions, self.scores)
        elif self.exact is not None:
            difference = parity.rounded_difference(self.exact, actions)
        elif self.candidates is not None:
            difference = parity.best_difference(self.actions, actions, self.candidates)
        else:
            difference = parity.largest_difference(self.actions, actions)
        if scores is not None and self.scores is not None:
            difference = max(difference, parity.score_difference(self.scores, scores))
        for i, (name, expected) in enumerate(self.following.items()):
            # The context holds the action that was taken; a tie that went the other way is not a difference there either.
            chosen = (self.discrete and all(x.dtype == np.int64 and x.ndim == 2 for x in expected)) or (self.whole and name == TAKEN)
            difference = max(difference, parity.context_difference(expected, [each[1 + i] for each in given], up_to_last=chosen))
        return difference


def differs(difference: float, reference: Reference) -> CheckFailed:
    """The error of an export that is not the network."""
    count = sum(len(actions) for actions in reference.actions)
    return CheckFailed(
        f"the exported policy differs from the network by {difference:.3g}, more than {TOLERANCE:g}, on {count} observations "
        f"({_ranges(reference.specs)})",
        hint="the policy must be deterministic: no dropout in training mode, no random numbers in forward",
    )


def _not_finite(module: nn.Module, specs: Mapping[str, ObservationSpec]) -> CheckFailed:
    """The error of a network that gives NaN or infinity on observations like the data's: because it is broken, or because of these."""
    tensors = (*module.parameters(), *module.buffers())
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point()):
        message = "the network has parameters that are NaN or infinite: its training has diverged"
        return CheckFailed(message, hint="see the losses: offrl fetch JOB --kind metrics")
    return CheckFailed(
        f"the network gives NaN or infinite values on observations in the data's range ({_ranges(specs)})",
        hint="scale the observations: --set observation_scaler=standard",
    )


def _ranges(specs: Mapping[str, ObservationSpec]) -> str:
    """The inputs and the range of each, for messages."""
    shown = []
    for name, spec in specs.items():
        bounds = ""
        if spec.low is not None and spec.high is not None and spec.low.size:
            bounds = f" from {np.min(spec.low):.4g} to {np.max(spec.high):.4g}"
        shown.append(f"{name} {spec.dtype}{bounds}")
    return ", ".join(shown)


def tensors_of(inputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The same as tensors."""
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def reason(error: BaseException) -> str:
    """The first line of what is at the bottom of an error of torch, which comes with pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"
