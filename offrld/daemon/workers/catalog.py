"""The catalog: what can be trained here, and the check of a train job against it.

The daemon does not import the algorithms, because they import torch. It asks a `describe` worker once and caches the answer on disk under a
hash of everything that could change it: the versions of all installed distributions and the times of offrld's own source files.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any, TypeVar

import offrld
from offrl.environments import unknown_hint
from offrl.errors import InternalError, InvalidInput, Unknown, nearest
from offrl.job import TrainOnlineSpec, TrainSpec
from offrl.set_values import flat
from offrl_store.disk import write_atomic
from offrld import settings
from offrld.daemon.queue.datasets import action_kind
from offrld.executors.local import LocalExecutor
from offrld.state.folder import StateFolder

DESCRIBE_S = 180.0  # loading torch and gymnasium from a cold disk
ASK_S = 60.0  # for an answer, which may have to create a simulator
ASKED = 2  # questions at once
ANSWERS = 200  # kept in memory
TRIES = 3  # starts of a describe worker, if a signal ends it
KEEP = 3  # cached catalogs, for switching between versions
Trained = TypeVar("Trained", TrainSpec, TrainOnlineSpec)
log = logging.getLogger("offrld.catalog")


class Catalog:
    """The algorithms and environments of this installation. ``start`` it early; ``ready`` waits for it."""

    def __init__(self, state: StateFolder, executor: LocalExecutor) -> None:
        self._state = state
        self._executor = executor
        self._loading: asyncio.Task[dict[str, Any]] | None = None
        self._asking = asyncio.Semaphore(ASKED)
        self._answers: dict[str, dict[str, Any]] = {}  # the latest `ANSWERS`

    def start(self) -> asyncio.Task[dict[str, Any]]:
        """Load the catalog in the background, again if the last attempt failed; return the task."""
        loading = self._loading
        if loading is None or (loading.done() and (loading.cancelled() or loading.exception() is not None)):
            loading = self._loading = asyncio.get_running_loop().create_task(self._load())
            loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # the next caller gets the error
        return loading

    async def ready(self) -> dict[str, Any]:
        """Return the catalog. Raises `InternalError` if the describe worker fails."""
        return await asyncio.shield(self.start())

    async def ask(self, question: dict[str, Any], *, fresh: bool = False) -> dict[str, Any]:
        """Return a describe worker's answer to a question (see `offrld.worker.describe.answer`); empty, with a log line, if none comes.

        Answers without a refusal are kept in memory; ``fresh``: ignore them.
        """
        text = json.dumps(question, sort_keys=True)
        if not fresh and text in self._answers:
            return self._answers[text]
        async with self._asking:
            answer = await self._answer(text)
        if answer and "refusal" not in answer:
            self._answers.pop(text, None)
            self._answers[text] = answer
            while len(self._answers) > ANSWERS:
                del self._answers[next(iter(self._answers))]
        return answer

    async def _answer(self, question: str) -> dict[str, Any]:
        trouble = self._state.cache / "question.log"
        try:
            status, data = await self._run("question", trouble, ASK_S, question)
            answer = json.loads(data).get("answer") if status == 0 else None
        except OSError as error:
            log.warning("a question before a submission cannot be asked: %s", error)
            return {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            log.warning("no answer to %s: %s", question[:200], last_line(trouble) or "the job's own worker will see")
            return {}
        return answer

    async def close(self) -> None:
        """Stop loading."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)

    async def _load(self) -> dict[str, Any]:
        path = self._state.cache / f"describe-{await asyncio.to_thread(fingerprint, self._executor.describe_command)}.json"
        try:
            return parse(await asyncio.to_thread(path.read_bytes))
        except (OSError, ValueError):
            pass
        trouble = self._state.cache / "describe.log"
        status, data = await self._run("describe", trouble, DESCRIBE_S)
        try:
            if status != 0:
                raise ValueError(f"exit status {status}" if status is not None else f"no answer in {DESCRIBE_S:.0f} s")
            catalog = parse(data)
        except ValueError as error:
            last = last_line(trouble)
            log.error("the describe worker failed: %s: %s", error, last)
            raise InternalError(f"the algorithms of this installation cannot be listed: {last or error}", hint=f"see {trouble}") from None
        for problem in catalog["problems"]:
            log.warning("something of an installed package cannot be used: %s", problem)
        if not catalog["problems"]:  # a package may be repaired without a new version
            await asyncio.to_thread(self._keep, path, data)
        log.info("%d algorithms, %d environments", len(catalog["algorithms"]), len(catalog["environments"]))
        return catalog

    async def _run(self, job: str, trouble: Path, seconds: float, question: str | None = None) -> tuple[int | None, bytes]:
        """Run a describe worker; return its exit status (None: still running after ``seconds``) and its output.

        If a signal ends it, for example the OOM killer's, it is started again: that says nothing about the question.
        """
        status: int | None = None
        for attempt in range(1, TRIES + 1):
            lines: list[bytes] = []
            trouble.unlink(missing_ok=True)
            worker = await self._executor.start(
                self._state.root,
                job,
                folder=self._state.cache,
                log=trouble,
                on_line=lines.append,
                describe=True,
                question=question,
            )
            worker.close_stdin()
            try:
                status = await asyncio.wait_for(worker.wait(), seconds)
            except TimeoutError:
                status = None
            finally:
                worker.kill()
            if status is None or status >= 0:
                break
            log.warning("a %s worker was ended by signal %d (attempt %d of %d)", job, -status, attempt, TRIES)
        return status, b"\n".join(lines)

    def _keep(self, path: Path, data: bytes) -> None:
        try:
            write_atomic(path, data, shared=True)
            old = sorted(self._state.cache.glob("describe-*.json"), key=lambda entry: entry.stat().st_mtime, reverse=True)
            for entry in old[KEEP:]:
                entry.unlink(missing_ok=True)
        except OSError as error:  # it is only a cache
            log.warning("cannot write %s: %s", path, error)


def fingerprint(command: tuple[str, ...]) -> str:
    """Return the hash of everything that decides the describe worker's answer."""
    parts = [*command]
    for distribution in importlib.metadata.distributions():
        parts.append(f"{distribution.name}=={distribution.version}")
        for point in distribution.entry_points:
            if point.group.startswith("offrl."):
                parts += [f"{point.group}:{point.name}={point.value}", *_sources(point.module)]
    parts[len(command) :] = sorted(set(parts[len(command) :]))
    root = Path(offrld.__file__).resolve().parent
    for file in sorted(root.rglob("*.py")):
        if "daemon" not in file.relative_to(root).parts[:1]:
            parts.append(f"{file.relative_to(root)}:{file.stat().st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def _sources(module: str) -> list[str]:
    """Return the files of a module's package with their times: a package under development keeps its version. Imports nothing."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    files = [path for folder in spec.submodule_search_locations or () for path in sorted(Path(folder).rglob("*.py"))]
    return [f"{path}:{path.stat().st_mtime_ns}" for path in files or [Path(spec.origin or "")] if path.is_file()]


def parse(data: bytes) -> dict[str, Any]:
    """Parse the describe worker's answer and check the parts that are used here. Raises `ValueError`."""
    try:
        catalog: dict[str, Any] = json.loads(data)
        for algorithm in catalog["algorithms"]:
            if not isinstance(algorithm["name"], str) or not isinstance(algorithm["config"], dict):
                raise ValueError("an algorithm without name or config")
        catalog.setdefault("problems", [])
        if not isinstance(catalog["environments"], list):
            raise ValueError("environments is not a list")
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a description: {error!r}") from None
    return catalog


def last_line(path: Path, limit: int = 300) -> str:
    """Return the last line of a log that is not empty; "" if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 16384))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1][:limit] if lines else ""


# -------------------------------------------------------------------------------------------------------------------- check
def checked_environment(env: str, catalog: dict[str, Any]) -> None:
    """Raise `Unknown`, with the nearest known id, unless gymnasium knows the environment on this machine."""
    if env not in catalog["environments"]:
        _, colon, name = env.partition(":")
        if colon:
            hint = f"let the package of {name!r} register it by an entry point of offrl.environments (docs/extending.md)"
            raise Unknown(f"{env!r} names a Python module, and the daemon imports none by name", hint=hint)
        raise Unknown(f"no environment {env!r} is registered with gymnasium here", hint=unknown_hint(env, catalog["environments"]))


def checked(spec: Trained, catalog: dict[str, Any], fields: dict[str, Any] | None) -> Trained:
    """Check ``spec``, and return it with its settings under their dotted names.

    ``fields``: those of the dataset, or None if it is still being imported. Raises `Unknown` (with the nearest known name), `InvalidInput`.
    """
    algorithms = {algorithm["name"]: algorithm for algorithm in catalog["algorithms"]}
    algorithm = algorithms.get(spec.algorithm)
    for problem in catalog.get("problems", ()):
        if problem.startswith(f"{spec.algorithm}: "):
            raise InvalidInput(f"algorithm {problem}", hint="repair its package and restart the daemon")
    if algorithm is None:
        raise Unknown(f"no algorithm {spec.algorithm!r}", hint=nearest(spec.algorithm, list(algorithms)))
    if isinstance(spec, TrainOnlineSpec):
        if why := algorithm.get("online_refusal"):
            able = [name for name, other in algorithms.items() if not other.get("online_refusal")]
            raise InvalidInput(f"{spec.algorithm} cannot be trained online: {why}", hint=f"these can: {', '.join(sorted(able))}")
        checked_environment(spec.env, catalog)
        _check_play(spec, bool(algorithm.get("plays")))
    elif algorithm.get("plays"):
        raise InvalidInput(f"{spec.algorithm} learns from its own rollouts, not from a dataset", hint="see `offrl train-online --help`")
    presets = algorithm.get("presets") or {}
    if spec.preset is not None and spec.preset not in presets:
        raise Unknown(f"{spec.algorithm} has no preset {spec.preset!r}", hint=nearest(spec.preset, list(presets)) or "it has none")
    try:
        chosen = settings.merge(
            settings.of_catalog(catalog, spec.algorithm), presets[spec.preset] if spec.preset is not None else {}, spec.config
        )
    except InvalidInput as error:
        hint = error.hint.replace("`offrl algos NAME`", f"`offrl algos {spec.algorithm}`")
        raise type(error)(f"{spec.algorithm}: {error.message}", hint=hint) from None
    if algorithm.get("evaluates") and chosen.get("policy") is None:
        hint = "--from names networks to start from, not the policy: --set policy=JOB" if spec.start is not None else "--set policy=JOB"
        raise InvalidInput(f"{spec.algorithm} evaluates the policy of another job, and none is named", hint=hint)
    kind = action_kind(fields)
    if kind is not None and algorithm.get("actions", "both") not in (kind, "both"):
        fitting = [name for name, other in algorithms.items() if other.get("actions") in (kind, "both")]
        raise InvalidInput(
            f"{spec.algorithm} requires {algorithm['actions']} actions; those of dataset {spec.dataset!r} are {kind}",
            hint=f"for {kind} actions: {', '.join(sorted(fitting)[:12])}",
        )
    if spec.eval_env is not None:
        checked_environment(spec.eval_env, catalog)
    if spec.eval_env is not None and not algorithm.get("has_policy", True):
        raise InvalidInput(f"{spec.algorithm} learns no policy, so there is nothing to evaluate in {spec.eval_env}", hint="leave it out")
    if spec.eval_every is not None and spec.eval_env is None:
        raise InvalidInput(f"eval_every={spec.eval_every} without an environment to evaluate in", hint="add --eval-env ID")
    if isinstance(spec, TrainSpec) and spec.early_stop is not None and spec.eval_every is None:
        raise InvalidInput(f"early_stop={spec.early_stop} without evaluations to go by", hint="add --eval-env ID and --eval-every K")
    if len(set(spec.seeds)) != len(spec.seeds):
        raise InvalidInput(f"a seed occurs twice in {spec.seeds[:20]}", hint="each seed is trained once")
    return spec.model_copy(update={"config": flat(spec.config)})


# Options that only one of the two ways of training online reads: updates on all collected steps, or on the newest rollout.
OFF_POLICY = ("random_steps", "update_start", "update_interval", "updates", "offline", "epsilon", "noise")
ON_POLICY = ("envs", "processes")


def _check_play(spec: TrainOnlineSpec, plays: bool) -> None:
    """Raise `InvalidInput` for options that the algorithm's way of training does not read, and for a missing dataset."""
    fields = type(spec).model_fields
    for name in OFF_POLICY if plays else ON_POLICY:
        if getattr(spec, name) != fields[name].default:
            why = "learns from its own rollouts alone" if plays else "acts in one environment"
            raise InvalidInput(f"{spec.algorithm} takes no {name}, it {why}", hint=f"leave --{name.replace('_', '-')} out")
    if spec.dataset is None and not plays:
        raise InvalidInput(f"{spec.algorithm} trains on the steps that it stores, and no dataset is named", hint="add --into NAME")
    if spec.dataset is None and spec.limit is not None:
        raise InvalidInput(f"limit={spec.limit} applies to a dataset, and none is named", hint="add --into NAME")
