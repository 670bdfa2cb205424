"""Policies that other programs exported as ONNX, such as Stable-Baselines3 and d3rlpy; the user names their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from offrl.errors import CheckFailed, InvalidInput
from offrl.onnx_session import run
from offrl.policy import Policy
from offrl.policy_file import opened as opened_file

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(float16)": np.float16,
}

WHOLE = 1 << 24  # up to which float32 holds every whole number


class ForeignPolicy(Policy):
    """An ONNX graph from observations ``[B, ...]`` to actions, as a `Policy`. It has no scalers, bounds or memory of its own.

    The caller clips continuous actions ``[B, A]`` to the environment's bounds. Discrete actions are whole numbers ``[B]`` or ``[B, 1]``.
    A graph that only takes batches of one runs row by row.

    Args:
        source: the file, or its bytes.
        input: the input tensor of the observation; None: the only one, or for several inputs the observation fields of the same names.
        output: the output tensor of the action; None: the only one.
        argmax: the output holds scores ``[B, n]`` of discrete actions: the highest is the action.

    Raises:
        InvalidInput: the file is not ONNX, or has no such tensor; the message lists its tensors.
    """

    foreign = True

    def __init__(self, source: str | Path | bytes, *, input: str | None = None, output: str | None = None, argmax: bool = False) -> None:
        self.path, name, self._session = opened_file(source)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if not inputs or not outputs:
            raise InvalidInput(f"{name} has no {'output' if inputs else 'input'}", hint="export the policy as observation to action")
        self._inputs = {tensor.name: tensor for tensor in ([_named(inputs, input, name, "input")] if input is not None else inputs)}
        if input is not None and len(inputs) > 1:
            raise InvalidInput(
                f"{name} takes more than {input!r}: {_listed(inputs)}", hint="export the policy with the observation as its only input"
            )
        if output is None and len(outputs) > 1:
            raise InvalidInput(f"{name} has several outputs: {_listed(outputs)}", hint="name the action's: --policy-output NAME")
        out = outputs[0] if output is None else _named(outputs, output, name, "output")
        self._output, self._argmax = out.name, argmax
        for tensor in (*self._inputs.values(), out):
            if tensor.type not in _DTYPES or not tensor.shape:
                message = f"{name}: {tensor.name!r} has the type {tensor.type} and shape {tensor.shape}"
                raise InvalidInput(message, hint="observations and actions are batches of numbers")
        whole = _DTYPES[out.type] in (np.int64, np.int32)
        sizes = tuple(out.shape[1:])
        if argmax and (whole or len(sizes) != 1):
            raise InvalidInput(
                f"{name}: output {out.name!r} has the type {out.type} and shape {out.shape}, which are not scores",
                hint="leave --policy-argmax out: the output holds actions",
            )
        self.metadata = {}
        self.observation_dtypes = {field: np.dtype(_DTYPES[tensor.type]) for field, tensor in self._inputs.items()}
        self.observation_shapes = {field: tuple(tensor.shape[1:]) for field, tensor in self._inputs.items()}
        if not all(isinstance(size, int) for shape in (*self.observation_shapes.values(), sizes) for size in shape):
            raise InvalidInput(f"{name}: {_listed(inputs)} to {_listed([out])}: a size is open", hint="only the batch axis may be open")
        self._sizes = sizes  # of the output, without the batch axis
        self.discrete = argmax or (whole and sizes in ((), (1,)))
        self.action_shape = () if self.discrete else sizes
        self.action_n = sizes[0] if argmax else None
        self.action_low = self.action_high = self.env_id = self.target_return = self._context = self._frames = None
        self.frame_stack = 1
        self._names = tuple(self._inputs)
        self._one = any(tensor.shape[0] == 1 for tensor in self._inputs.values())

    def act(self, observation: Any, reward: float = 0.0) -> np.ndarray | int:
        """Do what `Policy.act` does."""
        fields = observation if isinstance(observation, Mapping) else {self._names[0]: observation}
        action = self.predict({name: _array(name, fields[name])[None] for name in self._names if name in fields})[0]
        return int(action) if self.discrete else action

    def predict(self, observations: Any, reward: Any = None, starts: Any = None) -> np.ndarray:
        """Do what `Policy.predict` does."""
        fields = observations if isinstance(observations, Mapping) else {self._names[0]: observations}
        feed = {name: self._fed(name, fields) for name in self._names}
        counts = {name: len(value) for name, value in feed.items()}
        count = next(iter(counts.values()))
        if len(set(counts.values())) > 1:
            raise InvalidInput(f"the fields of the batch differ in length: {counts}", hint="give every field the same number of rows")
        if not count:
            return np.zeros((0, *self.action_shape), np.int64 if self.discrete else np.float32)
        if self._one and count != 1:
            return np.concatenate([self._acted({name: value[i : i + 1] for name, value in feed.items()}, 1) for i in range(count)])
        return self._acted(feed, count)

    def _acted(self, feed: dict[str, np.ndarray], count: int) -> np.ndarray:
        """The actions for ``count`` observations. Raises `CheckFailed`."""
        values = run(self._session, [self._output], feed)[0]
        if values.shape != (count, *self._sizes):  # onnxruntime does not insist on the shape that the file declares
            raise CheckFailed(
                f"the policy's output {self._output!r} has the shape {list(values.shape)} for {count} observations",
                hint=f"{[count, *self._sizes]} is needed",
            )
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise CheckFailed(f"the policy's output {self._output!r} is not finite", hint="check the policy, and its observations")
        if self._argmax:
            return np.argmax(values, axis=-1)
        if self.discrete:
            return values.reshape(count).astype(np.int64)
        with np.errstate(over="ignore"):
            actions = values.astype(np.float32)
        if not np.isfinite(actions).all() or (values.dtype.kind in "iu" and np.abs(values).max() > WHOLE):
            raise CheckFailed(f"the policy's output {self._output!r} holds a number that float32 does not hold", hint="check the policy")
        return actions

    def _fed(self, name: str, fields: Mapping[str, Any]) -> np.ndarray:
        if name not in fields:
            raise InvalidInput(f"the observation has no field {name!r}, only {', '.join(map(str, fields))}", hint="name it: --policy-input")
        value, dtype, shape = _array(name, fields[name]), self.observation_dtypes[name], self.observation_shapes[name]
        if value.ndim != 1 + len(shape) or value.shape[1:] != shape or value.dtype.kind not in "biuf":
            raise InvalidInput(
                f"{name} is {value.dtype} of shape {value.shape[1:]}, the policy expects {dtype} of {shape}",
                hint="pass one observation, as the environment returns it",
            )
        with np.errstate(over="ignore", invalid="ignore"):
            cast = value.astype(dtype)
        if not np.isfinite(cast).all() or (dtype.kind in "iu" and not np.array_equal(cast, value)):
            raise InvalidInput(f"{name} has a value that is not finite, or that {dtype} does not hold", hint="check the environment")
        return cast

    def __repr__(self) -> str:
        return f"ForeignPolicy({self.path or 'from bytes'}, {_listed(list(self._inputs.values()))} to {self._output})"


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise InvalidInput(
            f"{name} is ragged: its rows differ in length", hint="pass one observation, as the environment returns it"
        ) from None


def opened(source: str | Path | bytes, input: str | None = None, output: str | None = None, argmax: bool = False) -> Policy:
    """Open a policy file of offrl, or one of another program if a tensor is named or ``argmax`` is set."""
    if input is None and output is None and not argmax:
        return Policy(source)
    return ForeignPolicy(source, input=input, output=output, argmax=argmax)


def _named(tensors: list[onnxruntime.NodeArg], wanted: str, name: str, what: str) -> onnxruntime.NodeArg:
    for tensor in tensors:
        if tensor.name == wanted:
            return tensor
    raise InvalidInput(f"{name} has no {what} {wanted!r}, only {_listed(tensors)}", hint=f"--policy-{what} takes one of these names")


def _listed(tensors: list[onnxruntime.NodeArg]) -> str:
    return ", ".join(f"{tensor.name} {tensor.type.removeprefix('tensor(').rstrip(')')}{list(tensor.shape)}" for tensor in tensors)


__all__ = ["ForeignPolicy", "opened"]
