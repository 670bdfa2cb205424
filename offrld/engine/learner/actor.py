"""The actor: actions, values and policies of trained seeds, in the environment's own units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrl_store import rng
from offrld.engine.batches.feed import KEY, KEYS, view_observation
from offrld.engine.definition.algorithm import Observation, Rollout, Windows
from offrld.engine.definition.run import Run
from offrld.engine.definition.space import Space
from offrld.engine.learner.policy_networks import PolicyModule
from offrld.engine.learner.sequence_policy import Returns, SequencePolicy
from offrld.nets import Params
from offrld.preprocess.scalers import scaled

STREAM = rng.stream_id("sample")


@dataclass(frozen=True)
class Played:
    """Actions drawn at ``B`` observations.

    Attributes:
        action: actions in the environment's units; ``drawn``: the same before bounds and scalers.
        log_prob, value: log probabilities of the drawn actions and values of the states, ``[B]`` each.
    """

    action: np.ndarray
    drawn: np.ndarray
    log_prob: np.ndarray
    value: np.ndarray


class Actor:
    """Act with the parameters of a run. In every method, ``seed`` is a trained seed, by default the first.

    Args:
        params: parameters of all seeds, with a leading seed axis; the actor of a run in training sees every update.
    """

    def __init__(self, run: Run, params: Params) -> None:
        self.run, self.params = run, params
        # Bounds of continuous actions, in float32 as policies act.
        self._bounds = None if run.space.discrete else tuple(bound.astype(np.float32) for bound in run.space.bounds)

    @property
    def actor(self) -> Actor:
        """This actor itself: both learners and actors have an ``actor``."""
        return self

    @property
    def space(self) -> Space:
        """The observation and action spaces."""
        return self.run.space

    # ---------------------------------------------------------------------------------------------------------- on arrays
    def predict(self, observations: Any, *, seed: int | None = None) -> np.ndarray:
        """Return greedy actions.

        Args:
            observations: ``[B, ...]`` in the environment's units, with frames stacked; a mapping by field if there are several.

        Returns:
            float32 ``[B, A]`` within the bounds, or int64 ``[B]``.

        Raises:
            InvalidInput: the shape is wrong (a single observation needs the batch dimension too), or the algorithm acts on windows of an
                episode.
        """
        with torch.no_grad():
            return self._chosen(self._acted(observations, seed))

    def sample(self, observations: Any, *, seed: int | None = None, step: int = 0) -> np.ndarray:
        """Draw actions from a stochastic policy; a deterministic policy returns its greedy actions.

        The random numbers depend only on ``(seed, step)``, so passing the environment's step makes a run repeatable.
        For other arguments, result and errors see `predict`.
        """
        with torch.no_grad():
            if self.run.algorithm.sample is not None:
                seen = self._seen(observations)
                noise = np.empty((_rows(seen), self.run.space.action_size), np.float32)
                rng.normal(self.run.seed(seed), step, STREAM, noise)
                numbers = torch.from_numpy(noise).to(self.run.device, self.run.dtype)
                return self._chosen(self.run.algorithm.sample(self.params_of(seed), self.run.config, self.run.nets, seen, numbers))
            scores = self._acted(observations, seed)
            if self.run.space.discrete and self.run.algorithm.draws_scores:
                uniform = np.empty(scores.shape, np.float32)
                rng.uniform(self.run.seed(seed), step, STREAM, uniform)
                # The argmax of logits plus Gumbel noise is a draw from their softmax. The uniform numbers may be 0, but never 1.
                scores = scores - torch.log(-torch.log1p(-torch.from_numpy(uniform).to(scores).clamp(min=1e-12)))
            return self._chosen(scores)

    def play(self, observations: Any, *, step: int, seed: int | None = None) -> Played:
        """Draw actions to learn from, with their log probabilities and the states' values; for arguments see `sample`.

        Raises:
            InvalidInput: the algorithm learns from a dataset, or the shape is wrong.
        """
        if self.run.algorithm.play is None:
            raise InvalidInput(f"{self.run.algorithm.name} does not learn from its own rollouts", hint="use sample")
        with torch.no_grad():
            seen = self._seen(observations)
            noise = np.empty((_rows(seen), self.run.space.action_size), np.float32)
            (rng.uniform if self.run.space.discrete else rng.normal)(self.run.seed(seed), step, STREAM, noise)
            numbers = torch.from_numpy(noise).to(self.run.device, self.run.dtype)
            drawn, log_prob, value = self.run.algorithm.play(self.params_of(seed), self.run.nets, seen, numbers)
            return Played(self._chosen(drawn), *(tensor.cpu().numpy() for tensor in (drawn, log_prob, value)))

    def rollout(self, observations: Any, step: int, **arrays: np.ndarray) -> Rollout:
        """Build the batch of update ``step`` from steps of a rollout.

        Args:
            observations: observations in the form that `play` takes.
            arrays: the fields ``[B, ...]`` of `Rollout`.
        """
        run = self.run
        if len(run.seeds) > 1:
            raise InvalidInput(f"a rollout belongs to one seed, but this learner has {len(run.seeds)}", hint="create one learner per seed")
        copies = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        tensors = {name: copy.to(run.device, run.dtype if copy.is_floating_point() else None) for name, copy in copies.items()}
        key = rng.integers(run.seeds[0], step, rng.stream_id(KEY), KEYS, 1)
        return Rollout(self._seen(observations), **tensors, noise={}, key=torch.from_numpy(key).to(run.device)[0])

    def predict_value(
        self, observations: Any, actions: Any, with_std: bool = False, *, seed: int | None = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return the expected discounted return of ``actions``, float32 ``[B]``: the ensemble's mean, in units of scaled rewards.

        Args:
            actions: ``[B, A]`` in the environment's units, or the numbers ``[B]`` of discrete actions.
            with_std: also return the (population) standard deviation over the members.

        Raises:
            InvalidInput: the algorithm learns no values, or the shape is wrong.
        """
        if self.run.algorithm.value is None:
            raise InvalidInput(f"{self.run.algorithm.name} learns no values of actions", hint="evaluate its policy with a fqe job")
        with torch.no_grad():
            seen = self._seen(observations)
            scaled_actions = self._actions(actions, _rows(seen))
            values = self.run.algorithm.value(self.params_of(seed), self.run.config, self.run.nets, seen, scaled_actions)  # [N, B]
            mean = values.mean(0).float().cpu().numpy()
            return (mean, values.std(0, correction=0).float().cpu().numpy()) if with_std else mean

    # ----------------------------------------------------------------------------------------------------------- as a whole
    def policy(self, seed: int | None = None, returns: Callable[[], Returns] | None = None) -> PolicyModule:
        """Return a seed's greedy policy as a module with inputs and outputs in the environment's units.

        The module is a copy; later training does not change it.

        Args:
            returns: computes the returns of the training episodes, from which a sequence model takes its default target.

        Raises:
            InvalidInput: the algorithm learns no policy, or ``returns`` is missing.
        """
        run = self.run
        if not run.algorithm.acts:
            raise InvalidInput(f"{run.algorithm.name} learns no policy", hint="give its job to an algorithm that takes it as an input")
        parts = (run.algorithm, run.config, run.nets)
        params = {name: value.cpu().to(torch.float32).clone() for name, value in self.params_of(seed).items()}
        if run.batch_type is not Windows:
            return PolicyModule(*parts, params, run.space, run.scalers)
        if returns is None:
            raise InvalidInput("a sequence model's default return comes from its dataset", hint="load it with its store")
        return SequencePolicy(*parts, params, run.space, run.scalers, returns())

    # ------------------------------------------------------------------------------------------------------------- plumbing
    def params_of(self, seed: int | None) -> Params:
        """Return the parameters of one seed."""
        position = self.run.seeds.index(self.run.seed(seed))
        return {name: value[position].detach() for name, value in self.params.items()}

    def _acted(self, observations: Any, seed: int | None) -> Tensor:
        """Return the result of `Algorithm.act`: scores, or continuous actions in [-1, 1]."""
        if not self.run.algorithm.acts:
            raise InvalidInput(f"{self.run.algorithm.name} learns no policy", hint="predict with the learner of the policy")
        seen = self._seen(observations)
        return self.run.algorithm.act(self.params_of(seed), self.run.config, self.run.nets, seen)

    def _chosen(self, scores: Tensor) -> np.ndarray:
        """Return the greedy discrete action, or the continuous action in the environment's units."""
        if self._bounds is None:
            return scores.argmax(dim=-1).cpu().numpy() if scores.is_floating_point() else scores.cpu().numpy()
        in_units = scores if self.run.scalers.action is None else self.run.scalers.action.reverse(scores)
        action = in_units.float().cpu().numpy()
        if self.run.space.whole:
            action = np.rint(action)
        return np.clip(action, *self._bounds)

    def _seen(self, observations: Any) -> Observation:
        """Check observations and convert them to the networks' inputs."""
        if self.run.batch_type is Windows:
            raise InvalidInput(
                f"{self.run.algorithm.name} acts on the last steps of an episode, not on single observations",
                hint="`learner.export(path)`, then `offrl.Policy(path)`, which keeps them",
            )
        inputs = self.run.space.inputs
        named = observations if isinstance(observations, Mapping) else {next(iter(inputs)): observations}
        if missing := [name for name in inputs if name not in named]:
            raise InvalidInput(f"observations lack the field {missing[0]!r}", hint=f"pass a mapping of {', '.join(inputs)}")
        fields = {name: _array(name, named[name], dtype, shape) for name, (dtype, shape) in inputs.items()}
        if len({len(array) for array in fields.values()}) > 1:
            raise InvalidInput(f"fields differ in length: { {name: len(array) for name, array in fields.items()} }")
        return view_observation(
            {name: torch.from_numpy(array) for name, array in fields.items()}, self.run.scalers, self.run.dtype, self.run.device
        )

    def _actions(self, actions: Any, rows: int) -> Tensor:
        discrete, size = self.run.space.discrete, self.run.space.action_size
        shape = () if discrete else (size,)
        array = _array("action", actions, "int64" if discrete else "float32", shape)
        if len(array) != rows:
            raise InvalidInput(f"{len(array)} actions for {rows} observations")
        if discrete and array.size and not 0 <= array.min() <= array.max() < size:
            raise InvalidInput(f"actions are the numbers 0 to {size - 1}, got {array.min()} to {array.max()}")
        if discrete:
            return torch.from_numpy(array).to(self.run.device)
        return scaled(self.run.scalers.action, torch.from_numpy(array), self.run.dtype, self.run.device)


def _array(name: str, values: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Convert ``values`` to an array ``[B, *shape]`` of the dtype, in writable memory."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError:
        raise InvalidInput(f"{name} is not an array of equal rows") from None
    if array.dtype.kind not in "iufb" or array.shape[1:] != shape or array.ndim != len(shape) + 1:
        hint = f"put it into a batch: {name}[None]" if array.shape == shape else "pass one row per observation"
        wanted = ", ".join(["B", *map(str, shape)])
        raise InvalidInput(f"{name} has shape {list(array.shape)} and dtype {array.dtype}; expected [{wanted}], {dtype}", hint=hint)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = np.array(array, dtype)  # a copy, because torch warns about read-only memory
    # A cast may lose digits, nothing else: integers must stay the same, and finite numbers finite.
    wrong = cast != array if cast.dtype.kind in "iub" else ~np.isfinite(cast)
    if wrong.any():
        value = array[wrong].ravel()[0]
        if not np.isfinite(value):
            raise InvalidInput(f"{name} has the value {value}", hint="a policy acts on finite numbers")
        raise InvalidInput(f"{name} has the value {value}, which does not fit {dtype}", hint=f"pass an array of {dtype}")
    return cast


def _rows(seen: Observation) -> int:
    return len(next(iter(seen.values())) if isinstance(seen, dict) else seen)
