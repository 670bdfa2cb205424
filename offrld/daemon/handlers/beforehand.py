"""What can be known of a job before it is queued, beyond its words: whether environment, dataset, policy and networks fit each other, and
whether the disk holds what it will write.

Environments and networks are looked at by a describe worker (`Catalog.ask`); where it gives no answer the job's own worker will say what it
finds.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Collection, Mapping
from typing import Any

from offrl.errors import InvalidInput, OffrlError, from_wire
from offrl.job import TRAINS, CollectSpec, TrainOnlineSpec, TrainSpec, taken
from offrl_store import EpisodeStore, Schema
from offrld import environment_spaces, fits, settings
from offrld.daemon.app import App
from offrld.daemon.queue import datasets, job_record

EPISODE_BYTES = 128  # of a record, beside its rows


async def check(app: App, spec: TrainSpec | TrainOnlineSpec | CollectSpec, catalog: dict[str, Any], kept: Collection[str] = ()) -> None:
    """Raises `InvalidInput` for a job that is known to fail. ``kept``: names of what it has of other jobs already."""
    if spec.device.startswith("cuda") and app.supervisor.devices.inventory.cards is None:
        await _check_card(app, spec.device)
    stored = None if spec.dataset is None else await _schema(app, spec.dataset)
    algorithm = None
    if not isinstance(spec, CollectSpec):
        algorithm = next(each for each in catalog["algorithms"] if each["name"] == spec.algorithm)
    if isinstance(spec, TrainSpec):
        if stored is not None:
            await _check_dataset(app, spec, stored)
            fits.check_fits(stored, _chosen(spec, algorithm), algorithm=spec.algorithm, actions=algorithm.get("actions", "both"))
        if spec.eval_env is not None and stored is not None:
            await _environment(app, spec.eval_env, lambda told: environment_spaces.check(spec.eval_env, told, stored))
    else:
        schema = await _played(app, spec, stored, algorithm)
        if schema is not None:
            await asyncio.to_thread(_check_room, app, spec, schema)
        stored = schema
    reference: str | None = None
    if isinstance(spec, CollectSpec):
        reference = spec.policy.removeprefix("job:") if spec.policy.startswith("job:") else None
    elif spec.start is not None and "start" not in kept:
        reference = spec.start
    if reference is not None and stored is not None:
        await asyncio.to_thread(_check_space, app, "--policy" if isinstance(spec, CollectSpec) else "--from", taken(reference)[0], stored)
    if reference is not None and not isinstance(spec, CollectSpec):
        await _check_start(app, spec)


async def _played(
    app: App, spec: CollectSpec | TrainOnlineSpec, stored: Schema | None, algorithm: Mapping[str, Any] | None
) -> Schema | None:
    """Check the environment that is acted in; the schema of its steps, None where nobody has told it."""
    schema: Schema | None = None

    def look(told: Mapping[str, Any]) -> None:
        nonlocal schema
        if told["refusal"] is not None:
            raise InvalidInput(f"{spec.env}: {told['refusal']['message']}", hint=told["refusal"]["hint"])
        schema = Schema.from_json(told["schema"])
        if stored is not None:
            environment_spaces.check_steps(spec.env, schema, stored)
        if algorithm is not None:
            actions = algorithm.get("actions", "both")
            fits.check_fits(schema, _chosen(spec, algorithm), algorithm=spec.algorithm, actions=actions, whose=spec.env)

    policy = None
    if isinstance(spec, CollectSpec) and spec.upload is not None:
        files = sorted(app.state.upload_files(spec.upload).glob("*"))
        names = {"input": spec.policy_input, "output": spec.policy_output, "argmax": spec.policy_argmax}
        policy = {"source": str(files[0]), **names} if len(files) == 1 else None
    await _environment(app, spec.env, look, policy)
    if schema is None:
        return None
    if isinstance(spec, TrainOnlineSpec) and spec.eval_env is not None and spec.eval_env != spec.env:
        await _environment(app, spec.eval_env, lambda told: environment_spaces.check(spec.eval_env, told, schema))
    return schema


async def _environment(app: App, env_id: str, look: Any, policy: dict[str, Any] | None = None) -> None:
    """Give what is told of an environment to ``look``; where that refuses an answer that was kept, once more with a new one."""
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
    """The schema of a dataset; None where it is not there yet, or cannot be read now."""
    if await app.database.read(datasets.fields, dataset) is None:
        return None
    try:
        return (await asyncio.to_thread(EpisodeStore.open, app.state.datasets / dataset)).schema
    except (OffrlError, OSError):
        return None


def _chosen(spec: TrainSpec | TrainOnlineSpec, algorithm: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting by dotted name: defaults, then the preset's, then the user's."""
    known = settings.of_json(algorithm["config"])
    values = {name: setting.default for name, setting in known.items()}
    if spec.preset is not None:
        values |= settings.resolve(algorithm["presets"][spec.preset], known)
    return {name: value for name, value in (values | settings.resolve(spec.config, known)).items() if value is not None}


async def _check_dataset(app: App, spec: TrainSpec, schema: Schema) -> None:
    info = await app.database.read(datasets.get, spec.dataset)
    if info.transitions == 0:
        raise InvalidInput(
            f"dataset {spec.dataset!r} has no transition: {info.episodes} episodes",
            hint=f"append episodes: `offrl datasets append {spec.dataset} SOURCE`",
        )


async def _check_card(app: App, device: str) -> None:
    """Whether torch finds the card, where the daemon has found none: its tools may be missing."""
    for fresh in (False, True):
        count = (await app.catalog.ask({"cards": True}, fresh=fresh)).get("cards")
        if count is None or int(device.partition(":")[2] or 0) < count:
            return
    there = f"has {count} cards, cuda:0 to cuda:{count - 1}" if count else "finds no card"
    raise InvalidInput(
        f"device {device}: torch {there} on the service's machine",
        hint="submit it with --device cpu or auto; `offrl doctor` says what is there",
    )


def _check_space(app: App, where: str, job: str, schema: Schema) -> None:
    """Whether a job was trained on such observations and actions, as its run folder says; one that has not begun says nothing."""
    try:
        space = json.loads(app.state.run(job).spec.read_text())["space"]
        mine = {name: tuple(field["shape"]) for name, field in space["observation"].items()}
        choices, size = space.get("n") if space["discrete"] else None, 0 if space["discrete"] else len(space["low"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    given = {name: tuple(field.shape) for name, field in fits.observation_fields(schema).items()}
    hint = "name a job that was trained on such data"
    if mine != given:
        one, other = (", ".join(f"{name} {list(shape)}" for name, shape in each.items()) for each in (mine, given))
        raise InvalidInput(f"{where}: job {job} was trained on observations {one}, here they are {other}", hint=hint)
    action = schema.action
    if isinstance(action, dict) or (action.n if action.discrete else None) != choices or (size and action.shape != (size,)):
        one = f"{choices} discrete actions" if choices is not None else f"{size} continuous numbers"
        raise InvalidInput(f"{where}: job {job} acts with {one}, here the action is {action!r}", hint=hint)


async def _check_start(app: App, spec: TrainSpec | TrainOnlineSpec) -> None:
    """Whether the networks of ``--from`` fit the algorithm, where there is a checkpoint to compare with."""
    job = taken(spec.start)[0]
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
        told = answer["refusal"]
        command = "train-online" if isinstance(spec, TrainOnlineSpec) else "submit"
        mine = source.spec["algorithm"]
        ways = f"`offrl {command} {mine} --from {job}`" if mine != spec.algorithm else ""
        raise InvalidInput(f"--from: {told['message']}", hint=_with(told["hint"], ways))


def _with(hint: str, way: str) -> str:
    return f"{hint}: {way}" if way and "train on with" in hint else hint


def _check_room(app: App, spec: CollectSpec | TrainOnlineSpec, schema: Schema) -> None:
    """`InvalidInput` where the disk, or the quota, will not hold the steps."""
    if spec.dataset is None:
        return
    steps = spec.steps if spec.limit is None else min(spec.steps, 2 * spec.limit)
    wanted = steps * schema.row_bytes
    free = shutil.disk_usage(app.state.root).free - app.settings.uploads.keep_free_bytes
    what, room = "the disk has", max(0, free)
    if app.settings.disk.quota_bytes and app.settings.disk.quota_bytes < room:
        what, room = "disk.quota_bytes allows", app.settings.disk.quota_bytes
    if wanted > room:
        most = max(1, room // schema.row_bytes)
        raise InvalidInput(
            f"{spec.steps:,} steps of {spec.env} take about {_size(wanted)}, {what} {_size(room)}",
            hint=f"at most about {most:,} steps fit; --limit N keeps the newest N alone",
        )


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError
