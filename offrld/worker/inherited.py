"""The checkpoints that a job inherits from other jobs (`offrld.state.inherited`), loaded."""

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
    """What the settings of ``config`` that name other jobs (`Algorithm.inputs`) stand for. Raises as `load`."""
    named = {name: getattr(config, name) for name in algorithm.inputs}
    return {
        name: choose(load(state, run, name, reference), taken(reference)[1]) for name, reference in named.items() if reference is not None
    }


def start(state: StateFolder, run: RunFolder, spec: TrainSpec | TrainOnlineSpec) -> list[Loaded] | None:
    """The run that a job starts from: all its seeds, or the one that ``spec`` names. Raises as `load`."""
    if spec.start is None:
        return None
    seed, seeds = taken(spec.start)[1], load(state, run, "start", spec.start)
    return seeds if seed is None else [choose(seeds, seed)]


def load(state: StateFolder, run: RunFolder, name: str, reference: str) -> list[Loaded]:
    """All seeds of the job in ``reference`` (JOB or JOB:SEED), from what ``run`` keeps under ``name``, which is made where it is missing.

    Raises:
        InvalidInput: that job is gone, or has no checkpoint that is whole.
    """
    return Loaded.read_all(keep(state, run, name, reference), get)


def keep(state: StateFolder, run: RunFolder, name: str, reference: str, ratio: float | None = None) -> Path:
    """The file under ``name`` that `load` reads; raises as it does.

    ``ratio``: of the job's last mean return; the checkpoint whose own is nearest to it is kept, instead of the newest.
    """
    kept = inherited.path(run, name)
    if kept.exists():
        return kept
    job, seed = taken(reference)
    source = state.run(job)
    steps = source.checkpoint_steps() if ratio is None else [_at_ratio(source, seed, ratio)]
    for step in reversed(steps):
        with contextlib.suppress(CheckpointCorrupt, FileNotFoundError):  # damaged, or replaced meanwhile: the next one serves
            inherited.inherit(source.checkpoint(step), run, name)
            checkpoint.read(kept)
            return kept
        kept.unlink(missing_ok=True)
    raise InvalidInput(f"{name}: job {job!r} has no checkpoint to go on from", hint=f"see `offrl status {job}`")


def _at_ratio(source: RunFolder, seed: int | None, ratio: float) -> int:
    """The step of the evaluated checkpoint whose mean return is nearest to ``ratio`` of the last one's; `InvalidInput` where none was."""
    first = json.loads(source.spec.read_text())["seeds"][0] if seed is None else seed
    rows = read_metric(source.metrics(first) / "return_mean.csv")
    evaluated = {step: rows[step] for step in source.checkpoint_steps() if step in rows}
    if not evaluated:
        raise InvalidInput(f"job {source.path.name} has no checkpoint that was evaluated", hint="train it with --eval-env, --eval-every")
    wanted = ratio * evaluated[max(evaluated)]
    return min(evaluated, key=lambda step: (abs(evaluated[step] - wanted), -step))
