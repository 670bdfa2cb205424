"""A policy file on the robot: one ONNX graph with its scalers inside, served by onnxruntime. No torch, no daemon.

The file's contract (inputs, output, ``offrl.*`` metadata) is described in ``docs/policy-file.md``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from offrl.bound_run import BoundRun
from offrl.errors import CheckFailed, InvalidInput
from offrl.memory import CONTEXT, LENGTH, NEXT, REWARD, TARGET_RETURN, Context, Frames
from offrl.onnx_file import FETCH_AGAIN, read_bytes
from offrl.onnx_session import first_line, load_session, run, session_options

FORMAT = 2  # newest version of the policy file, `offrl.format`; 1: policies without memory
PREFIX = "offrl."  # of the metadata keys
ACTION = "action"  # name of the graph's output

_DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}  # fmt: skip


class Policy:
    """A trained policy, ready to act.

        policy = Policy("policy.onnx")
        policy.reset()                            # at the start of every episode
        action = policy.act(observation)          # environment's units in, environment's units out

    Some policies remember: of stacked frames the last ones, of a transformer the steps of the episode, and it also wants the rewards:
    ``policy.act(observation, reward)``. That loop serves every policy. A policy that remembers is not for several threads at once.

    Observations come in the units of the environment, with the shape and dtype of the dataset; a float64 observation for a float32
    policy is cast, as is everything else that loses nothing but precision. Several observation fields are one mapping from field
    name to array (keys that the policy does not know are ignored).

    Attributes:
        metadata: what the file says about itself, without the ``offrl.`` prefix: ``space``, ``algorithm``, ``config``, ``job``, ...
        discrete: whether `act` gives an ``int`` (else a float32 array ``[A]``).
        observation_shapes, observation_dtypes: of each field, without the batch axis.
        action_low, action_high: float32 ``[A]``; None for discrete actions, or where the file has no bounds.
        action_n: the number of discrete actions; None for continuous ones.
        env_id: the environment that the policy was evaluated in or its data came from; None if unknown.
        frame_stack: how many of an episode's last observations the graph takes at once; `act` keeps them.
        target_return: the return that a transformer is asked for where `reset` names none; None for other policies.

    Raises:
        InvalidInput: there is no such file, it is not an ONNX file, it is not a policy of ours, or one of a newer version.
    """

    def __init__(self, source: str | Path | bytes) -> None:
        if isinstance(source, (bytes, bytearray, memoryview)):
            self.path, name, data = None, f"the {len(source)} bytes given", bytes(source)
        else:
            self.path, name = Path(source), f"{str(source)!r}"
            data = read_bytes(self.path)
        self._session = session = load_session(data, name)
        try:
            self.metadata = _metadata(session, name)
            _check(session, self.metadata, name)
        except UnicodeDecodeError:  # onnxruntime looks at no text before it is asked for it
            raise InvalidInput(f"{name} has text that is not UTF-8", hint=FETCH_AGAIN) from None

        inputs = {i.name: (np.dtype(_DTYPES[i.type]), tuple(i.shape[1:])) for i in session.get_inputs()}
        self._context = _context(session, self.metadata, inputs, name)
        self._input_of = _input_names(self.metadata, [n for n in inputs if self._context is None or not _is_context(n)], name)
        fields = {field: inputs[n] for field, n in self._input_of.items()}
        self.observation_dtypes: dict[str, np.dtype] = {n: dtype for n, (dtype, _) in fields.items()}
        self._graph_shapes = {n: shape for n, (_, shape) in fields.items()}
        self.frame_stack, frames = _frame_stack(self.metadata, self._graph_shapes, name)
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
        self.action_low = None if self.discrete else _bound(space.get("low"), self.action_shape)
        self.action_high = None if self.discrete else _bound(space.get("high"), self.action_shape)
        self.env_id = _env_id(self.metadata)
        self._outputs = [ACTION]
        self._run = partial(run, session)
        self._runs: list[BoundRun] = []  # for `act`: as many as threads have acted at once
        self._warm_up(name)

    # ------------------------------------------------------------------------------------------------------------- acting
    def act(self, observation: Any, reward: float = 0.0) -> np.ndarray | int:
        """The action for one observation: a fresh float32 array ``[A]``, or an ``int`` for discrete actions.

        Args:
            reward: what the action before earned; only transformers read it, and not at an episode's first step.

        Raises:
            InvalidInput: wrong shape or dtype, a missing field, NaN or an infinite value.
                CheckFailed: the policy's own answer is NaN or infinite, which is not a command for a robot; or its graph fails.
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
        """The actions for a batch: observations ``[B, ...]`` (or a mapping of them) to float32 ``[B, A]`` or int64 ``[B]``.

        Frames are stacked by the caller: ``[B, frame_stack * C, ...]``, the newest last. A transformer takes one step in each of ``B``
        episodes that run side by side, and remembers them; ``reward`` ``[B]`` is what their steps before earned, and ``starts``
        ``[B]`` (bool) says which of them begin now, where not all do (`reset`). Other policies read neither.

        Raises as `act` does, and where the number of episodes changes on the way.
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
        """Start an episode: forget the one before. Without effect on a policy that remembers nothing; call it all the same.

        Args:
            target_return: the return that a transformer is to reach (a number, or for `predict` one of each episode); None: the
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
        """Fields by the names of the graph's inputs."""
        return {self._input_of[name]: array for name, array in inputs.items()}

    # ---------------------------------------------------------------------------------------------------- what it looks like
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
        known = [f"{key} {self.metadata[key]}" for key in ("algorithm", "job", "step", "seed") if self.metadata.get(key) is not None]
        return f"Policy({', '.join([str(self.path) if self.path else 'from bytes', fields, action, *known])})"

    # ------------------------------------------------------------------------------------------------------------ checking
    def _field(self, observation: Any, name: str) -> Any:
        names = ", ".join(self._names)
        if not isinstance(observation, Mapping):
            raise InvalidInput(
                f"the policy takes the fields {names}, given {type(observation).__name__}", hint=f"give a dict with the keys {names}"
            )
        if name not in observation:
            given = ", ".join(map(str, observation)) or "none"
            raise InvalidInput(f"the observation has no field {name!r}, only {given}", hint=f"the policy needs {names}")
        return observation[name]

    def _row(self, name: str, value: Any) -> np.ndarray:
        """``value`` checked and cast."""
        shape = self.observation_shapes[name]
        value = _array(name, value, self.observation_dtypes[name])
        if value.shape != shape:
            batch = value.ndim and value.shape[1:] == shape
            hint = "use predict() for a batch" if batch else "give one observation as the environment gives it"
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
        """The first runs plan memory and touch the weights; do them before the robot's first step does."""
        zeros = {name: np.zeros(shape, self.observation_dtypes[name]) for name, shape in self.observation_shapes.items()}
        try:
            for _ in range(3):
                self.act(zeros)
        except CheckFailed as error:  # zeros may be nothing that it has learned to answer
            if isinstance(error.__cause__, Exception):
                raise InvalidInput(f"{name} cannot be run: {first_line(error.__cause__)}", hint=FETCH_AGAIN) from None
        except Exception as error:  # onnxruntime's classes share no base but Exception
            raise InvalidInput(f"{name} cannot be run: {first_line(error)}", hint=FETCH_AGAIN) from None
        self.reset()


def _commanded(action: np.ndarray) -> np.ndarray:
    """``action``, unless it holds NaN or infinity: a robot must not get that."""
    # As in `_array`: one dot product tells of nearly all actions that they are finite.
    if action.dtype.kind == "f" and not float(np.vdot(action, action)) < _LARGEST and not np.isfinite(action).all():
        bad = np.argwhere(~np.isfinite(action))[0]
        raise CheckFailed(
            f"the policy's action[{', '.join(map(str, bad))}] is {action[tuple(bad)]}",
            hint="the observation is far from its data, or the file is damaged",
        )
    return action


def _metadata(session: onnxruntime.InferenceSession, name: str) -> dict[str, Any]:
    found = {key[len(PREFIX) :]: value for key, value in session.get_modelmeta().custom_metadata_map.items() if key.startswith(PREFIX)}
    if "format" not in found:
        raise InvalidInput(
            f"{name} is an ONNX file, but not a policy of ours: it has no offrl.format in its metadata",
            hint="a policy file comes from: offrl fetch JOB --out policy.onnx",
        )
    if large := [key for key, value in found.items() if len(value) > _MOST_METADATA]:
        raise InvalidInput(f"the metadata {large[0]!r} of {name} is larger than {_MOST_METADATA} bytes", hint=FETCH_AGAIN)
    try:
        metadata = {key: json.loads(value, parse_constant=_no_constant) for key, value in found.items()}
    except (ValueError, RecursionError):  # nested thousands deep, or a number of thousands of digits
        raise InvalidInput(f"the metadata of {name} is not JSON", hint=FETCH_AGAIN) from None
    for key in ("space", "context", "fields"):
        if not isinstance(metadata.get(key), dict | None):
            raise InvalidInput(f"the metadata {key!r} of {name} is not a table", hint=FETCH_AGAIN)
    return metadata


_MOST_METADATA = 16 << 20  # bytes of a value


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _check(session: onnxruntime.InferenceSession, metadata: dict[str, Any], name: str) -> None:
    version = metadata["format"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InvalidInput(f"{name} has {str(version)[:40]!r} for the version of its format", hint=FETCH_AGAIN)
    if version > FORMAT:
        message = f"{name} is a policy file of version {version}, this offrl reads up to {FORMAT}"
        raise InvalidInput(message, hint="update: pip install -U offrl")
    outputs = session.get_outputs()
    if not outputs or outputs[0].name != ACTION or outputs[0].type not in ("tensor(float)", "tensor(int64)"):
        raise InvalidInput(f"{name} has no output 'action' of float32 or int64", hint=FETCH_AGAIN)
    shape, discrete = outputs[0].shape, outputs[0].type == "tensor(int64)"
    if len(shape) != (1 if discrete else 2) or not all(isinstance(size, int) for size in shape[1:]):
        raise InvalidInput(
            f"the output 'action' of {name} has the shape {shape}", hint=f"[batch{'' if discrete else ', dimensions'}] is expected"
        )
    if not session.get_inputs():
        raise InvalidInput(f"{name} takes no observation: its graph has no input", hint=FETCH_AGAIN)
    for tensor in session.get_inputs():
        if tensor.type not in _DTYPES or not tensor.shape or not all(isinstance(size, int) for size in tensor.shape[1:]):
            message = f"{name}: input {tensor.name!r} has the type {tensor.type} and shape {tensor.shape}"
            raise InvalidInput(message, hint="only the batch axis may be open")
        if math.prod(tensor.shape[1:]) > _MOST_ELEMENTS:
            raise InvalidInput(
                f"{name}: input {tensor.name!r} has the shape {tensor.shape}", hint=f"an observation has at most {_MOST_ELEMENTS} numbers"
            )


def _input_names(metadata: dict[str, Any], inputs: list[str], name: str) -> dict[str, str]:
    """Field -> the graph's input: of the same name unless the file says otherwise (`fields`: a field may be called ``action``)."""
    field_of = metadata.get("fields") or {}
    if not all(isinstance(field, str) for field in field_of.values()):
        raise InvalidInput(f"{name} does not say which fields its inputs are", hint=FETCH_AGAIN)
    found = {field_of.get(each, each): each for each in inputs}
    if len(found) < len(inputs):
        raise InvalidInput(f"{name} has two inputs for one observation field", hint=FETCH_AGAIN)
    return found


_MOST_ELEMENTS = 1 << 28  # of an observation


def _is_context(name: str) -> bool:
    return name in (REWARD, TARGET_RETURN) or name.startswith(CONTEXT)


def _context(
    session: onnxruntime.InferenceSession, metadata: dict[str, Any], inputs: dict[str, tuple[np.dtype, tuple[int, ...]]], name: str
) -> Context | None:
    """The memory of a transformer's file; None for other policies."""
    declared = metadata.get("context")
    if declared is None:
        return None
    tensors = {n: spec for n, spec in inputs.items() if n.startswith(CONTEXT)}
    outputs = {o.name for o in session.get_outputs()}
    missing = [n for n in (REWARD, TARGET_RETURN, LENGTH) if n not in inputs] + [NEXT + n for n in tensors if NEXT + n not in outputs]
    target = declared.get("target_return") if isinstance(declared, dict) else None
    if missing or not isinstance(target, (int, float)) or not abs(target) <= _LARGEST:
        raise InvalidInput(f"{name} has a context, but no {missing[0] if missing else 'target return'}", hint=FETCH_AGAIN)
    return Context(tensors, float(target), ACTION)


def _frame_stack(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]], name: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    """How many frames the graph takes at once, and the shape of one of each field."""
    space = metadata.get("space") or {}
    count = space.get("frame_stack", 1)
    if count == 1:
        return 1, shapes
    try:
        if type(count) is not int or count < 1:
            raise TypeError
        frames = {field: tuple(space["observation"][field]["shape"]) for field in shapes}
        fits = all(shape == (count * (frames[field] or (1,))[0], *frames[field][1:]) for field, shape in shapes.items())
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise InvalidInput(f"{name} says that it stacks {count!r} frames, which its inputs do not", hint=FETCH_AGAIN)
    return count, frames


def _bound(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    if value is None:
        return None
    try:
        array = np.array([math.nan if v is None else v for v in np.ravel(np.array(value, dtype=object))], np.float32)
    except (ValueError, TypeError, OverflowError):  # of a file that says something else there
        return None
    return np.broadcast_to(array if array.size > 1 else array.reshape(()), shape).copy() if array.size in (1, math.prod(shape)) else None


def _env_id(metadata: dict[str, Any]) -> str | None:
    evaluation, space, dataset = (metadata.get(key) for key in ("evaluation", "space", "dataset"))
    if isinstance(evaluation, dict) and evaluation.get("env"):
        return str(evaluation["env"])
    source = space.get("source") if isinstance(space, dict) else None
    if isinstance(source, str) and source.startswith("env:"):
        return source[len("env:") :]
    return str(dataset["env_id"]) if isinstance(dataset, dict) and dataset.get("env_id") else None


def _array(name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """``value`` as a finite array of ``dtype``; a cast may cost precision, nothing else."""
    if type(value) is not np.ndarray:
        try:
            value = np.asarray(value)
        except ValueError:
            raise InvalidInput(f"{name} is ragged: its rows differ in length", hint=f"give an array of {dtype}") from None
    given = value.dtype
    if given.kind == "f" and dtype.kind == "f":
        # One dot product tells in 0.5 us what np.isfinite(x).all() tells in 3: below the limit all is finite and fits float32.
        if not float(np.vdot(value, value)) < _SURELY_FINITE:
            return _finite(name, value, dtype)
        return value if given == dtype else value.astype(dtype)
    return value if given == dtype else _cast(name, value, dtype)


_LARGEST = float(np.finfo(np.float32).max)
_SURELY_FINITE = 1e76  # of a sum of squares: no element reaches the largest float32, 3.4e38


def _finite(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    bad = np.argwhere(~np.isfinite(cast))
    if not len(bad):
        return cast
    place = f"{name}[{', '.join(map(str, bad[0]))}]" if value.ndim else name
    found = value[tuple(bad[0])]
    if np.isfinite(found):
        raise InvalidInput(f"{place} is {found}, which does not fit {dtype}", hint="check the sensor or the environment")
    raise InvalidInput(f"{place} is {found}", hint="an observation must be finite: check the sensor or the environment")


def _cast(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Between kinds of numbers: whole numbers to floats, and to other whole numbers that hold them."""
    hint = f"give an array of {dtype}"
    if value.dtype.kind not in "biu":
        raise InvalidInput(f"{name} has dtype {value.dtype}, the policy expects {dtype}", hint=hint)
    cast = value.astype(dtype)
    if dtype.kind in "biu" and not np.array_equal(cast, value):
        raise InvalidInput(f"{name} has the value {value[cast != value].ravel()[0]}, which does not fit {dtype}", hint=hint)
    return cast


__all__ = ["ACTION", "FORMAT", "PREFIX", "Policy", "session_options"]
