"""Policies of ours where Stable-Baselines3 expects a model: anything that calls ``predict(obs, state, episode_start, deterministic)``.

The other way round needs no bridge: a loaded model is given to a collector as it is (`offrld.collect.as_behaviour`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl.policy import Policy


class SB3Wrapper:
    """Wraps a learner or an `offrl.Policy`.

        from stable_baselines3.common.evaluation import evaluate_policy
        mean, std = evaluate_policy(SB3Wrapper(learner), env)

    ``algo`` is what was wrapped; every other attribute is read from and written to it.
    """

    algo: Any

    def __init__(self, algo: Any) -> None:
        object.__setattr__(self, "algo", algo)
        object.__setattr__(self, "_step", 0)

    def predict(
        self, observation: Any, state: Any = None, mask: Any = None, deterministic: bool = True, *, episode_start: Any = None
    ) -> tuple[np.ndarray, None]:
        """Actions, and no state.

        Args:
            observation: one (as the wrapped one's space has it) or a batch, in the environment's units.
            state: not used.
            mask, episode_start: the older and the newer name of the flags of episode starts; not used.
            deterministic: greedy actions; else drawn ones, of a learner.

        Raises:
            InvalidInput: drawn actions of a policy file, which has only greedy ones; or a policy that remembers earlier steps.
        """
        algo = self.algo
        if isinstance(algo, Policy):
            if not deterministic:
                raise InvalidInput("a policy file is deterministic and cannot sample", hint="deterministic=True, or wrap the learner")
            if algo.frame_stack > 1 or algo.target_return is not None:
                raise InvalidInput("this policy remembers earlier steps, which predict does not have", hint="use policy.act in a loop")
            shapes = algo.observation_shapes
        else:
            shapes = {name: shape for name, (_, shape) in algo.actor.space.inputs.items()}
        single, batch = _batched(observation, shapes)
        if isinstance(algo, Policy) or deterministic:
            actions = algo.predict(batch)
        else:
            object.__setattr__(self, "_step", self._step + 1)
            actions = algo.sample(batch, step=self._step)
        return (actions[0] if single else actions), None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.algo, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.algo, name, value)


def _batched(observation: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[bool, Any]:
    """Return whether an observation is a single one, and the observation as a batch."""
    if isinstance(observation, Mapping):
        arrays = {name: np.asarray(field) for name, field in observation.items()}
        first = next(iter(shapes))
        single = first in arrays and arrays[first].ndim == len(shapes[first])
        return single, {name: field[None] for name, field in arrays.items()} if single else arrays
    array = np.asarray(observation)
    single = array.ndim == len(next(iter(shapes.values())))
    return single, array[None] if single else array
