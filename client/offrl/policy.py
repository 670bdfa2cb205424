"""A policy on the robot: one ONNX graph with its scalers inside, run by onnxruntime. Needs neither torch nor a daemon.

`offrl.policy_file` reads and checks the file; ``docs/policy-file.md`` describes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from offrl.bound_run import BoundRun
from offrl.errors import CheckFailed, InvalidInput
from offrl.memory import Frames
from offrl.onnx_file import FETCH_AGAIN
from offrl.onnx_session import first_line, run, session_options
from offrl.policy_file import (
    ACTION,
    DTYPES,
    FORMAT,
    LARGEST,
    PREFIX,
    action_bound,
    check_graph,
    context_of,
    environment_of,
    frame_stack,
    input_names,
    is_context,
    opened,
    read_metadata,
)


class Policy:
    """A trained policy, ready to act.

        policy = Policy("policy.onnx")
        policy.reset()                            # at the start of every episode
        action = policy.act(observation)          # environment's units in, environment's units out

    Some policies have a memory: a policy with stacked frames keeps the last ones; a transformer keeps the steps of the episode and also
    needs the rewards: ``policy.act(observation, reward)``. The same loop serves every policy. Only one thread at a time may use a policy
    that has a memory.

    Observations are in the environment's units, with the shape and dtype of the dataset. A float64 observation for a float32 policy is
    cast, as is every other number that loses at most precision. Several observation fields are one mapping from field name to array;
    unknown keys are ignored.

    Attributes:
        metadata: the file's metadata without the ``offrl.`` prefix: ``space``, ``algorithm``, ``config``, ``job``, ...
        discrete: whether `act` returns an ``int`` (else a float32 array ``[A]``).
        observation_shapes, observation_dtypes: of each field, without the batch axis.
        action_low, action_high: float32 ``[A]``; None for discrete actions, or if the file has no bounds.
        action_n: the number of discrete actions; None for continuous ones.
        env_id: the environment in which the policy was evaluated, or from which its data came; None if unknown.
        frame_stack: how many of an episode's last observations the graph takes at once; `act` keeps them.
        target_return: the return that a transformer aims for unless `reset` gives another one; None for other policies.

    Raises:
        InvalidInput: the file does not exist, is not an ONNX file, is not a policy file of offrl, or has a newer version.
    """

    def __init__(self, source: str | Path | bytes) -> None:
        self.path, name, session = opened(source)
        self._session = session
        try:
            self.metadata = read_metadata(session, name)
            check_graph(session, self.metadata, name)
        except UnicodeDecodeError:  # onnxruntime decodes texts only when they are read
            raise InvalidInput(f"{name} has text that is not UTF-8", hint=FETCH_AGAIN) from None

        inputs = {i.name: (np.dtype(DTYPES[i.type]), tuple(i.shape[1:])) for i in session.get_inputs()}
        self._context = context_of(session, self.metadata, inputs, name)
        self._input_of = input_names(self.metadata, [n for n in inputs if self._context is None or not is_context(n)], name)
        fields = {field: inputs[n] for field, n in self._input_of.items()}
        self.observation_dtypes: dict[str, np.dtype] = {n: dtype for n, (dtype, _) in fields.items()}
        self._graph_shapes = {n: shape for n, (_, shape) in fields.items()}
        self.frame_stack, frames = frame_stack(self.metadata, self._graph_shapes, name)
        self.observation_shapes: dict[str, tuple[int, ...]] = frames
        self._frames = Frames(self.frame_stack, self._graph_shapes, self.observation_dtypes) if self.frame_stack > 1 else None
        self._remembers = self._frames is not None or self._context is not None
        self.target_return = None if self._context is None else self._context.target_return
        self._names = tuple(self.observation_shapes)
        self._only = self._names[0] if len(self._names) == 1 else None
        output = session.get_outputs()[0]
        self.discrete: bool = output.type == "tensor(int64)"
        self.action_shape: tuple[int, ...] = tuple(output.shape[1:])
        space = self.metadata.get("space") or {}
        self.action_n: int | None = space.get("n") if self.discrete else None
        self.action_low = None if self.discrete else action_bound(space.get("low"), self.action_shape)
        self.action_high = None if self.discrete else action_bound(space.get("high"), self.action_shape)
        self.env_id = environment_of(self.metadata)
        self._outputs = [ACTION]
        self._run = partial(run, session)
        self._runs: list[BoundRun] = []  # for `act`: as many as threads have acted at once
        self._warm_up(name)

    # ------------------------------------------------------------------------------------------------------------- acting
    def act(self, observation: Any, reward: float = 0.0) -> np.ndarray | int:
        """Return the action for one observation: a new float32 array ``[A]``, or an ``int`` for discrete actions.

        Args:
            reward: the reward of the previous action. Only transformers use it, and not at an episode's first step.

        Raises:
            InvalidInput: wrong shape or dtype, a missing field, NaN or an infinite value.
            CheckFailed: the policy's action is NaN or infinite, which a robot must not get, or its graph fails.
        """
        name = self._only
        if name is None:
            rows = {name: self._row(name, self._field(observation, name)) for name in self._names}
        elif observation.__class__ is not np.ndarray and isinstance(observation, Mapping):
            rows = {name: self._row(name, self._field(observation, name))}
        else:
            rows = {name: self._row(name, observation)}
        if self._remembers:
            action = self._remembering({name: row[None] for name, row in rows.items()}, reward)[0]
            return int(action) if self.discrete else _commanded(action)
        try:
            bound = self._runs.pop()
        except IndexError:
            bound = self._bind()
        for name, row in rows.items():
            bound.inputs[self._input_of[name]][...] = row
        bound.run()
        if self.discrete:
            choice = int(bound.output)
            self._runs.append(bound)
            return choice
        action = bound.output.copy()
        self._runs.append(bound)
        return _commanded(action)

    def predict(self, observations: Any, reward: Any = None, starts: Any = None) -> np.ndarray:
        """Return the actions for a batch: observations ``[B, ...]`` (or a mapping of them) to float32 ``[B, A]`` or int64 ``[B]``.

        The caller stacks frames: ``[B, frame_stack * C, ...]``, the newest last. A transformer takes one step in each of ``B`` episodes
        and keeps their contexts.

        Args:
            reward: for a transformer, the rewards ``[B]`` of the previous steps.
            starts: for a transformer, bool ``[B]``: the episodes that start with this step. After `reset` all of them do.

        Raises the errors of `act`, and `InvalidInput` if the number of episodes changes without a `reset`.
        """
        fields = observations if isinstance(observations, Mapping) else None
        if fields is None and len(self._names) > 1:
            fields = {}
        inputs = {name: self._batch(name, observations if fields is None else self._field(observations, name)) for name in self._names}
        sizes = {name: len(array) for name, array in inputs.items()}
        if len(set(sizes.values())) > 1:
            raise InvalidInput(f"the fields of the batch differ in length: {sizes}", hint="give every field the same number of rows")
        rows = next(iter(sizes.values()))
        if not rows:
            return np.zeros((0, *self.action_shape), np.int64 if self.discrete else np.float32)
        inputs = self._named(inputs)
        if self._context is not None:
            actions = self._context.step(self._run, inputs, reward, starts)
        else:
            actions = self._run(self._outputs, inputs)[0]
        if actions.shape != (rows, *self.action_shape):  # onnxruntime does not insist on the shape that the file declares
            raise CheckFailed(f"the policy gives actions of shape {actions.shape} for {rows} observations", hint=FETCH_AGAIN)
        return _commanded(actions)

    def reset(self, target_return: Any = None) -> None:
        """Start an episode and forget the previous one. Has no effect on a policy without a memory; call it all the same.

        Args:
            target_return: the return that a transformer aims for (a number, or for `predict` one for each episode); None: the
                policy's own `target_return`.

        Raises:
            InvalidInput: a target return for a policy that takes none, or one that is not a finite number.
        """
        if self._context is not None:
            self._context.reset(target_return)
        elif target_return is not None:
            algorithm = self.metadata.get("algorithm", "unknown")
            raise InvalidInput(f"a policy of the algorithm {algorithm} takes no target return", hint="leave it out")
        if self._frames is not None:
            self._frames.clear()

    def _bind(self) -> BoundRun:
        inputs = {self._input_of[name]: (self.observation_dtypes[name], shape) for name, shape in self._graph_shapes.items()}
        return BoundRun(self._session, inputs, (ACTION, np.dtype(np.int64 if self.discrete else np.float32), self.action_shape))

    def _remembering(self, inputs: dict[str, np.ndarray], reward: float) -> np.ndarray:
        if self._frames is not None:
            inputs = self._frames.push(inputs)
        inputs = self._named(inputs)
        return self._run(self._outputs, inputs)[0] if self._context is None else self._context.step(self._run, inputs, reward)

    def _named(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the fields under the names of the graph's inputs."""
        return {self._input_of[name]: array for name, array in inputs.items()}

    # ------------------------------------------------------------------------------------------------------------ properties
    @property
    def observation_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """Shape of one observation; by field name when there are several fields."""
        return self.observation_shapes if len(self._names) > 1 else self.observation_shapes[self._names[0]]

    @property
    def observation_dtype(self) -> np.dtype | dict[str, np.dtype]:
        """Dtype of the observation; by field name when there are several fields."""
        return self.observation_dtypes if len(self._names) > 1 else self.observation_dtypes[self._names[0]]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {self.observation_dtypes[name]}{list(shape)}" for name, shape in self.observation_shapes.items())
        if self.discrete:
            action = f"action {self.action_n if self.action_n is not None else '?'} choices"
        else:
            action = f"action float32{list(self.action_shape)}"
            if self.action_low is not None and self.action_high is not None:
                action += f" in [{self.action_low.min():g}, {self.action_high.max():g}]"
        origin = [f"{key} {self.metadata[key]}" for key in ("algorithm", "job", "step", "seed") if self.metadata.get(key) is not None]
        return f"Policy({', '.join([str(self.path) if self.path else 'from bytes', fields, action, *origin])})"

    # ------------------------------------------------------------------------------------------------------------ checking
    def _field(self, observation: Any, name: str) -> Any:
        names = ", ".join(self._names)
        if not isinstance(observation, Mapping):
            raise InvalidInput(
                f"the observation is a {type(observation).__name__}; the policy expects the fields {names}",
                hint=f"pass a dict with the keys {names}",
            )
        if name not in observation:
            present = ", ".join(map(str, observation)) or "none"
            raise InvalidInput(f"the observation has no field {name!r}, only {present}", hint=f"the policy needs {names}")
        return observation[name]

    def _row(self, name: str, value: Any) -> np.ndarray:
        """Return one observation of a field, checked and cast."""
        shape = self.observation_shapes[name]
        value = _array(name, value, self.observation_dtypes[name])
        if value.shape != shape:
            batch = value.ndim and value.shape[1:] == shape
            hint = "use predict() for a batch" if batch else "pass one observation, as the environment returns it"
            raise InvalidInput(f"{name} has shape {value.shape}, the policy expects {shape}", hint=hint)
        return value

    def _batch(self, name: str, value: Any) -> np.ndarray:
        shape = self._graph_shapes[name]
        value = _array(name, value, self.observation_dtypes[name])
        if value.ndim != len(shape) + 1 or value.shape[1:] != shape:
            expected = "(" + ", ".join(["batch", *map(str, shape)]) + ")"
            hint = "use act() for one observation" if value.shape == shape else "the batch axis comes first"
            raise InvalidInput(f"{name} has shape {value.shape}, the policy expects {expected}", hint=hint)
        return value

    def _warm_up(self, name: str) -> None:
        """Run the graph three times now: its first runs plan memory and load the weights, which would delay the robot's first step."""
        zeros = {name: np.zeros(shape, self.observation_dtypes[name]) for name, shape in self.observation_shapes.items()}
        try:
            for _ in range(3):
                self.act(zeros)
        except CheckFailed as error:  # zeros may be far from the data
            if isinstance(error.__cause__, Exception):
                raise InvalidInput(f"{name} cannot be run: {first_line(error.__cause__)}", hint=FETCH_AGAIN) from None
        except Exception as error:  # the only base class that onnxruntime's exceptions share
            raise InvalidInput(f"{name} cannot be run: {first_line(error)}", hint=FETCH_AGAIN) from None
        self.reset()


def _commanded(action: np.ndarray) -> np.ndarray:
    """Return ``action``; raise `CheckFailed` if it holds NaN or infinity, which a robot must not get."""
    # As in `_array`: one dot product shows that an action is finite, in nearly all cases.
    if action.dtype.kind == "f" and not float(np.vdot(action, action)) < LARGEST and not np.isfinite(action).all():
        bad = np.argwhere(~np.isfinite(action))[0]
        raise CheckFailed(
            f"the policy's action[{', '.join(map(str, bad))}] is {action[tuple(bad)]}",
            hint="the observation is far from the training data, or the file is damaged",
        )
    return action


def _array(name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """Return ``value`` as a finite array of ``dtype``; a cast may lose precision and nothing else."""
    if type(value) is not np.ndarray:
        try:
            value = np.asarray(value)
        except ValueError:
            raise InvalidInput(f"{name} is ragged: its rows differ in length", hint=f"pass an array of {dtype}") from None
    source = value.dtype
    if source.kind == "f" and dtype.kind == "f":
        # A dot product takes 0.5 us, np.isfinite(x).all() 3: below the limit every value is finite and fits float32.
        if not float(np.vdot(value, value)) < _SURELY_FINITE:
            return _finite(name, value, dtype)
        return value if source == dtype else value.astype(dtype)
    return value if source == dtype else _cast(name, value, dtype)


_SURELY_FINITE = 1e76  # sum of squares below which no value reaches the largest float32, 3.4e38


def _finite(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    bad = np.argwhere(~np.isfinite(cast))
    if not len(bad):
        return cast
    place = f"{name}[{', '.join(map(str, bad[0]))}]" if value.ndim else name
    number = value[tuple(bad[0])]
    if np.isfinite(number):
        raise InvalidInput(f"{place} is {number}, which does not fit {dtype}", hint="check the sensor or the environment")
    raise InvalidInput(f"{place} is {number}", hint="an observation must be finite: check the sensor or the environment")


def _cast(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast whole numbers to floats, or to other whole numbers that hold them."""
    hint = f"pass an array of {dtype}"
    if value.dtype.kind not in "biu":
        raise InvalidInput(f"{name} has dtype {value.dtype}, the policy expects {dtype}", hint=hint)
    cast = value.astype(dtype)
    if dtype.kind in "biu" and not np.array_equal(cast, value):
        raise InvalidInput(f"{name} has the value {value[cast != value].ravel()[0]}, which does not fit {dtype}", hint=hint)
    return cast


__all__ = ["ACTION", "FORMAT", "PREFIX", "Policy", "session_options"]
