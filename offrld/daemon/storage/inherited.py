"""Jobs whose checkpoints another job inherits: read from its specification, checked at submission, kept until it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from offrl.errors import Conflict, InvalidInput
from offrl.job import TRAINS, CollectSpec, TrainOnlineSpec, TrainSpec, taken
from offrld import settings
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import find
from offrld.daemon.storage.artifacts import choose_seed
from offrld.state.folder import StateFolder

POLICY = "policy"  # the kind of an input: any algorithm that learns to act


@dataclass(frozen=True)
class Use:
    """A job from which another inherits a checkpoint.

    ``where`` names the setting or option, for messages; ``algorithms``: the accepted ones, None: any; ``wanted``: the same in words.
    """

    where: str
    job: str
    seed: int | None
    algorithms: frozenset[str] | None = None
    wanted: str = ""
    name: str = "start"  # under which the run keeps the checkpoint
    now: bool = False  # its newest checkpoint is enough while it still runs


def of_steps(spec: CollectSpec | TrainOnlineSpec) -> list[Use]:
    """Return the job whose policy collects, or from which a job starts to train."""
    if isinstance(spec, TrainOnlineSpec):
        return [] if spec.start is None else [Use("--from", *taken(spec.start))]
    kind, _, reference = spec.policy.partition(":")
    return [Use("--policy", *taken(reference), now=True)] if kind == "job" else []


def of(spec: TrainSpec, catalog: dict[str, Any]) -> list[Use]:
    """Return the jobs from which ``spec``, checked against the catalog, inherits. Raises `InvalidInput` for a text that names no job."""
    algorithms = {algorithm["name"]: algorithm for algorithm in catalog["algorithms"]}
    mine = algorithms[spec.algorithm]
    presets = mine.get("presets") or {}
    declared = settings.of_catalog(catalog, spec.algorithm)
    chosen = {name: setting.default for name, setting in declared.items()}
    if spec.preset is not None:
        chosen |= settings.resolve(presets[spec.preset], declared)
    chosen |= settings.resolve(spec.config, declared)
    uses = []
    for name, wanted in (mine.get("inputs") or {}).items():
        if chosen.get(name) is None:
            continue
        if wanted == POLICY:
            accepted = [other for other, description in algorithms.items() if description.get("acts", True)]
        else:
            accepted = [other for other in algorithms if other == wanted]
        words = "a policy" if wanted == POLICY else f"a job of {wanted}"
        job, seed = taken(chosen[name])
        uses.append(Use(f"{spec.algorithm}: {name}", job, seed, frozenset(accepted), words, name))
    if spec.start is not None:
        uses.append(Use("--from", *taken(spec.start)))
    return uses


def check(db: Connection, state: StateFolder, use: Use) -> bool:
    """Whether the job must still succeed before its checkpoint can be inherited.

    Raises:
        Unknown: there is no such job, or it does not train that seed.
        InvalidInput: it is of another kind or algorithm.
        Conflict: it ended without a checkpoint.
    """
    job = find(db, use.job)
    if job.kind not in TRAINS:
        raise InvalidInput(f"{use.where}: job {job.id} is of kind {job.kind}, a train job is needed")
    algorithm = job.spec["algorithm"]
    if use.algorithms is not None and algorithm not in use.algorithms:
        raise InvalidInput(f"{use.where} takes {use.wanted}, job {job.id} is of {algorithm}", hint=f"submit {use.wanted} first")
    if use.seed is not None:
        choose_seed(job.id, job.spec["seeds"], use.seed)
    if not job.state.ended:
        return not (use.now and state.run(job.id).checkpoint_steps())
    if not state.run(job.id).checkpoint_steps():
        raise Conflict(f"{use.where}: job {job.id} has {job.state} and has no checkpoint", hint=f"`offrl retry {job.id}` first")
    return False


def pin(db: Connection, job: str, uses: list[Use]) -> None:
    """Record that ``job`` inherits from these jobs."""
    db.executemany("INSERT OR IGNORE INTO uses (job, used) VALUES (?, ?)", [(job, use.job) for use in uses])
