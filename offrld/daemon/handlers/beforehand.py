"""Checks of a job before it is queued: do environment, dataset, policy and networks fit each other, and does the disk hold what it writes?

A describe worker looks at environments and networks (`Catalog.ask`). If it gives no answer, the job's own worker reports the problem later.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from typing import Any

from offrl.errors import InvalidInput, OffrlError, from_wire
from offrl.job import TRAINS, CollectSpec, TrainOnlineSpec, TrainSpec, taken
from offrl_store import EpisodeStore, Schema
from offrld import environment_spaces, fits, settings
from offrld.daemon.app import App
from offrld.daemon.queue import datasets, job_record

Description = Mapping[str, Any]  # of an environment, by a describe worker


async def check(app: App, spec: TrainSpec | TrainOnlineSpec | CollectSpec, catalog: dict[str, Any], kept: Collection[str] = ()) -> None:
    """Raise `InvalidInput` for a job that is known to fail. ``kept``: names of the inherited checkpoints that it has already."""
    if spec.device.startswith("cuda") and app.supervisor.devices.inventory.cards is None:
        await _check_card(app, spec.device)
    stored = None if spec.dataset is None else await _schema(app, spec.dataset)
    if isinstance(spec, TrainSpec):
        schema = stored
        if stored is not None:
            await _check_train(app, spec, stored, catalog)
    else:
        schema = await _check_env(app, spec, stored, catalog)
        if schema is not None:
            await asyncio.to_thread(_check_room, app, spec, schema)
    if isinstance(spec, CollectSpec):
        if schema is not None and spec.policy.startswith("job:"):
            job = taken(spec.policy.removeprefix("job:"))[0]
            await asyncio.to_thread(_check_space, app, "--policy", job, schema)
    elif spec.start is not None and "start" not in kept:
        job = taken(spec.start)[0]
        if schema is not None:
            await asyncio.to_thread(_check_space, app, "--from", job, schema)
        await _check_start(app, spec, job)


def _algorithm(spec: TrainSpec | TrainOnlineSpec, catalog: dict[str, Any]) -> dict[str, Any]:
    algorithms: list[dict[str, Any]] = catalog["algorithms"]
    return next(algorithm for algorithm in algorithms if algorithm["name"] == spec.algorithm)


async def _check_train(app: App, spec: TrainSpec, schema: Schema, catalog: dict[str, Any]) -> None:
    """Check the dataset of a train job, and the environment in which the job evaluates."""
    algorithm = _algorithm(spec, catalog)
    info = await app.database.read(datasets.get, spec.dataset)
    if info.transitions == 0:
        raise InvalidInput(
            f"dataset {spec.dataset!r} has no transition: {info.episodes} episodes",
            hint=f"append episodes: `offrl datasets append {spec.dataset} SOURCE`",
        )
    fits.check_fits(schema, _settings(spec, catalog), algorithm=spec.algorithm, actions=algorithm.get("actions", "both"))
    if (env := spec.eval_env) is not None:
        await _environment(app, env, lambda description: environment_spaces.check(env, description, schema))


async def _check_env(app: App, spec: CollectSpec | TrainOnlineSpec, stored: Schema | None, catalog: dict[str, Any]) -> Schema | None:
    """Check the environment in which the job acts; return the schema of its steps, or None if no description of it came."""
    schemas: list[Schema] = []

    def look(description: Description) -> None:
        if (refusal := description["refusal"]) is not None:
            raise InvalidInput(f"{spec.env}: {refusal['message']}", hint=refusal["hint"])
        schema = Schema.from_json(description["schema"])
        schemas.append(schema)
        if stored is not None:
            environment_spaces.check_steps(spec.env, schema, stored)
        if isinstance(spec, TrainOnlineSpec):
            algorithm = _algorithm(spec, catalog)
            actions = algorithm.get("actions", "both")
            fits.check_fits(schema, _settings(spec, catalog), algorithm=spec.algorithm, actions=actions, whose=spec.env)

    policy = None
    if isinstance(spec, CollectSpec) and spec.upload is not None:
        files = sorted(app.state.upload_files(spec.upload).glob("*"))
        names = {"input": spec.policy_input, "output": spec.policy_output, "argmax": spec.policy_argmax}
        policy = {"source": str(files[0]), **names} if len(files) == 1 else None
    await _environment(app, spec.env, look, policy)
    if not schemas:
        return None
    if isinstance(spec, TrainOnlineSpec) and (env := spec.eval_env) is not None and env != spec.env:
        await _environment(app, env, lambda description: environment_spaces.check(env, description, schemas[-1]))
    return schemas[-1]


async def _environment(app: App, env_id: str, look: Callable[[Description], None], policy: dict[str, Any] | None = None) -> None:
    """Pass the description of an environment to ``look``. If it refuses an answer from memory, ask the describe worker again."""
    question = {"environment": env_id, **({} if policy is None else {"policy": policy})}
    for fresh in (False, True):
        answer = await app.catalog.ask(question, fresh=fresh)
        try:
            if "refusal" in answer:
                raise from_wire(**answer["refusal"])
            if "environment" in answer:
                look(answer["environment"])
            return
        except OffrlError:
            if fresh:
                raise


async def _schema(app: App, dataset: str) -> Schema | None:
    """Return the schema of a dataset; None if it does not exist yet, or cannot be read now."""
    if await app.database.read(datasets.fields, dataset) is None:
        return None
    try:
        return (await asyncio.to_thread(EpisodeStore.open, app.state.datasets / dataset)).schema
    except (OffrlError, OSError):
        return None


def _settings(spec: TrainSpec | TrainOnlineSpec, catalog: dict[str, Any]) -> dict[str, Any]:
    """Return every setting by its dotted name: the default, unless the preset or the user overrides it."""
    declared = settings.of_catalog(catalog, spec.algorithm)
    values = {name: setting.default for name, setting in declared.items()}
    if spec.preset is not None:
        values |= settings.resolve(_algorithm(spec, catalog)["presets"][spec.preset], declared)
    return {name: value for name, value in (values | settings.resolve(spec.config, declared)).items() if value is not None}


async def _check_card(app: App, device: str) -> None:
    """Raise `InvalidInput` if torch does not find the card. The daemon found none, but may lack the tool."""
    for fresh in (False, True):
        count = (await app.catalog.ask({"cards": True}, fresh=fresh)).get("cards")
        if count is None or int(device.partition(":")[2] or 0) < count:
            return
    there = f"has {count} GPUs, cuda:0 to cuda:{count - 1}" if count else "finds no GPU"
    raise InvalidInput(
        f"device {device}: torch {there} on the service's machine",
        hint="submit it with --device cpu or auto; `offrl doctor` lists them",
    )


def _check_space(app: App, where: str, job: str, schema: Schema) -> None:
    """Raise `InvalidInput` if the job's run folder says that it was trained on other observations or actions. A new job has no record."""
    try:
        space = json.loads(app.state.run(job).spec.read_text())["space"]
        trained = {name: tuple(field["shape"]) for name, field in space["observation"].items()}
        choices, size = space.get("n") if space["discrete"] else None, 0 if space["discrete"] else len(space["low"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    shapes = {name: tuple(field.shape) for name, field in fits.observation_fields(schema).items()}
    hint = "name a job that was trained on such data"
    if trained != shapes:
        trained_text, text = (", ".join(f"{name} {list(shape)}" for name, shape in fields.items()) for fields in (trained, shapes))
        raise InvalidInput(f"{where}: job {job} was trained on observations {trained_text}, here they are {text}", hint=hint)
    action = schema.action
    if isinstance(action, dict) or (action.n if action.discrete else None) != choices or (size and action.shape != (size,)):
        actions = f"{choices} discrete actions" if choices is not None else f"{size} continuous numbers"
        raise InvalidInput(f"{where}: job {job} acts with {actions}, here the action is {action!r}", hint=hint)


async def _check_start(app: App, spec: TrainSpec | TrainOnlineSpec, job: str) -> None:
    """Raise `InvalidInput` if the networks of ``--from`` do not fit the algorithm. Without a checkpoint nothing is compared."""
    source = await app.database.read(job_record.find, job)
    steps = await asyncio.to_thread(app.state.run(job).checkpoint_steps) if source.kind in TRAINS else []
    if not steps or (source.spec["algorithm"] == spec.algorithm and source.spec.get("config") == spec.config):
        return
    answer = await app.catalog.ask(
        {
            "start": str(app.state.run(job).path),
            "step": steps[-1],
            "origin": f"job {job}",
            "algorithm": spec.algorithm,
            "config": spec.config,
            "preset": spec.preset,
            "transfer": spec.transfer,
        }
    )
    if "refusal" in answer:
        refusal = answer["refusal"]
        command = "train-online" if isinstance(spec, TrainOnlineSpec) else "submit"
        original = source.spec["algorithm"]
        example = f"`offrl {command} {original} --from {job}`" if original != spec.algorithm else ""
        raise InvalidInput(f"--from: {refusal['message']}", hint=_with(refusal["hint"], example))


def _with(hint: str, example: str) -> str:
    return f"{hint}: {example}" if example and "the algorithm of that run" in hint else hint


def _check_room(app: App, spec: CollectSpec | TrainOnlineSpec, schema: Schema) -> None:
    """Raise `InvalidInput` if the disk, or the quota, cannot hold the steps."""
    if spec.dataset is None:
        return
    steps = spec.steps if spec.limit is None else min(spec.steps, 2 * spec.limit)
    wanted = steps * schema.row_bytes
    free = shutil.disk_usage(app.state.root).free - app.settings.uploads.keep_free_bytes
    limit, room = "the disk has", max(0, free)
    if app.settings.disk.quota_bytes and app.settings.disk.quota_bytes < room:
        limit, room = "disk.quota_bytes allows", app.settings.disk.quota_bytes
    if wanted > room:
        most = max(1, room // schema.row_bytes)
        raise InvalidInput(
            f"{spec.steps:,} steps of {spec.env} take about {_size(wanted)}, {limit} {_size(room)}",
            hint=f"at most about {most:,} steps fit; --limit N keeps the newest N alone",
        )


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError
