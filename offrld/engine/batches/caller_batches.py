"""Batches of the caller: a batch of a store's sampler takes the form that losses read, with the noise of the update."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrl_store import rng
from offrld.engine.batches.feed import KEY, Feed, fields_of
from offrld.engine.batches.source import Request, Samples, each, stream_of
from offrld.engine.definition.algorithm import Batch, Noise, Rollout, ValueConfig, Windows
from offrld.engine.definition.run import Run
from offrld.preprocess.scalers import Affine, Scaler


def caller_batches(run: Run, batch: Any, k: int) -> list[Batch | Windows | Rollout]:
    """The batch of update ``k`` for each view of the training state.

    All seeds read the same rows; each seed has its own noise, which depends only on (seed, update).

    Args:
        batch: a batch of a store's sampler, or an engine's `Batch`, `Windows` or `Rollout`, which is of one seed and scaled already.

    Raises:
        InvalidInput: the batch lacks an array that the algorithm needs, or one has a wrong shape.
    """
    if isinstance(batch, Batch | Windows | Rollout):
        if not isinstance(batch, run.batch_type) or len(run.seeds) > 1:
            raise InvalidInput(
                f"a {type(batch).__name__} is of one seed; this learner takes {run.batch_type.__name__} for {len(run.seeds)} seeds",
                hint="pass the store's batch, which serves all seeds",
            )
        return [batch]
    if run.algorithm.plays:
        raise InvalidInput(f"{run.algorithm.name} takes a Rollout, got a {type(batch).__name__}", hint="it learns from its own rollouts")
    checked = _checked(run, batch)
    rows = len(checked.reward)
    config = run.config if rows == run.config.batch_size else dataclasses.replace(run.config, batch_size=rows)
    noise = {**run.algorithm.noise(config, run.space), KEY: Noise((), "uniform")}
    batches: list[Batch | Windows | Rollout] = []
    for seeds in run.groups:
        drawn = {name: _drawn(name, one, seeds, k, run.stacked) for name, one in noise.items()}
        tensors = each(checked, lambda array: _tensor(array, len(seeds) if run.stacked else 0))  # noqa: B023  used at once
        # The key "reward" says that the rewards are scaled already, which `_checked` has done.
        request = Request(run.algorithm.sampler, {"reward": True}, seeds, noise, run.stacked)
        batches.append(Feed(run, request, _One(Samples(tensors, drawn))).batch(k))
    return batches


def _checked(run: Run, batch: Any) -> Any:
    """Copy the arrays of a store's batch that the algorithm reads, and scale the rewards."""
    algorithm, kind = run.algorithm, run.batch_type
    of_a_sampler = dataclasses.is_dataclass(batch) and not isinstance(batch, type)
    if not of_a_sampler:
        raise InvalidInput(f"a batch is a {type(batch).__name__}", hint=f"take one of store.{algorithm.batch_kind}(...)")
    own = ("noise", "key")  # not in the caller's batch: made here
    needs = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING and field.name not in own]
    needs += [name for name in ("next_action", "returns") if getattr(algorithm, name)]
    for name in needs:
        if getattr(batch, name, None) is None:
            hint = f"sample with {name}=True" if name in ("next_action", "returns") else f"{algorithm.name} takes {kind.__name__}"
            raise InvalidInput(f"the batch has no {name}", hint=f"{hint}: store.{algorithm.batch_kind}(...)")
    _check_arrays(run, batch, needs)
    changed: dict[str, Any] = {"reward": _scaled(run, np.asarray(batch.reward), getattr(batch, "discount", None))}
    for name in ("returns", "returns_to_go"):
        if name in needs:
            changed[name] = _scaled_sums(run.scalers.reward, name, np.asarray(getattr(batch, name)))
    unread = {name: None for name in ("dataset", "remaining") if hasattr(batch, name)}
    return dataclasses.replace(batch, **changed, **unread, **({"extra": {}} if hasattr(batch, "extra") else {}))


def _check_arrays(run: Run, batch: Any, needs: list[str]) -> None:
    """Raise `InvalidInput` for the first array that torch would broadcast or cut.

    That is one of another shape, not of finite numbers, or not of choices.
    """
    lead, wanted = np.shape(batch.reward), "[B, T]" if run.batch_type is Windows else "[B]"
    if len(lead) != wanted.count(",") + 1 or 0 in lead:
        raise InvalidInput(f"reward of the batch is {list(lead)}", hint=f"{wanted} is needed, of at least one row")
    discrete, size = run.space.discrete, run.space.action_size
    for name in needs:
        value = getattr(batch, name)
        if name.endswith("observation"):
            fields = fields_of(value)
            for field, (_, shape) in run.space.inputs.items():
                hint = f"sample with frame_stack={run.config.frame_stack}"
                _check_array(f"{name} {field!r}", fields.get(field), (*lead, *shape), hint)
        elif name.endswith("action"):
            array = _check_array(name, value, (*lead, size) if not discrete else lead, "sample it from a store with these actions")
            wrong = (array < 0) | (array >= size) | (array != np.floor(array)) if discrete else np.zeros(0, bool)
            if wrong.any():
                raise InvalidInput(f"{name} of the batch has the value {array[wrong][0]}", hint=f"the choices are 0 to {size - 1}")
        else:
            _check_array(name, value, lead, f"take it of store.{run.algorithm.batch_kind}(...)")
    weight = getattr(batch, "weight", None)
    if weight is not None and (np.shape(weight) != lead or _numbers(weight) is None or np.any(np.asarray(weight) < 0)):
        raise InvalidInput(f"weight of the batch is {list(np.shape(weight))} numbers", hint=f"pass {list(lead)} finite ones from 0")


def _check_array(name: str, value: Any, shape: tuple[int, ...], hint: str) -> np.ndarray:
    """The value as an array. Raises `InvalidInput` unless it has this shape and finite numbers."""
    try:
        own = None if value is None else np.shape(value)
    except ValueError:  # rows of different lengths
        own = ()
    if own != shape:
        raise InvalidInput(f"{name} of the batch is {'missing' if own is None else list(own)}, {list(shape)} is needed", hint=hint)
    array = _numbers(value)
    if array is None:
        raise InvalidInput(f"{name} of the batch has a value that is not a finite number", hint="leave such rows out")
    return array


def _numbers(value: Any) -> np.ndarray | None:
    """An array of finite numbers; None for anything else."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return array if array.dtype.kind in "biu" or (array.dtype.kind == "f" and np.isfinite(array).all()) else None


def _scaled(run: Run, rewards: np.ndarray, discount: Any) -> np.ndarray:
    scaler = run.scalers.reward
    if scaler is None:
        return rewards
    tensor, steps = _double(rewards), getattr(run.config, "n_steps", 1)
    if steps == 1 or discount is None:
        return _with(scaler, tensor)
    if not isinstance(scaler, Affine):
        raise InvalidInput("sums of n rewards cannot be scaled by this reward scaler", hint="use n_steps=1, or an affine scaler")
    gamma = run.config.gamma if isinstance(run.config, ValueConfig) else 1.0
    parts = scaler.with_tensors({name: part.cpu().double() for name, part in scaler.tensors().items()})
    return parts.n_step_reward(tensor, _double(np.asarray(discount)), gamma).numpy()


def _scaled_sums(scaler: Scaler | None, name: str, sums: np.ndarray) -> np.ndarray:
    if scaler is None:
        return sums
    if not isinstance(scaler, Affine) or bool((scaler.shift != 0).any()):
        raise InvalidInput(f"{name} of a batch cannot be scaled by this reward scaler", hint="use one that only multiplies, or none")
    return _with(scaler, _double(sums))


def _double(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float64))


class _One:
    """A source that holds one batch."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def samples(self, k: int) -> Samples:
        return self._samples

    def close(self) -> None:
        """Do nothing: the batch is the caller's."""


def _with(scaler: Any, tensor: Tensor) -> np.ndarray:
    parts: Mapping[str, Tensor] = {name: part.cpu().double() for name, part in scaler.tensors().items()}
    return scaler.with_tensors(parts)(tensor).numpy()


def _drawn(name: str, noise: Noise, seeds: tuple[int, ...], k: int, stacked: bool) -> Tensor:
    draw = rng.normal if noise.distribution == "normal" else rng.uniform
    arrays = [np.empty(noise.shape, np.float32) for _ in seeds]
    for seed, array in zip(seeds, arrays, strict=True):
        draw(seed, k, stream_of(name), array)
    return torch.from_numpy(np.stack(arrays) if stacked else arrays[0])


def _tensor(array: Any, seeds: int) -> Tensor:
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
    return tensor.unsqueeze(0).expand(seeds, *tensor.shape) if seeds else tensor
