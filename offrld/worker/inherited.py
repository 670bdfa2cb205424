"""Load the checkpoints that a job inherits from other jobs (`offrld.state.inherited`)."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from offrl.errors import InvalidInput
from offrl.job import TrainOnlineSpec, TrainSpec, taken
from offrld.algos import get
from offrld.engine import Algorithm, CheckpointCorrupt, Loaded
from offrld.engine.learner.loaded import choose
from offrld.engine.updates import checkpoint
from offrld.state import inherited
from offrld.state.folder import StateFolder
from offrld.state.metric_files import read_metric
from offrld.state.run_folder import RunFolder


def inputs(state: StateFolder, run: RunFolder, algorithm: Algorithm, config: object) -> dict[str, Loaded]:
    """Load the jobs that settings of ``config`` name (`Algorithm.inputs`), by setting. Raises as `load`."""
    named = {name: getattr(config, name) for name in algorithm.inputs}
    return {
        name: choose(load(state, run, name, reference), taken(reference)[1]) for name, reference in named.items() if reference is not None
    }


def start(state: StateFolder, run: RunFolder, spec: TrainSpec | TrainOnlineSpec) -> list[Loaded] | None:
    """Load the run that a job starts from: all its seeds, or the one that ``spec`` names; None without one. Raises as `load`."""
    if spec.start is None:
        return None
    seed, seeds = taken(spec.start)[1], load(state, run, "start", spec.start)
    return seeds if seed is None else [choose(seeds, seed)]


def load(state: StateFolder, run: RunFolder, name: str, reference: str) -> list[Loaded]:
    """Load all seeds of the job in ``reference`` (JOB or JOB:SEED) from the checkpoint that ``run`` keeps under ``name``; see `keep`.

    Raises:
        InvalidInput: that job is gone, or has no intact checkpoint.
    """
    return Loaded.read_all(keep(state, run, name, reference), get)


def keep(state: StateFolder, run: RunFolder, name: str, reference: str, ratio: float | None = None) -> Path:
    """Return the path of the checkpoint that ``run`` keeps under ``name``, and inherit it first if it is missing. Raises as `load`.

    ``ratio``: inherit not the newest checkpoint but the one whose mean return is nearest to this share of the job's last mean return.
    """
    path = inherited.path(run, name)
    if path.exists():
        return path
    job, seed = taken(reference)
    source = state.run(job)
    steps = source.checkpoint_steps() if ratio is None else [_at_ratio(source, seed, ratio)]
    for step in reversed(steps):
        with contextlib.suppress(CheckpointCorrupt, FileNotFoundError):  # damaged, or replaced meanwhile: try the next one
            inherited.inherit(source.checkpoint(step), run, name)
            checkpoint.read(path)
            return path
        path.unlink(missing_ok=True)
    raise InvalidInput(f"{name}: job {job!r} has no checkpoint to continue from", hint=f"see `offrl status {job}`")


def _at_ratio(source: RunFolder, seed: int | None, ratio: float) -> int:
    """Return the step of the evaluated checkpoint whose mean return is nearest to ``ratio`` times the last one's. Raises `InvalidInput`."""
    first = json.loads(source.spec.read_text())["seeds"][0] if seed is None else seed
    rows = read_metric(source.metrics(first) / "return_mean.csv")
    evaluated = {step: rows[step] for step in source.checkpoint_steps() if step in rows}
    if not evaluated:
        raise InvalidInput(f"job {source.path.name} has no evaluated checkpoint", hint="train it with --eval-env and --eval-every")
    wanted = ratio * evaluated[max(evaluated)]
    return min(evaluated, key=lambda step: (abs(evaluated[step] - wanted), -step))
