"""Files of a run folder that a client fetches; several files are packed into one. Reads files: call it in a thread.

What is packed, and what a running worker may delete while it is read (a checkpoint), stands under ``cache/packed/JOB/``; its path for
`ReadArtifact` begins with ``packed/``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from offrl.errors import Conflict, InvalidInput, Unknown
from offrl.job import POLICY_SUFFIXES
from offrl.wire import Artifact
from offrl_store.disk import link_or_copy
from offrld.state.below import open_below
from offrld.state.folder import StateFolder
from offrld.state.metric_files import best_step
from offrld.state.run_folder import RunFolder

KEEP_S = 3600.0  # age at which a packed file is deleted: until then somebody may be reading it


@dataclass(frozen=True)
class Missing:
    """A policy that is not exported yet, but whose checkpoint exists."""

    seed: int
    step: int


def choose_seed(job: str, seeds: list[int], seed: int | None) -> int:
    """The wanted seed, or the first; `InvalidInput` naming the trained ones."""
    if seed is None:
        return seeds[0]
    if seed not in seeds:
        raise InvalidInput(f"job {job} has no seed {seed}", hint=f"trained seeds: {', '.join(map(str, seeds[:40]))}")
    return seed


def choose_step(job: str, run: RunFolder, seed: int, *, best: bool, step: int | None, format: str | None) -> int:
    """The wanted step, the best evaluated, or the newest; one with a checkpoint, or with a policy of ``format`` (None: checkpoints only).

    Raises `Conflict`, `InvalidInput`.
    """
    steps = sorted({*run.checkpoint_steps(), *(run.policy_steps(seed, format) if format else [])})
    if not steps:
        raise Conflict(f"job {job} has no checkpoint yet", hint="wait for its first one: `offrl status` shows how far it is")
    if best and step is not None:
        raise InvalidInput(f"both the best step and step {step} were requested", hint="pass one of --best and --step")
    if step is not None:
        if step not in steps:
            raise Unknown(f"job {job} has no checkpoint of step {step}", hint=f"steps: {_shortened(steps)}")
        return step
    if not best:
        return steps[-1]
    best_of_seed = best_step(run.metrics(seed) / "return_mean.csv", steps)
    if best_of_seed is None:
        raise InvalidInput(
            f"job {job} has no evaluation of seed {seed} at a step that is kept", hint="submit with --eval-env ID --eval-every K"
        )
    return best_of_seed


def find(
    state: StateFolder, job: str, kind: str, seeds: list[int], *, seed: int | None, best: bool, step: int | None
) -> Artifact | Missing:
    """The wanted file of a job, or that its policy has to be exported first."""
    run = state.run(job)
    if kind == "dataset":
        return _dataset(state, job)
    if kind == "metrics":
        chosen = seeds if seed is None else [choose_seed(job, seeds, seed)]
        return _metrics(state, job, chosen)
    chosen_seed = choose_seed(job, seeds, seed)
    chosen_step = choose_step(job, run, chosen_seed, best=best, step=step, format=kind if kind in POLICY_SUFFIXES else None)
    if kind == "checkpoint":
        path = run.checkpoint(chosen_step)
        return _described(state, job, _kept(state, job, path), f"{job}-{path.name}")
    path = run.policy(chosen_seed, chosen_step, kind)
    if not path.is_file():
        return Missing(chosen_seed, chosen_step)
    return _described(state, job, path, f"policy{path.suffix}")


def read(state: StateFolder, job: str, path: str, offset: int, size: int) -> bytes:
    """Read bytes of a file of the job; empty at its end. Raises `Unknown`."""
    root = state.run(job).path
    inside = path
    if path.startswith("packed/"):
        root, inside = state.packed / job, path.removeprefix("packed/")
    try:
        descriptor = open_below(root, inside)
    except OSError:
        raise Unknown(f"job {job} has no file {path!r} (any more)", hint="fetch it again") from None
    try:
        parts, wanted = [], size
        while wanted and (part := os.pread(descriptor, wanted, offset)):
            parts.append(part)
            offset, wanted = offset + len(part), wanted - len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


# -------------------------------------------------------------------------------------------------------------------- parts
def _described(state: StateFolder, job: str, path: Path, name: str) -> Artifact:
    packed = state.packed / job
    relative = f"packed/{path.relative_to(packed)}" if path.is_relative_to(packed) else str(path.relative_to(state.run(job).path))
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise Unknown(f"job {job}: {relative} cannot be read: {error.strerror}", hint="fetch it again") from None
    return Artifact(job=job, ready=True, path=relative, name=name, size=size, sha256=digest)


def _kept(state: StateFolder, job: str, path: Path) -> Path:
    """Link a file that its worker may delete: the link keeps the bytes while they are read, and needs no space."""
    link = _packed(state, job) / path.name
    try:
        if link.exists() and not link.samefile(path):
            link.unlink()
        if not link.exists():
            link_or_copy(path, link)
    except FileNotFoundError:
        raise Unknown(f"checkpoint {path.name} of job {job} has just been replaced by a newer one", hint="fetch it again") from None
    except FileExistsError:  # another request made it at the same moment
        pass
    return link


def _packed(state: StateFolder, job: str) -> Path:
    """The folder of packed files, after old ones were deleted."""
    folder = state.packed / job
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            if time.time() - entry.stat(follow_symlinks=False).st_ctime > KEEP_S:
                os.unlink(entry.path)
    return folder


def _metrics(state: StateFolder, job: str, seeds: list[int]) -> Artifact:
    """``seed-S/NAME.csv`` of the seeds in one zip file."""
    files = [(f"seed-{seed}/{path.name}", path) for seed in seeds for path in sorted(state.run(job).metrics(seed).glob("*.csv"))]
    if not files:
        raise Conflict(f"job {job} has no metrics yet", hint="wait for its first ones: `offrl status` shows how far it is")
    folder = _packed(state, job)
    temporary = folder / f".metrics.{time.time_ns()}.tmp"
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), path.read_bytes(), zipfile.ZIP_DEFLATED)
    # A name by content: the file of another reader, who sees an earlier state, stays as it is.
    path = folder / f"metrics-{hashlib.sha256(temporary.read_bytes()).hexdigest()[:16]}.zip"
    temporary.rename(path)
    return _described(state, job, path, "metrics.zip")


def _dataset(state: StateFolder, job: str) -> Artifact:
    """The result of a dataset export: its one file, or its folder as a tar file."""
    folder = state.run(job).dataset
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    if not entries:
        raise Conflict(f"job {job} has no result yet", hint="wait for it to succeed")
    if len(entries) == 1 and entries[0].is_file() and not entries[0].is_symlink():
        return _described(state, job, entries[0], entries[0].name)
    source = entries[0] if len(entries) == 1 else folder
    path = _packed(state, job) / "dataset.tar"
    if not path.exists():
        temporary = path.with_name(f".dataset.{time.time_ns()}.tmp")
        try:
            with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
                archive.add(source, arcname="." if source is folder else source.name, filter=_plain)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    return _described(state, job, path, f"{source.name}.tar")


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Pack files and folders only, without an owner."""
    if not (member.isfile() or member.isdir()):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def remove_packed(state: StateFolder, job: str) -> None:
    """Delete the packed files of a job."""
    shutil.rmtree(state.packed / job, ignore_errors=True)


def _shortened(steps: list[int]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:3], "...", *shown[-8:]])
