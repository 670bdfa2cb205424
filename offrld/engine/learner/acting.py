"""What a learner answers: actions, values and policies, in the environment's own units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.errors import InvalidInput, Unknown
from offrl_store import EpisodeStore, rng
from offrld.engine.batches.feed import KEY, KEYS, Scalers, view_observation
from offrld.engine.definition.algorithm import Algorithm, Observation, Rollout, Windows
from offrld.engine.definition.space import Space
from offrld.engine.learner.loaded import Loaded
from offrld.engine.learner.policy_networks import PolicyModule
from offrld.engine.learner.sequence_policy import Returns, SequencePolicy
from offrld.engine.updates.train_state import TrainState
from offrld.nets import Params
from offrld.preprocess.scalers import scaled

STREAM = rng.stream_id("sample")


@dataclass(frozen=True)
class Played:
    """What was done at ``B`` observations: actions as the environment takes them, as they were drawn, and ``[B]`` each the log
    probabilities of these and the values of the states."""

    action: np.ndarray
    drawn: np.ndarray
    log_prob: np.ndarray
    value: np.ndarray


class Acting:
    """The part of `Learner` that acts. ``seed`` is everywhere a trained one, by default the first."""

    algorithm: Algorithm
    config: Any
    nets: Any
    space_: Space
    seeds: tuple[int, ...]
    step: int
    state: TrainState
    inputs: Mapping[str, Loaded]
    store: EpisodeStore | None
    _scalers: Scalers
    _training: np.ndarray
    _device: torch.device
    _dtype: torch.dtype
    _kind: type
    _returns: Returns | None = None  # of the training episodes, once a policy wants them

    # ---------------------------------------------------------------------------------------------------------- on arrays
    def predict(self, observations: Any, *, seed: int | None = None) -> np.ndarray:
        """Greedy actions.

        Args:
            observations: ``[B, ...]`` in the environment's units, frames stacked; a mapping of them for several fields.

        Returns:
            float32 ``[B, A]`` within the bounds, or int64 ``[B]``.

        Raises:
            InvalidInput: another shape (the batch dimension is needed for a single observation as well), or an algorithm that acts on
                windows of an episode.
        """
        with torch.no_grad():
            return self._chosen(self._acted(observations, seed))

    def sample(self, observations: Any, *, seed: int | None = None, step: int = 0) -> np.ndarray:
        """Actions drawn from a stochastic policy; those of a deterministic one are its greedy ones.

        The numbers behind the draw depend on ``(seed, step)`` alone: give the step of the environment, and a run can be repeated.
        Arguments, result and errors otherwise as of `predict`.
        """
        with torch.no_grad():
            if self.algorithm.sample is not None:
                seen = self._seen(observations)
                noise = np.empty((_rows(seen), self.space_.action_size), np.float32)
                rng.normal(self._seed(seed), step, STREAM, noise)
                given = torch.from_numpy(noise).to(self._device, self._dtype)
                return self._chosen(self.algorithm.sample(self._params(seed), self.config, self.nets, seen, given))
            scores = self._acted(observations, seed)
            if self.space_.discrete and self.algorithm.draws_scores:
                uniform = np.empty(scores.shape, np.float32)
                rng.uniform(self._seed(seed), step, STREAM, uniform)
                # The argmax of logits plus Gumbel noise is a draw from their softmax. A uniform number may be 0, but is never 1.
                scores = scores - torch.log(-torch.log1p(-torch.from_numpy(uniform).to(scores).clamp(min=1e-12)))
            return self._chosen(scores)

    def play(self, observations: Any, *, step: int, seed: int | None = None) -> Played:
        """Actions drawn to learn from, with what `Rollout` keeps of the moment; arguments as of `sample`.

        Raises:
            InvalidInput: an algorithm that learns from a dataset, or a wrong shape.
        """
        if self.algorithm.play is None:
            raise InvalidInput(f"{self.algorithm.name} does not learn from its own play", hint="use sample")
        with torch.no_grad():
            seen = self._seen(observations)
            noise = np.empty((_rows(seen), self.space_.action_size), np.float32)
            (rng.uniform if self.space_.discrete else rng.normal)(self._seed(seed), step, STREAM, noise)
            given = torch.from_numpy(noise).to(self._device, self._dtype)
            drawn, log_prob, value = self.algorithm.play(self._params(seed), self.nets, seen, given)
            return Played(self._chosen(drawn), *(each.cpu().numpy() for each in (drawn, log_prob, value)))

    def rollout(self, observations: Any, **taken: np.ndarray) -> Rollout:
        """A batch of rows that were played, for the present update; ``taken``: the arrays ``[B, ...]`` of `Rollout`, and observations as
        `play` got them."""
        if len(self.seeds) > 1:
            raise InvalidInput(f"a rollout is one seed's, this learner has {len(self.seeds)}", hint="make one for each seed")
        arrays = {name: torch.from_numpy(np.array(value)) for name, value in taken.items()}
        tensors = {name: each.to(self._device, self._dtype if each.is_floating_point() else None) for name, each in arrays.items()}
        key = rng.integers(self.seeds[0], self.step, rng.stream_id(KEY), KEYS, 1)
        return Rollout(self._seen(observations), **tensors, noise={}, key=torch.from_numpy(key).to(self._device)[0])

    def predict_value(
        self, observations: Any, actions: Any, with_std: bool = False, *, seed: int | None = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Expected discounted return of taking ``actions``, float32 ``[B]``: the mean over the ensemble, in the unit of scaled rewards.

        Args:
            actions: ``[B, A]`` in the environment's units, or ``[B]`` numbers of discrete ones.
            with_std: give the deviation over the members (of the population) beside it.

        Raises:
            InvalidInput: an algorithm that learns no values, or a wrong shape.
        """
        if self.algorithm.value is None:
            raise InvalidInput(f"{self.algorithm.name} learns no values of actions", hint="evaluate its policy with a fqe job")
        with torch.no_grad():
            seen = self._seen(observations)
            taken = self._taken_actions(actions, _rows(seen))
            values = self.algorithm.value(self._params(seed), self.config, self.nets, seen, taken)  # [N, B]
            mean = values.mean(0).float().cpu().numpy()
            return (mean, values.std(0, correction=0).float().cpu().numpy()) if with_std else mean

    # ----------------------------------------------------------------------------------------------------------- as a whole
    def policy(self, seed: int | None = None) -> PolicyModule:
        """The greedy policy of a trained seed as a module: environment's units in and out; a copy, so training goes on beside it."""
        if "policy" in self.inputs:
            return self.inputs["policy"].policy()
        if not self.algorithm.acts:
            raise InvalidInput(f"{self.algorithm.name} learns no policy", hint="give its job to an algorithm that takes it as an input")
        parts = (self.algorithm, self.config, self.nets)
        params = {name: value.cpu().to(torch.float32).clone() for name, value in self._params(seed).items()}
        if self._kind is not Windows:
            return PolicyModule(*parts, params, self.space_, self._scalers)
        return SequencePolicy(*parts, params, self.space_, self._scalers, self.returns)

    @property
    def returns(self) -> Returns:
        """Returns of the training episodes, which say what a sequence model is asked for; raises `InvalidInput` without a dataset."""
        if self._returns is None:
            if self.store is None:
                raise InvalidInput("a sequence model's default return comes from its dataset", hint="load it with its store")
            self._returns = Returns.of(self.store, self._training, self._scalers.reward)
        return self._returns

    def loaded(self, seed: int | None = None) -> Loaded:
        """A copy of a trained seed without the learner, as another run takes it (`inputs`, `start`)."""
        return Loaded.of(self, self._seed(seed))

    # ------------------------------------------------------------------------------------------------------------- plumbing
    def _seed(self, seed: int | None) -> int:
        if seed is not None and seed not in self.seeds:
            raise Unknown(f"seed {seed} was not trained", hint=f"trained: {', '.join(map(str, self.seeds))}")
        return self.seeds[0] if seed is None else seed

    def _params(self, seed: int | None) -> Params:
        position = self.seeds.index(self._seed(seed))
        return {name: value[position].detach() for name, value in self.state.params.items()}

    def _acted(self, observations: Any, seed: int | None) -> Tensor:
        """What `Algorithm.act` says."""
        if not self.algorithm.acts:
            raise InvalidInput(f"{self.algorithm.name} learns no policy", hint="predict with the learner of the policy")
        seen = self._seen(observations)
        return self.algorithm.act(self._params(seed), self.config, self.nets, seen)

    def _chosen(self, scores: Tensor) -> np.ndarray:
        """The greedy action of scores, or a continuous action in the environment's units."""
        if self.space_.discrete:
            return scores.argmax(dim=-1).cpu().numpy() if scores.is_floating_point() else scores.cpu().numpy()
        action = scores if self._scalers.action is None else self._scalers.action.reverse(scores)
        action = action.float().cpu().numpy()
        if self.space_.whole:
            action = np.rint(action)
        return np.clip(action, self.space_.low.astype(np.float32), self.space_.high.astype(np.float32))

    def _seen(self, observations: Any) -> Observation:
        """Observations, checked, as networks see them."""
        if self._kind is Windows:
            raise InvalidInput(
                f"{self.algorithm.name} acts on the last steps of an episode, not on single observations",
                hint="`learner.export(path)`, then `offrl.Policy(path)`, which keeps them",
            )
        inputs = self.space_.inputs
        given = observations if isinstance(observations, Mapping) else {next(iter(inputs)): observations}
        if missing := [name for name in inputs if name not in given]:
            raise InvalidInput(f"observations lack the field {missing[0]!r}", hint=f"give a mapping of {', '.join(inputs)}")
        fields = {name: _array(name, given[name], dtype, shape) for name, (dtype, shape) in inputs.items()}
        if len({len(array) for array in fields.values()}) > 1:
            raise InvalidInput(f"fields differ in length: { {name: len(array) for name, array in fields.items()} }")
        return view_observation({name: torch.from_numpy(array) for name, array in fields.items()}, self._scalers, self._dtype, self._device)

    def _taken_actions(self, actions: Any, rows: int) -> Tensor:
        discrete, size = self.space_.discrete, self.space_.action_size
        shape = () if discrete else (size,)
        array = _array("action", actions, "int64" if discrete else "float32", shape)
        if len(array) != rows:
            raise InvalidInput(f"{len(array)} actions for {rows} observations")
        if discrete and array.size and not 0 <= array.min() <= array.max() < size:
            raise InvalidInput(f"actions are the numbers 0 to {size - 1}, got {array.min()} to {array.max()}")
        if discrete:
            return torch.from_numpy(array).to(self._device)
        return scaled(self._scalers.action, torch.from_numpy(array), self._dtype, self._device)


def _array(name: str, given: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """``given`` as ``[B, *shape]``, writable memory of the dtype."""
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    try:
        array = np.asarray(given)
    except ValueError:
        raise InvalidInput(f"{name} is no array of equal rows") from None
    if array.dtype.kind not in "iufb" or array.shape[1:] != shape or array.ndim != len(shape) + 1:
        hint = f"put it into a batch: {name}[None]" if array.shape == shape else "give one row for each observation"
        wanted = ", ".join(["B", *map(str, shape)])
        raise InvalidInput(f"{name} is {array.dtype} of shape {list(array.shape)}, [{wanted}] of {dtype} is needed", hint=hint)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = np.array(array, dtype)  # a copy: torch warns of read-only memory
    # A cast may cost digits, nothing else: no whole number becomes another, and no finite number infinite.
    wrong = cast != array if cast.dtype.kind in "iub" else np.isinf(cast) & np.isfinite(array)
    if wrong.any():
        raise InvalidInput(f"{name} has the value {array[wrong].ravel()[0]}, which does not fit {dtype}", hint=f"give an array of {dtype}")
    return cast


def _rows(seen: Observation) -> int:
    return len(next(iter(seen.values())) if isinstance(seen, dict) else seen)
