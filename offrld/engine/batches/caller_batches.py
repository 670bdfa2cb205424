"""Batches that the caller brings: a store's raw batch becomes what losses see, with the noise of the update."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrl_store import rng
from offrld.engine.batches.feed import KEY, Feed, Scalers, fields_of
from offrld.engine.batches.source import Raw, Request, each, stream_of
from offrld.engine.definition.algorithm import KINDS, Algorithm, Batch, Noise, Rollout, ValueConfig, Windows
from offrld.engine.definition.space import Space
from offrld.preprocess.scalers import Affine


class Given:
    """Turns raw batches into one batch per view of the training state.

    A raw batch goes to all seeds alike; each has its own noise, which depends on (seed, update) alone.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        config: Any,
        space: Space,
        scalers: Scalers,
        *,
        groups: list[tuple[int, ...]],
        stacked: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._algorithm, self._config, self._space, self._scalers = algorithm, config, space, scalers
        self._groups, self._stacked, self._dtype, self._device = groups, stacked, dtype, device

    def batches(self, batch: Any, k: int) -> list[Batch | Windows | Rollout]:
        """The batch of update ``k`` for each view.

        Args:
            batch: an engine's `Batch`, `Windows` or `Rollout` (one seed's, scaled: taken as it is), or one of a store's samplers.

        Raises:
            InvalidInput: something that the algorithm needs is missing, or a wrong shape.
        """
        kind = KINDS[self._algorithm.batch_kind]
        if isinstance(batch, Batch | Windows | Rollout):
            if not isinstance(batch, kind) or self._stacked or len(self._groups) > 1:
                raise InvalidInput(
                    f"a {type(batch).__name__} is one seed's, this learner takes {kind.__name__} for {len(self._groups)} seeds",
                    hint="give the store's own batch, which serves them all",
                )
            return [batch]
        if self._algorithm.plays:
            raise InvalidInput(f"{self._algorithm.name} takes a Rollout, got a {type(batch).__name__}", hint="it learns from its own play")
        raw = self._checked(batch, kind)
        rows = len(raw.reward)
        config = self._config if rows == self._config.batch_size else dataclasses.replace(self._config, batch_size=rows)
        noise = {**self._algorithm.noise(config, self._space), KEY: Noise((), "uniform")}
        found = []
        for group in self._groups:
            drawn = {name: _drawn(name, each_, group, k, self._stacked) for name, each_ in noise.items()}
            tensors = each(raw, lambda array: _tensor(array, len(group) if self._stacked else 0))  # noqa: B023  used at once
            # The key "reward" says that the rewards are scaled already, which `_checked` has done.
            request = Request(self._algorithm.batch_kind, {"reward": True}, group, noise, self._stacked)
            source = _One(Raw(tensors, drawn))
            found.append(Feed(config, request, source, self._space, self._scalers, dtype=self._dtype, device=self._device).batch(k))
        return found

    def _checked(self, batch: Any, kind: type) -> Any:
        """A copy of a store's batch with what the algorithm reads, rewards scaled."""
        own = ("noise", "key")  # made here
        needs = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING and field.name not in own]
        needs += [name for name in ("next_action", "returns") if getattr(self._algorithm, name)]
        for name in needs:
            if getattr(batch, name, None) is None:
                hint = f"sample with {name}=True" if name in ("next_action", "returns") else f"{self._algorithm.name} takes {kind.__name__}"
                raise InvalidInput(f"the batch has no {name}", hint=f"{hint}: store.{self._algorithm.batch_kind}(...)")
        seen = fields_of(batch.observation)
        lead = np.shape(batch.reward)
        for name, (_, shape) in self._space.inputs.items():
            if name not in seen or np.shape(seen[name]) != (*lead, *shape):
                got = list(np.shape(seen[name])) if name in seen else "missing"
                raise InvalidInput(
                    f"observation {name!r} of the batch is {got}, {[*lead, *shape]} is needed",
                    hint=f"sample with frame_stack={self._config.frame_stack}",
                )
        weight = getattr(batch, "weight", None)
        if weight is not None and (np.shape(weight) != lead or not np.all(np.isfinite(weight)) or np.any(np.asarray(weight) < 0)):
            raise InvalidInput(f"weight of the batch is {list(np.shape(weight))} numbers", hint=f"give {list(lead)} finite ones from 0")
        changed: dict[str, Any] = {"reward": self._scaled(np.asarray(batch.reward), getattr(batch, "discount", None))}
        for name in ("returns", "returns_to_go"):
            if name in needs:
                changed[name] = self._scaled_sums(name, np.asarray(getattr(batch, name)))
        unread = {name: None for name in ("dataset", "remaining") if hasattr(batch, name)}
        return dataclasses.replace(batch, **changed, **unread, **({"extra": {}} if hasattr(batch, "extra") else {}))

    def _scaled(self, rewards: np.ndarray, discount: Any) -> np.ndarray:
        scaler = self._scalers.reward
        if scaler is None:
            return rewards
        tensor, steps = self._double(rewards), getattr(self._config, "n_steps", 1)
        if steps == 1 or discount is None:
            return _with(scaler, tensor)
        if not isinstance(scaler, Affine):
            raise InvalidInput("sums of n rewards cannot be scaled by this reward scaler", hint="use n_steps=1, or an affine scaler")
        gamma = self._config.gamma if isinstance(self._config, ValueConfig) else 1.0
        parts = scaler.with_tensors({name: part.cpu().double() for name, part in scaler.tensors().items()})
        return parts.n_step_reward(tensor, self._double(np.asarray(discount)), gamma).numpy()

    def _scaled_sums(self, name: str, sums: np.ndarray) -> np.ndarray:
        scaler = self._scalers.reward
        if scaler is None:
            return sums
        if not isinstance(scaler, Affine) or bool((scaler.shift != 0).any()):
            raise InvalidInput(f"{name} of a given batch cannot be scaled by this reward scaler", hint="use one that multiplies, or none")
        return _with(scaler, self._double(sums))

    @staticmethod
    def _double(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array, np.float64))


class _One:
    """A source that holds one batch."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw

    def raw(self, k: int) -> Raw:
        return self._raw

    def close(self) -> None:
        """There is nothing to give back."""


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
