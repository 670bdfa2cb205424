"""Sweeps: a grid of options and settings as a list of jobs, each with its seeds and a stable name.

A file in TOML or JSON. What stands at its top holds for all jobs, each list in ``grid`` is gone through::

    algorithm = "td3_bc"                        # options of `offrl submit` (with env: of `offrl train-online`)
    dataset = "hopper"
    steps = 100_000
    set = {batch_size = 256}                    # settings of the algorithm

    [grid]
    algorithm = ["td3_bc", "iql"]               # a name of an option is that option, any other one is a setting
    gamma = [0.99, 0.995]
    "critic_encoder.units" = [[256, 256], [512, 512]]

Jobs that would differ in nothing but the seed are one job, whose seeds train together; online each seed is a job of its own. The name is
made from the settings alone, and is the job's submission key: the same sweep, sent twice, runs once. Grids in the published form of
gen_dgrl are taken as they are (`offrl.gen_dgrl`).
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offrl import gen_dgrl
from offrl.client import Client, Job
from offrl.errors import InvalidInput
from offrl.explained import as_name
from offrl.job import TrainOnlineSpec, TrainSpec
from offrl.job_options import job_options
from offrl.set_values import flat

MAX_JOBS = 10_000
_SIZES = ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "K"))
_NAME = 150  # signs of a name; a submission key has at most 200


@dataclass(frozen=True)
class Trial:
    """One job of a sweep.

    Attributes:
        command: ``submit`` or ``train-online``.
        name: made from what the sweep varies; the job's submission key.
        algorithm, seeds: what is trained, and from which seeds.
        options: of the command, by the names of `Client`'s arguments.
        settings: of the algorithm, by dotted name.
    """

    command: str
    name: str
    algorithm: str
    seeds: tuple[int, ...]
    options: Mapping[str, Any]
    settings: Mapping[str, Any]

    def arguments(self) -> list[str]:
        """The words of the command line that submits this job."""
        words = ["offrl", self.command, self.algorithm]
        for name, value in self.options.items():
            flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
            if isinstance(value, bool):
                words += [flag] if value else []
            else:
                for each in value if isinstance(value, list | tuple) else [value]:
                    words += [flag, str(each)]
        for name, value in self.settings.items():
            words += ["--set", f"{name}={toml(value)}"]
        return [*words, *(["--seed"] if self.command == ONLINE else ["--seeds"]), _ranges(self.seeds), "--key", self.name]

    def submit(self, client: Client) -> Job:
        """Queue the job; the one that has its name already, where it was sent before."""
        given = {**self.options, "config": dict(self.settings), "key": self.name}
        if self.command == ONLINE:
            return client.train_online(self.algorithm, seed=self.seeds[0], **given)
        return client.submit(self.algorithm, seeds=list(self.seeds), **given)


OFFLINE, ONLINE = "submit", "train-online"
# What a sweep fills in itself is not an option.
_FILLED = {"self", "algorithm", "seed", "seeds", "config", "key", "options", "kind"}
_OPTIONS = {
    command: {*inspect.signature(method).parameters, *(option.name for option in job_options(spec))} - _FILLED
    for command, method, spec in ((OFFLINE, Client.submit, TrainSpec), (ONLINE, Client.train_online, TrainOnlineSpec))
}
_FLAGS = {option.name: option.flag for spec in (TrainSpec, TrainOnlineSpec) for option in job_options(spec)}


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a grid file; `InvalidInput` where it is none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidInput(f"no such file: {str(path)!r}", hint="a sweep is a TOML or JSON file with a table `grid`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    try:
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # of either
        raise InvalidInput(f"{str(path)!r} is not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"{str(path)!r} holds a {type(content).__name__}", hint="a sweep is a table of options with a table `grid`")
    return content


def plan(content: Mapping[str, Any], *, trials: int = 1, first_seed: int = 0, name: str = "") -> list[Trial]:
    """The jobs of a sweep, in the order of the file: the last list of the grid changes fastest.

    Args:
        content: what `read` gives, or the same as a dict.
        trials: seeds of each combination: ``first_seed`` and those that follow it, added to a ``seed`` of the file.
        name: before the name of each job, so that the same grid with other options makes new jobs.

    Raises:
        InvalidInput: no grid, an empty list, a name that is none, options that do not go together, too many jobs.
    """
    if trials < 1 or first_seed < 0:
        raise InvalidInput(f"trials={trials}, first seed {first_seed}", hint="at least one trial, and seeds from 0 on")
    if name and as_name(name) != name:
        raise InvalidInput(f"{name!r} is not a valid name for a sweep", hint=f"for example {as_name(name) or 'second'}")
    fixed, grid = _parts(content)
    count = 1
    for choices in grid.values():
        count *= len(choices)
    if count > MAX_JOBS:
        raise InvalidInput(f"the grid has {count:,} combinations", hint=f"a sweep has at most {MAX_JOBS:,}: split it")
    seeds: dict[str, list[int]] = {}
    jobs: dict[str, dict[str, Any]] = {}
    published: dict[str, str] = {}
    for combination in itertools.product(*grid.values()):
        values = {**fixed, **dict(zip(grid, combination, strict=True))}
        called = ""
        if gen_dgrl.is_grid(values):
            values, called = gen_dgrl.job(values)
        seed = values.pop("seed", 0)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InvalidInput(f"seed {seed!r} is not valid", hint="use a whole number of at least 0")
        identity = json.dumps(values, sort_keys=True, default=str)
        jobs.setdefault(identity, values)
        published[identity] = called
        mine = seeds.setdefault(identity, [])
        mine += [each for each in range(seed + first_seed, seed + first_seed + trials) if each not in mine]
    varied = [name for name in grid if name not in ("seed", "algorithm")]
    before = f"{name}-" if name else ""
    names = _names({identity: before + (published[identity] or _name(values, varied)) for identity, values in jobs.items()})
    return [
        _trial(values, each, names[identity])
        for identity, values in jobs.items()
        for each in ([(seed,) for seed in seeds[identity]] if "env" in values else [tuple(seeds[identity])])
    ]


def toml(value: Any) -> str:
    """``value`` as --set reads it."""
    if value is None:
        return "null"
    return json.dumps(value)  # numbers, texts, booleans and lists of them are written alike in both


def _parts(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What holds for all jobs, and the lists to go through: dotted names of settings, names of options."""
    grid = content.get("grid")
    if not isinstance(grid, Mapping) or not grid:
        raise InvalidInput("the sweep has no table `grid`", hint="for example: grid = {gamma = [0.99, 0.995]}")
    settings = content.get("set", {})
    if not isinstance(settings, Mapping):
        raise InvalidInput(f"set = {settings!r} is not a table", hint="for example: set = {batch_size = 256}")
    fixed = {**flat({name: value for name, value in content.items() if name not in ("grid", "set")}), **flat(settings)}
    lists: dict[str, list[Any]] = {}
    for name, values in _lists(grid):
        if not isinstance(values, list) or not values:
            hint = "name at least one value" if values == [] else f"for example: {name} = [{toml(values)}]"
            raise InvalidInput(f"grid: {name} = {values!r} is not a list of values", hint=hint)
        lists[name] = values
    for name in ("seeds", "key"):
        if name in fixed or name in lists:
            raise InvalidInput(f"{name} is filled in by the sweep", hint="--trials N and --first-seed S, or `seed` in the file")
    return fixed, lists


def _lists(grid: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, values in grid.items():
        if isinstance(values, Mapping):
            yield from _lists(values, f"{prefix}{name}.")
        else:
            yield prefix + name, values


def _trial(values: dict[str, Any], seeds: tuple[int, ...], name: str) -> Trial:
    algorithm = values.get("algorithm")
    if not isinstance(algorithm, str):
        raise InvalidInput("the sweep file does not name an algorithm", hint='for example: algorithm = "rebrac"; `offrl algos` lists them')
    command = ONLINE if "env" in values else OFFLINE
    known = _OPTIONS[command]
    if command == OFFLINE and "dataset" not in values:
        raise InvalidInput("the sweep file does not name a dataset", hint='for example: dataset = "hopper"')
    options = {key: value for key, value in values.items() if key in known}
    settings = {key: value for key, value in values.items() if key not in known and key != "algorithm"}
    return Trial(command, f"{name}_{_ranges(seeds)}", algorithm, seeds, options, settings)


# ------------------------------------------------------------------------------------------------------------------- names
def _names(found: Mapping[str, str]) -> dict[str, str]:
    """The names of jobs by what they are; one that two would share, or that is long, gets a digest of that."""
    taken = Counter(found.values())
    return {
        identity: name if taken[name] == 1 and len(name) <= _NAME else f"{name[:_NAME]}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
        for identity, name in found.items()
    }


def _name(values: Mapping[str, Any], varied: Iterable[str]) -> str:
    """Data and algorithm, then what the grid varies."""
    subject = values.get("env", values.get("dataset", ""))
    parts = [_short(Path(str(subject)).name), _short(values.get("algorithm"))]
    for name in varied:
        if name not in ("env", "dataset"):
            parts.append(f"{name.rpartition('.')[2]}{_short(values.get(name))}")
    return "-".join(part for part in parts if part)


def _short(value: Any) -> str:
    """A value as a part of a name: 1M for a million, 256x256 for a list."""
    if isinstance(value, list | tuple):
        return "x".join(map(_short, value))
    if isinstance(value, int) and not isinstance(value, bool):
        for size, letter in _SIZES:
            if value and value % size == 0:
                return f"{value // size}{letter}"
    text = json.dumps(value) if isinstance(value, bool) or value is None else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", ".", text).strip(".")


def _ranges(seeds: Sequence[int]) -> str:
    """0-2,7 for 0, 1, 2, 7."""
    parts: list[str] = []
    for _, run in itertools.groupby(enumerate(sorted(seeds)), lambda pair: pair[1] - pair[0]):
        row = [seed for _, seed in run]
        parts.append(f"{row[0]}-{row[-1]}" if len(row) > 1 else str(row[0]))
    return ",".join(parts)
