"""Trained policies as behaviours: an ONNX file, a learner of ours (greedy or sampled), a loaded model of Stable-Baselines3."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl.policy import Policy
from offrl.rollout import check_spaces
from offrl.spaces import action_converter, policy_converter
from offrld.collect.behaviours import Behaviour, FunctionBehaviour, RandomBehaviour
from offrld.collect.spaces import flat, observation_fields


def as_behaviour(policy: Any, *, deterministic: bool | None = None) -> Behaviour:
    """Make a behaviour of a policy.

    Args:
        policy: None or ``random`` (uniform actions), ``normal`` (normal ones), a behaviour, an `offrl.Policy` or the path of a policy
            file, a learner or a loaded seed, a loaded model of Stable-Baselines3 (anything with its ``predict``), or a callable of one
            observation.
        deterministic: learners and models give the greedy action instead of a drawn one; None: drawn.

    Raises:
        InvalidInput: none of these; or drawn actions of a policy file, which has only greedy ones.
    """
    if policy is None or policy == "random":
        return RandomBehaviour()
    if isinstance(policy, str) and policy == "normal":
        return RandomBehaviour("normal")
    if isinstance(policy, str | os.PathLike | Policy):
        if deterministic is False:
            raise InvalidInput("a policy file is deterministic and cannot sample", hint="sample from the job's checkpoint instead")
        return PolicyBehaviour(policy if isinstance(policy, Policy) else Policy(os.fspath(policy)))
    if hasattr(policy, "begin_episode") and hasattr(policy, "act"):
        return policy
    if is_learner(policy):
        return LearnerBehaviour(policy, deterministic=bool(deterministic))
    if hasattr(policy, "predict"):
        return ModelBehaviour(policy, deterministic=bool(deterministic))
    if callable(policy):
        return FunctionBehaviour(policy)
    raise InvalidInput(f"{type(policy).__name__} does not act", hint="pass a policy file, a learner, a model with predict, or a function")


class PolicyBehaviour:
    """An exported policy: greedy, in the environment's units."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.name = " ".join(str(policy.metadata[key]) for key in ("algorithm", "job", "step") if policy.metadata.get(key) is not None)
        self.name = self.name or str(policy.path or "policy")
        self._space: Any = None
        self._reward: Any = 0.0
        self._stacks: Stacks | None = None

    def check(self, env: Any, name: str) -> None:
        """`InvalidInput` unless the environment's spaces are the policy's."""
        check_spaces(self._policy, env, name)

    def begin_episode(self, action_space: Any, rng: np.random.Generator) -> None:
        if action_space is not self._space:
            self._space, self._to_env = action_space, policy_converter(self._policy, action_space)
        self._policy.reset()
        self._reward = 0.0

    def act(self, observation: Any) -> Any:
        return self._to_env(self._policy.act(_fields(observation), self._reward))

    def take_reward(self, reward: Any) -> None:
        self._reward = reward if isinstance(reward, np.ndarray) else float(reward)

    def begin_batch(self, action_space: Any, count: int, rng: np.random.Generator) -> None:
        self._to_env, self._reward = policy_converter(self._policy, action_space), np.zeros(count)
        self._policy.reset()
        policy = self._policy
        if policy.frame_stack > 1:
            self._stacks = Stacks(policy.frame_stack, policy.observation_shapes, policy.observation_dtypes, count)

    def act_batch(self, observations: Any, starts: np.ndarray) -> np.ndarray:
        observations = _fields(observations)
        if self._stacks is not None:
            observations = self._stacks.push(observations, starts)
        return self._to_env(self._policy.predict(observations, self._reward, starts))


class LearnerBehaviour:
    """A trained policy: its greedy actions, or drawn ones (``sample``), whose random numbers depend on seed and number of steps only.

    Args:
        learner: a learner, an `offrld.engine.learner.actor.Actor` or an `offrld.Loaded`; the actions of a learner follow its updates.
        seed: a trained one; by default the first.
        deterministic: greedy actions.
    """

    def __init__(self, learner: Any, *, deterministic: bool = False, seed: int | None = None) -> None:
        self._learner: Any = learner if hasattr(learner, "predict") else learner.actor
        self._seed, self._deterministic = seed, deterministic
        self.step = 0
        self.name = f"{learner.actor.run.algorithm.name} {'greedy' if deterministic else 'sampled'}"
        self._space: Any = None
        self._stacks: Stacks | None = None
        self._start = True

    @classmethod
    def load(cls, path: str, *, deterministic: bool = False, seed: int | None = None) -> LearnerBehaviour:
        """The policy of a checkpoint, or of a job's run folder, for example in a worker process."""
        from offrld.algos import get  # imports torch, which other behaviours do not need
        from offrld.engine.learner.loaded import Loaded, actor_of

        return cls(actor_of(Loaded.read_all(path, get)), deterministic=deterministic, seed=seed)

    def check(self, env: Any, name: str) -> None:
        """`InvalidInput` unless the environment's spaces are the learner's."""
        check_learner(self._learner, env.observation_space, env.action_space, name)

    def begin_episode(self, action_space: Any, rng: np.random.Generator) -> None:
        if action_space is not self._space:
            self._space = action_space
            self.begin_batch(action_space, 1, rng)
        self._start = True

    def act(self, observation: Any) -> Any:
        observation = _fields(observation)
        several = isinstance(observation, Mapping)
        batch = {name: np.asarray(value)[None] for name, value in observation.items()} if several else np.asarray(observation)[None]
        action = self.act_batch(batch, np.array([self._start]))[0]
        self._start = False
        return action

    def begin_batch(self, action_space: Any, count: int, rng: np.random.Generator) -> None:
        space = self._learner.actor.space
        self._to_env = action_converter(action_space)
        if space.frame_stack > 1:
            shapes = {name: shape for name, (_, shape) in space.observation.items()}
            dtypes = {name: np.dtype(dtype) for name, (dtype, _) in space.observation.items()}
            self._stacks = Stacks(space.frame_stack, shapes, dtypes, count)

    def act_batch(self, observations: Any, starts: np.ndarray) -> np.ndarray:
        observations = self._stacked(observations, starts)
        if self._deterministic:
            return self._to_env(self._learner.predict(observations, seed=self._seed))
        self.step += 1
        return self._to_env(self._learner.sample(observations, seed=self._seed, step=self.step))

    def _stacked(self, observations: Any, starts: np.ndarray) -> Any:
        """The networks' input: the observations by field, with the frames before them if frames are stacked."""
        observations = _fields(observations)
        return observations if self._stacks is None else self._stacks.push(observations, starts)

    def weights(self) -> dict[str, np.ndarray]:
        return {name: value.detach().cpu().numpy() for name, value in self._learner.actor.params.items()}

    def load_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        import torch

        params = self._learner.actor.params
        if params.keys() != arrays.keys():
            raise InvalidInput("the weights are of other networks", hint="send those of the learner that the workers started with")
        with torch.no_grad():
            for name, value in arrays.items():
                params[name].copy_(torch.from_numpy(np.array(value)))

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = int(state["step"])


def is_learner(policy: Any) -> bool:
    """Whether a policy is a learner, an actor or a loaded seed; the ``actor`` of another library's model is only a network."""
    return hasattr(getattr(policy, "actor", None), "predict_value")


def check_learner(learner: Any, observation_space: Any, action_space: Any, name: str) -> None:
    """`InvalidInput` unless a learner can act in an environment of these spaces."""
    from gymnasium.spaces import Box, Discrete

    hint = "act in the environment of its dataset"
    space, fields = learner.actor.space, observation_fields(observation_space)
    named = fields if "" not in fields else {next(iter(space.observation)): fields[""]} if len(space.observation) == 1 else {}
    for field, (_, shape) in space.observation.items():
        if field not in named or named[field].shape != tuple(shape):
            seen = f"of shape {list(named[field].shape)}" if field in named else f"not among {', '.join(fields) or 'its fields'}"
            raise InvalidInput(f"{name}: observation {field!r} is {seen}, the policy takes {list(shape)}", hint=hint)
    if space.discrete:
        if not isinstance(action_space, Discrete) or action_space.n != space.action_size:
            raise InvalidInput(f"{name} takes {action_space}, the policy has {space.action_size} discrete actions", hint=hint)
    elif not isinstance(action_space, Box) or int(np.prod(action_space.shape)) != space.action_size:
        raise InvalidInput(f"{name} takes {action_space}, the policy gives {space.action_size} continuous numbers", hint=hint)


class ModelBehaviour:
    """A loaded model with the ``predict`` of Stable-Baselines3: ``predict(observation, state, episode_start, deterministic)``."""

    def __init__(self, model: Any, *, deterministic: bool = False) -> None:
        self._model, self._deterministic = model, deterministic
        self.name = f"{type(model).__name__} {'greedy' if deterministic else 'sampled'}"
        self._state: Any = None
        self._start = True

    def begin_episode(self, action_space: Any, rng: np.random.Generator) -> None:
        self._state, self._start = None, True

    def act(self, observation: Any) -> Any:
        action, self._state = self._model.predict(
            observation, state=self._state, episode_start=np.array([self._start]), deterministic=self._deterministic
        )
        self._start = False
        return action

    def begin_batch(self, action_space: Any, count: int, rng: np.random.Generator) -> None:
        self._state = None

    def act_batch(self, observations: Any, starts: np.ndarray) -> np.ndarray:
        actions, self._state = self._model.predict(observations, state=self._state, episode_start=starts, deterministic=self._deterministic)
        return actions


class Stacks:
    """The last ``count`` frames of each of ``envs`` episodes, joined along the first axis, the newest last; zeros before the start.

    Args:
        shapes, dtypes: of one frame of each field.
    """

    def __init__(self, count: int, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype], envs: int) -> None:
        self._only = next(iter(shapes)) if len(shapes) == 1 else None
        self._size = {name: (shape or (1,))[0] for name, shape in shapes.items()}
        self._stacked = {name: np.zeros((envs, count * self._size[name], *shape[1:]), dtypes[name]) for name, shape in shapes.items()}

    def push(self, frames: Any, starts: np.ndarray) -> Any:
        """Add one frame ``[envs, ...]`` of each field; returns the stacks, valid until the next call."""
        named = frames if isinstance(frames, Mapping) else {self._only: frames}
        for name, stacked in self._stacked.items():
            size, frame = self._size[name], np.asarray(named[name])
            stacked[starts] = 0
            stacked[:, :-size] = stacked[:, size:]  # NumPy handles the overlap
            stacked[:, -size:] = frame.reshape(len(frame), size, *stacked.shape[2:])
        return self._stacked if self._only is None else self._stacked[self._only]


def _fields(observation: Any) -> Any:
    """Name the fields as policies do: dots join the names of nested fields."""
    return flat(observation) if isinstance(observation, Mapping) else observation


__all__ = ["LearnerBehaviour", "ModelBehaviour", "PolicyBehaviour", "Stacks", "as_behaviour", "check_learner", "is_learner"]
