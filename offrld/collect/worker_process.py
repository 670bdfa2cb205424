"""The process of one worker of a multi-process collector: a `Collector` that follows commands from a pipe."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from offrl.errors import WorkerFailed, to_wire
from offrl_store.errors import OffrlError
from offrld.collect.batches import CollectedBatch
from offrld.collect.collector import Collector
from offrld.collect.transport import pack, unpack

PREFIXES = ("observation", "next_observation")  # of dict fields: "observation/camera"


def serve(connection: Connection, stop: Any, env: Any, policy: Any, factory: Callable[[], Any] | None, options: dict[str, Any]) -> None:
    """Follow the commands of the main process until it sends ``stop`` or ends. An error is sent, and ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends its workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        with Collector(env, factory() if factory is not None else policy, **options) as collector:
            collector.stepper.interruptor = lambda: bool(stop.value)
            collector.stepper.ends = []
            connection.send_bytes(pack({"ready": collector.behaviour.name, "envs": collector.envs.count}, {}))
            _answer(connection, collector)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the main process is gone
    except Exception as error:
        if not isinstance(error, OffrlError):
            traceback.print_exc(file=sys.stderr)
            error = WorkerFailed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", hint="its traceback is above")
        connection.send_bytes(pack({"error": to_wire(error)}, {}))


def _answer(connection: Connection, collector: Collector) -> None:
    while True:
        message, arrays = unpack(connection.recv_bytes())
        match message["do"]:
            case "stop":
                return
            case "weights":
                collector.update_policy_weights(arrays)
            case "collect":
                batch = collector.rollout(message["frames"])
                ends, collector.stepper.ends = collector.stepper.ends, []
                connection.send_bytes(pack({"ends": ends}, to_arrays(batch)))
            case "reset":
                collector.reset(message["seed"])
            case "state":
                connection.send_bytes(pack({"state": collector.state_dict()}, {}))
            case "load_state":
                collector.load_state_dict(message["state"])


def to_arrays(batch: CollectedBatch) -> dict[str, np.ndarray]:
    """Return the arrays of a batch under flat names, without ``done``, which follows from the others."""
    arrays: dict[str, np.ndarray] = {}
    for name in ("observation", "next_observation", "action", "reward", "terminated", "truncated", "traj_ids", "mask"):
        value = getattr(batch, name)
        arrays.update({f"{name}/{field}": array for field, array in value.items()} if isinstance(value, dict) else {name: value})
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> CollectedBatch:
    """Return the batch of `to_arrays`."""
    values: dict[str, Any] = {name: array for name, array in arrays.items() if "/" not in name}
    for prefix in PREFIXES:
        fields = {name.removeprefix(f"{prefix}/"): array for name, array in arrays.items() if name.startswith(f"{prefix}/")}
        if fields:
            values[prefix] = fields
    return CollectedBatch(**values, done=values["terminated"] | values["truncated"])
