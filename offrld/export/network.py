"""The network behind an export: its inputs, its outputs, and its results on the observations of the parity check.

Exporters see a policy only through this module. Its inputs have names: first the observation's fields, then the further inputs of a policy
that remembers. Its outputs are the action, then the next context.
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

TAKEN = f"{NEXT}{CONTEXT}action"  # output: the past actions, the newest last
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
    """Return the policy's action and its other outputs."""
    results = call(policy, inputs)
    return results if isinstance(results, tuple) else (results,)


def call(function: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
    """Call ``function`` with the inputs: by position if the observation is the only one, else by name."""
    return function(inputs[OBSERVATION]) if list(inputs) == [OBSERVATION] else function(**inputs)


def on_cpu(module: nn.Module) -> nn.Module:
    """Return the module, or a copy on the CPU if a part of it is on another device: the parity check runs torch on the CPU."""
    tensors = [*module.parameters(), *module.buffers()]
    return module if all(t.device.type == "cpu" for t in tensors) else copy.deepcopy(module).to("cpu")


# ------------------------------------------------------------------------------------------------------------------ inputs
def observation_specs(observation: Any, samples: Any) -> dict[str, ObservationSpec]:
    """Describe the inputs that are observation fields; for the arguments see `offrld.export.onnx.export_policy`."""
    if isinstance(observation, Mapping):
        return {name: ObservationSpec.of(value, None if samples is None else samples[name]) for name, value in observation.items()}
    return {OBSERVATION: ObservationSpec.of(observation, samples)}


def episode_specs(module: nn.Module, fields: Mapping[str, ObservationSpec]) -> dict[str, ObservationSpec]:
    """Describe the further inputs of a policy that remembers; an input that holds observations has the range of its field.

    Raises `CheckFailed` if an observation field has the name of such an input.
    """
    specs: dict[str, ObservationSpec] = {}
    for name, described in module.episode_inputs.items() if remembers(module) else ():
        if name in fields:
            message = f"an observation field is called {name!r}, like an input of every transformer's policy"
            raise CheckFailed(message, hint="rename the field in the dataset")
        ranged = described if described.field is None else fields[described.field]
        bounded = ranged.low is not None and ranged.high is not None
        bounds = (np.asarray(ranged.low), np.asarray(ranged.high)) if bounded else ()
        specs[name] = ObservationSpec(np.dtype(described.dtype), described.shape, *bounds)
    return specs


def remembers(module: nn.Module) -> TypeGuard[Remembering]:
    """Return whether the policy takes and returns the context of an episode."""
    return hasattr(module, "episode_inputs")


def following(specs: Mapping[str, ObservationSpec]) -> list[str]:
    """Return the names of the outputs that hold the next context."""
    return [NEXT + name for name in specs if name.startswith(CONTEXT)]


def example(specs: Mapping[str, ObservationSpec]) -> dict[str, torch.Tensor]:
    """Return inputs to trace with. The batch is not 1, which the tracer would treat as a constant."""
    return {name: torch.from_numpy(spec.draw(np.random.default_rng(0), 2, 1.0)) for name, spec in specs.items()}


# ------------------------------------------------------------------------------------------------------------------- check
class Reference:
    """The results of torch on the observations of the parity check.

    Attributes:
        specs: all inputs.
        batch_sizes: sizes of the batches.
        beyond: whether some batches reach beyond the data's range.
        inputs: for each batch its inputs by name.
        actions: for each batch ``[B, A]`` or ``[B]``.
        following: the next context by output name, for each batch.
        scores: for each batch ``[B, n]``; None unless the module is discrete and offers them.
        candidates: for each batch actions ``[K, B, A]`` and scores ``[K, B]``; None unless the module takes the best of several.
        exact: for each batch the actions before rounding; None unless actions are whole numbers.
        context: ``length`` and ``target_return`` of a policy that remembers, else None.
    """

    def __init__(self, module: nn.Module, specs: Mapping[str, ObservationSpec], discrete: bool) -> None:
        """Run the network. Raises `CheckFailed` if it returns NaN, or actions of an unexpected dtype or shape."""
        self.specs, self.discrete = specs, discrete
        self.context = {"length": module.context_size, "target_return": module.target_return} if remembers(module) else None
        self.batch_sizes = WINDOW_BATCH_SIZES if remembers(module) else BATCH_SIZES
        self.inputs = parity.observations(specs, self.batch_sizes)
        results = [[value.numpy() for value in outputs(module, tensors_of(inputs))] for inputs in self.inputs]
        scored = discrete and hasattr(module, "scores")
        scores = [call(module.scores, tensors_of(inputs)).numpy() for inputs in self.inputs] if scored else None
        within, judged = len(self.batch_sizes), scores or [action for action, *_ in results]
        self.beyond = len(self.inputs) > within and all(np.isfinite(array).all() for array in judged[within:])
        if not self.beyond:  # a sound network may overflow on inputs that are unlike any data
            self.inputs, results, scores = self.inputs[:within], results[:within], scores and scores[:within]
        self.actions, self.scores = [action for action, *_ in results], scores
        self.following = {name: [batch[1 + i] for batch in results] for i, name in enumerate(following(specs))}
        offered = (
            None
            if discrete or not hasattr(module, "candidates")
            else [call(module.candidates, tensors_of(inputs)) for inputs in self.inputs]
        )
        self.candidates = [(actions.numpy(), scores.numpy()) for actions, scores in filter(None, offered or ())] or None
        self.whole = not discrete and getattr(getattr(module, "space", None), "whole", False)
        self.exact = [call(module.unrounded, tensors_of(inputs)).numpy() for inputs in self.inputs] if self.whole else None
        dtype, ndim = self.actions[0].dtype, self.actions[0].ndim
        if (dtype, ndim) != ((np.int64, 1) if discrete else (np.float32, 2)):
            shown = f"{dtype} [{', '.join('B' + 'A' * (ndim - 1))}]"
            raise CheckFailed(f"the policy's action is {shown}", hint=f"expected {'int64 [B]' if discrete else 'float32 [B, A]'}")
        if not all(np.isfinite(x).all() for x in [*self.actions, *(self.scores or [])]):
            raise _not_finite(module, specs)

    def difference(self, results: Sequence[Sequence[np.ndarray]], scores: list[np.ndarray] | None = None) -> float:
        """Return the largest difference between an export's results and torch's.

        Args:
            results: for each batch of ``inputs`` the export's outputs: the action and the next context.
            scores: for each batch its scores, if it has any.
        """
        actions = [batch[0] for batch in results]
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
            # The context holds the action: a tie that went the other way is not a difference there either.
            chosen = (self.discrete and all(x.dtype == np.int64 and x.ndim == 2 for x in expected)) or (self.whole and name == TAKEN)
            difference = max(difference, parity.context_difference(expected, [batch[1 + i] for batch in results], up_to_last=chosen))
        return difference


def differs(difference: float, reference: Reference) -> CheckFailed:
    """Return the error for an export that does not compute what the network does."""
    count = sum(len(actions) for actions in reference.actions)
    return CheckFailed(
        f"the exported policy differs from the network by {difference:.3g}, more than {TOLERANCE:g}, on {count} observations "
        f"({_ranges(reference.specs)})",
        hint="the policy must be deterministic: no dropout in training mode, no random numbers in forward",
    )


def _not_finite(module: nn.Module, specs: Mapping[str, ObservationSpec]) -> CheckFailed:
    """Return the error for NaN or infinity in the data's range: either the parameters are broken, or the observations too large."""
    tensors = (*module.parameters(), *module.buffers())
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point()):
        message = "the network has parameters that are NaN or infinite: its training has diverged"
        return CheckFailed(message, hint="see the losses: offrl fetch JOB --kind metrics")
    return CheckFailed(
        f"the network gives NaN or infinite values on observations in the data's range ({_ranges(specs)})",
        hint="scale the observations: --set observation_scaler=standard",
    )


def _ranges(specs: Mapping[str, ObservationSpec]) -> str:
    """Describe the inputs and their ranges, for messages."""
    shown = []
    for name, spec in specs.items():
        bounds = ""
        if spec.low is not None and spec.high is not None and spec.low.size:
            bounds = f" from {np.min(spec.low):.4g} to {np.max(spec.high):.4g}"
        shown.append(f"{name} {spec.dtype}{bounds}")
    return ", ".join(shown)


def tensors_of(inputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Convert arrays to tensors."""
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def reason(error: BaseException) -> str:
    """Return the first line of an error's root cause: torch adds pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"
