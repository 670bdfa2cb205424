"""The service's workload: small sources whose rows identify their origin, and jobs whose final weights are known.

Every job computes the same bits however often it is interrupted (CPU, eager, one thread), so what an undisturbed run of it has in
its last checkpoint is what every other run of it must have.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from offrl import Client
from offrl.job import TrainSpec

EPISODES, STEPS = 8, 25  # of a source
OBSERVATION, ACTION = 3, 2  # entries
TINY = {"batch_size": 16}


def arrays(number: int, episodes: int = EPISODES) -> dict[str, np.ndarray]:
    """A source of ``episodes`` episodes: random data of that number, every reward of it is the number."""
    rng = np.random.default_rng(number)
    rows = episodes * STEPS
    timeouts = np.zeros(rows, bool)
    timeouts[STEPS - 1 :: STEPS] = True
    actions = rng.uniform(-1, 1, size=(rows, ACTION)).astype(np.float32)
    actions[0], actions[1] = -1, 1  # so that every source shows the same bounds
    return {
        "observations": rng.normal(size=(rows, OBSERVATION)).astype(np.float32),
        "actions": actions,
        "rewards": np.full(rows, number, np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": timeouts,
    }


def source(folder: Path, number: int, episodes: int = EPISODES) -> Path:
    """`arrays` as an ``.npz`` file."""
    path = folder / f"source-{number}.npz"
    if not path.exists():
        np.savez(path, **arrays(number, episodes))
    return path


@dataclass(frozen=True)
class Kind:
    """One kind of job: equal ones give equal weights."""

    name: str
    algorithm: str
    steps: int
    seeds: tuple[int, ...] = (0,)
    config: dict[str, Any] = field(default_factory=dict)

    def spec(self, dataset: str, steps: int | None = None) -> TrainSpec:
        return TrainSpec(
            algorithm=self.algorithm,
            dataset=dataset,
            steps=steps or self.steps,
            seeds=list(self.seeds),
            config={**TINY, **self.config},
            runner="eager",
            device="cpu",
            threads=1,
        )


KINDS = (
    Kind("td3_bc", "td3_bc", 1200, (0,), {"actor_encoder.units": [16], "critic_encoder.units": [16]}),
    Kind("bc of two seeds", "bc", 1500, (1, 2), {"encoder.units": [16]}),
    Kind("iql", "iql", 900, (3,), {
        "actor_encoder.units": [16], "critic_encoder.units": [16], "value_encoder.units": [16], "observation_scaler": "standard"}),
)  # fmt: skip


def kinds(count: int = len(KINDS), scale: int = 1) -> tuple[Kind, ...]:
    """The first n kinds, with a multiple of their updates."""
    return tuple(replace(kind, steps=scale * kind.steps) for kind in KINDS[:count])


def weights(client: Client, job: str, folder: Path) -> dict[str, np.ndarray]:
    """The tensors of the job's last checkpoint, as a client gets them."""
    path = folder / f"{job}.safetensors"
    client.job(job).fetch(path, "checkpoint")
    return load_file(path)


def differences(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[str]:
    """The names of tensors that are not equal to the last bit."""
    names = sorted(found.keys() | expected.keys())
    return [
        name
        for name in names
        if name not in found
        or name not in expected
        or found[name].tobytes() != expected[name].tobytes()
        or found[name].dtype != expected[name].dtype
    ]
