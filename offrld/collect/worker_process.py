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
    """Collect as the main process asks, until it says stop or is gone. Errors are sent, and end the worker."""
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
            error = WorkerFailed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", hint="its traceback stands above")
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
    """The arrays of a batch under flat names; ``done`` follows from the others."""
    found: dict[str, np.ndarray] = {}
    for name in ("observation", "next_observation", "action", "reward", "terminated", "truncated", "traj_ids", "mask"):
        value = getattr(batch, name)
        found.update({f"{name}/{field}": each for field, each in value.items()} if isinstance(value, dict) else {name: value})
    return found


def from_arrays(arrays: Mapping[str, np.ndarray]) -> CollectedBatch:
    """The batch of `to_arrays`."""
    values: dict[str, Any] = {name: array for name, array in arrays.items() if "/" not in name}
    for prefix in PREFIXES:
        fields = {name.removeprefix(f"{prefix}/"): array for name, array in arrays.items() if name.startswith(f"{prefix}/")}
        if fields:
            values[prefix] = fields
    return CollectedBatch(**values, done=values["terminated"] | values["truncated"])
