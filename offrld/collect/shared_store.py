"""The store of several workers: one writer takes the steps of all, each environment's as episodes of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl_store import Writer
from offrld.collect.batches import CollectedBatch
from offrld.collect.into import SYNC_SHARE


class SharedStore:
    """Puts workers' batches into a store.

    Args:
        sync_s: seconds between two moments from which on open episodes outlive a crash.
    """

    def __init__(self, writer: Writer, sync_s: float) -> None:
        self._writer, self._sync_s = writer, sync_s
        self._next_sync = time.monotonic() + sync_s
        self._under_way: dict[int, int] = {}  # environment -> its trajectory, while the store has it open

    def put(self, first: int, batch: CollectedBatch, ends: Mapping[int, Mapping[str, Any]]) -> None:
        """Add a worker's steps, each environment's in their order.

        Args:
            first: number of the worker's first environment, over all workers.
            ends: trajectory -> metadata of its episode, of the trajectories that end in the batch.
        """
        several = batch.reward.ndim == 2
        for row in range(len(batch.reward) if several else 1):
            steps = batch.map(lambda array: array[row]) if several else batch  # noqa: B023  used at once
            self._put(first + row, steps, ends)
        if time.monotonic() >= self._next_sync:
            began = time.monotonic()
            self._writer.sync()
            self._next_sync = time.monotonic() + max(self._sync_s, SYNC_SHARE * (time.monotonic() - began))

    def _put(self, env: int, batch: CollectedBatch, ends: Mapping[int, Mapping[str, Any]]) -> None:
        writer = self._writer
        rewards, ids = batch.reward.tolist(), batch.traj_ids.tolist()
        for t in np.flatnonzero(batch.mask).tolist():
            if self._under_way.get(env) != ids[t]:
                writer.begin(_at(batch.observation, t), env)
                self._under_way[env] = ids[t]
            writer.step(batch.action[t], rewards[t], _at(batch.next_observation, t), env=env)
            if batch.done[t]:
                writer.end(bool(batch.terminated[t]), env=env, metadata=ends.get(ids[t]))
                del self._under_way[env]

    def cut(self) -> None:
        """End the episodes under way as truncated, and commit."""
        for env in list(self._under_way):
            self._writer.end(env=env)
        self._under_way.clear()
        self._writer.commit()


def _at(fields: Any, t: int) -> Any:
    return {name: array[t] for name, array in fields.items()} if isinstance(fields, dict) else fields[t]


__all__ = ["SharedStore"]
