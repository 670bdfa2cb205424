"""Checkpoints of a trainer: their description of the run, and how a run continues from them."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from offrl import __version__
from offrl.errors import OffrlError
from offrld import settings
from offrld.engine.definition.run import Run
from offrld.engine.learner.trainer import Trainer
from offrld.engine.updates import checkpoint
from offrld.engine.updates.means import Means


def describe(trainer: Trainer, feed: str) -> dict[str, Any]:
    """Return what a run depends on besides config and data: runner, device, threads, dtype and versions."""
    run = trainer.run
    name = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "runner": trainer.runner,
        "linear": trainer.linear,
        "feed": feed,
        "device": str(run.device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "dtype": str(run.dtype).removeprefix("torch."),
        "seeds_together": run.stacked,
        "versions": {"offrl": __version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def save(path: str | os.PathLike[str], trainer: Trainer, description: Mapping[str, Any]) -> None:
    """Write state, scalers, step and metrics of a trainer atomically, with a description in JSON."""
    scalers = {f"scaler/{name}": value for name, value in trainer.run.scalers.tensors().items()}
    description = {**description, "step": trainer.step, "means": trainer.means.as_json()}
    checkpoint.write(path, trainer.state.tensors() | scalers, description)


def identity(run: Run, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description that a checkpoint and a run must have in common.

    Args:
        provenance: the snapshot of the dataset and the number of held-out episodes; empty without a dataset.
    """
    return {
        "algorithm": run.algorithm.name,
        "config": settings.as_flat(run.config),
        **provenance,
        "seeds": list(run.seeds),
        "space": run.space.as_json(),
    }


def restore(path: str | os.PathLike[str], trainer: Trainer, provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """Restore a trainer to the state of a checkpoint; return the checkpoint's description.

    Args:
        provenance: see `identity`; None accepts any dataset.

    Raises:
        OffrlError: the checkpoint belongs to another run; the trainer is unchanged.
        CheckpointCorrupt: the checkpoint is damaged.
    """
    tensors, description = checkpoint.read(path)
    _check_identity(path, trainer.run, description, provenance or {})
    state = {name: value for name, value in tensors.items() if not name.startswith("scaler/")}
    if not trainer.state.fits(state):
        raise _unfit(path, "does not fit the networks of this run", description)
    trainer.state.load(state)
    for name, value in trainer.run.scalers.tensors().items():
        value.copy_(tensors[f"scaler/{name}"])
    trainer.step = int(description["step"])
    trainer.moves = {key: int(moments.counts[0]) for key, moments in trainer.state.moments.items()}
    trainer.means = Means.from_json(trainer.run.seeds, description["means"])
    return description


def _check_identity(path: str | os.PathLike[str], run: Run, description: dict[str, Any], provenance: Mapping[str, Any]) -> None:
    for name, mine in identity(run, provenance).items():
        theirs = description.get(name)
        if name == "config":
            _check_config(path, run, description)
        elif theirs != mine and not (name == "space" and _narrowed(theirs) == _narrowed(mine)):
            raise _unfit(path, f"has {name} {theirs!r}, this run {mine!r}", description)


def _check_config(path: str | os.PathLike[str], run: Run, description: dict[str, Any]) -> None:
    """Raise unless the checkpoint has this run's settings; settings that an earlier version lacked have their defaults."""
    theirs, mine = description.get("config", {}), settings.as_flat(run.config)
    defaults = settings.as_flat(run.algorithm.config)
    for name in sorted(theirs.keys() | mine.keys()):
        before, now = theirs.get(name, defaults.get(name)), mine.get(name)
        if before != now or name not in mine:
            raise _unfit(path, f"has {name} {before!r}, this run {now!r}" if name in mine else f"has a setting {name}", description)


def _narrowed(space: Any) -> Any:
    """Replace float64 by float32 in a space's JSON: earlier versions recorded an environment's float64 observations as float32."""
    try:
        fields = {name: {**field, "dtype": field["dtype"].replace("float64", "float32")} for name, field in space["observation"].items()}
        return {**space, "observation": fields} if space["source"].startswith("env") else space
    except (AttributeError, KeyError, TypeError):
        return space


def _unfit(path: str | os.PathLike[str], why: str, description: dict[str, Any]) -> OffrlError:
    """Build the error for a checkpoint from which this run cannot continue; it names the version that wrote it and a remedy."""
    version = description.get("versions", {}).get("offrl")
    written = f"offrl {version}" if version else "an earlier offrl"
    return OffrlError(
        f"checkpoint {os.fspath(path)} {why}",
        hint=f"it was written by {written}, this is {__version__}: continue with that version, or start over with `offrl rerun JOB`",
    )
