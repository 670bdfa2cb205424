"""The specification that repeats a train or train-online job, from the record of its run folder, not from what was submitted.

The record holds the resolved settings (a preset or a default may have changed since), the chosen runner, and the dataset's snapshot; the
folder also keeps the inherited checkpoints. A repeated train-online job collects its steps again, into a dataset of its own: the steps of
the first one would change what the second one learns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from offrl.errors import Conflict, InvalidInput, Unknown, nearest
from offrl.job import TRAINS, TrainOnlineSpec, TrainSpec
from offrld.daemon.queue.job_record import Job
from offrld.state import inherited
from offrld.state.folder import StateFolder


@dataclass(frozen=True)
class Repeat:
    """What a rerun submits. ``kept``: names of inherited checkpoints, which exist even if their jobs are gone."""

    of: Job
    spec: TrainSpec | TrainOnlineSpec
    snapshot: str | None
    kept: frozenset[str]


def read(state: StateFolder, job: Job, into: str | None = None) -> Repeat:
    """Read the repetition of a job. ``into``: the dataset for the steps of a train-online job. Reads files: call it in a thread.

    Raises `InvalidInput`, `Conflict`.
    """
    if job.kind not in TRAINS:
        raise InvalidInput(f"job {job.id} is of kind {job.kind}, only a train or train-online job can be repeated")
    if into is not None and job.kind == "train":
        raise InvalidInput(f"--into {into}: job {job.id} is a train job, which collects no steps", hint="leave it out")
    if into is None and job.kind == "train_online" and job.dataset is not None:
        raise InvalidInput(
            f"job {job.id} collected its steps in dataset {job.dataset!r}; its rerun needs a new one",
            hint=f"`offrl rerun {job.id} --into NAME`",
        )
    spec_type = TrainSpec if job.kind == "train" else TrainOnlineSpec
    run = state.run(job.id)
    kept = inherited.names(run)
    try:
        record, config = json.loads(run.spec.read_text()), json.loads(run.config.read_text())
    except FileNotFoundError:
        if job.attempt and job.state.ended and job.state != "cancelled":
            raise Conflict(f"job {job.id} ended before it had resolved its settings", hint="submit it again") from None
        submitted = {**job.spec, **({} if into is None else {"dataset": into})}
        return Repeat(job, spec_type.model_validate(submitted), job.snapshot, kept)  # it has not started: repeat what was submitted
    except ValueError as error:
        raise Conflict(f"the record of job {job.id} cannot be read: {error}", hint="submit it again") from None
    values: dict[str, Any] = {**record["spec"], "config": config, "preset": None}
    if job.kind == "train":
        values["runner"] = record["run"]["runner"]
    if into is not None:
        values["dataset"] = into
    if record["run"]["device"] == "cpu":
        values["device"] = "cpu"
    return Repeat(job, spec_type.model_validate(values), record.get("snapshot"), kept)


def check(repeat: Repeat, catalog: dict[str, Any]) -> None:
    """Raise `Unknown` if its algorithm or its environment is no longer installed."""
    for what, name, known in (
        ("algorithm", repeat.spec.algorithm, [algorithm["name"] for algorithm in catalog["algorithms"]]),
        ("environment", repeat.spec.eval_env, catalog["environments"]),
        ("environment", getattr(repeat.spec, "env", None), catalog["environments"]),
    ):
        if name is not None and name not in known:
            raise Unknown(f"job {repeat.of.id} used {what} {name!r}, which is not installed any more", hint=nearest(name, known))
