"""The map of a table: the columns of each field of a step, from the user or from the usual names."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Mapping
from typing import Any

from offrl.errors import nearest
from offrl_store.errors import InvalidInput
from offrl_store.schema import NAME
from offrld.importers.hdf5 import listed

NEEDS = "columns for observation, action, reward, and episode, terminal or done: --map observation=obs_*,action=act_*,reward=r,episode=ep"

FIELDS = ("observation", "action", "reward", "episode", "step", "terminal", "timeout", "done", "next_observation", "extra")
NAMED = ("observation", "next_observation", "extra")  # fields that can have several parts, FIELD.NAME
FLAGS = ("terminal", "timeout", "done")

#: Names of columns that are recognised without a map, in any case; the first name that is present counts. The columns of a vector have a
#: number or a name after it: obs_0, obs.x, obs[3].
USUAL = {
    "observation": ("observation", "observations", "obs", "state", "states"), "action": ("action", "actions", "act"),
    "next_observation": ("next_observation", "next_observations", "next_obs", "next_state", "next_states"),
    "reward": ("reward", "rewards", "rew", "r"),
    "episode": ("episode", "episode_id", "episode_index", "episode_idx", "episode_number", "ep", "ep_id", "ep_idx", "traj", "traj_id",
                "traj_idx", "trajectory", "trajectory_id"),
    "step": ("step", "step_id", "step_index", "step_idx", "timestep", "time_step", "frame_index"),
    "terminal": ("terminal", "terminals", "terminated", "termination", "terminations", "is_terminal"),
    "timeout": ("timeout", "timeouts", "truncated", "truncation", "truncations"),
    "done": ("done", "dones", "is_done"),
}  # fmt: skip
VECTORS = ("observation", "action", "next_observation")


def mapped_columns(map: Any, header: list[str], file: str, messages: list[str]) -> dict[str, list[str]]:
    """Return field -> its columns: those of the map, or those with the usual names without a map. Raises `InvalidInput`."""
    chosen = (
        _usual(header, file, messages)
        if map is None
        else {key: _matched(patterns, header, file, key) for key, patterns in _entries(map).items()}
    )
    for key in chosen:
        role, dot, part = key.partition(".")
        if role not in FIELDS or (dot and (role not in NAMED or not NAME.match(part))) or (role == "extra" and not dot):
            known = "only observation, next_observation and extra have parts, and extra needs one: extra.NAME"
            hint = nearest(role, list(FIELDS)) if role not in FIELDS else known
            raise InvalidInput(f"--map: {key!r} is not a field of a step", hint=hint or f"fields: {', '.join(FIELDS)}")
    roles = {key.partition(".")[0] for key in chosen}
    missing = [key for key in ("observation", "action", "reward") if key not in roles]
    if not missing and not roles & {"episode", "terminal", "done"}:
        missing = ["episode"]
    if missing:
        raise InvalidInput(f"{file}: no column is mapped to {missing[0]!r} (columns: {listed(header)})", hint=proposal(chosen, header))
    for role in ("observation", "next_observation"):
        if role in chosen and len(roles) < len(chosen) and any(key.startswith(f"{role}.") for key in chosen):
            raise InvalidInput(
                f"--map: {role!r} is mapped both with and without a name", hint=f"give every part a name: {role}.NAME=COLUMNS"
            )
    for key in ("reward", "episode", "step", *FLAGS):
        if len(chosen.get(key, ())) > 1:
            raise InvalidInput(f"{file}: {', '.join(chosen[key])} are all mapped to {key!r}", hint="it is one column")
    for key in [each for each in chosen if each.partition(".")[0] == "next_observation"]:
        check_pair(chosen, key, file)
    for key, names in chosen.items():
        ordered = sorted(names, key=_by_number)
        alike = len({re.sub(r"[0-9]+", "", each) for each in names}) == 1
        if alike and names != ordered and not (map is not None and set(_entries(map)[key]) == set(names)):  # listed: in that order
            messages.append(f"columns {names[0]!r} to {names[-1]!r} stay in the order of the file, which is not that of their numbers")
    return chosen


def check_pair(chosen: Mapping[str, list[str]], key: str, file: str) -> None:
    """Raise `InvalidInput` if names show that the columns of the next observation have another order than those of the observation."""
    before, after = chosen.get(key.removeprefix("next_"), []), chosen[key]
    ends = [end_flags(names) for names in (before, after)]
    if ends[0] != ends[1] and sorted(ends[0]) == sorted(ends[1]):
        at = next(place for place, (one, two) in enumerate(zip(*ends, strict=True)) if one != two)
        order = "+".join(after[ends[1].index(end)] for end in ends[0])
        raise InvalidInput(
            f"{file}: the observation has {before[at]!r} where the next observation has {after[at]!r}",
            hint=f"list them in one order: --map {key}={order},...",
        )


def end_flags(names: list[str]) -> list[str]:
    """Return the names of columns without their common beginning."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = sum(1 for _ in same)
    return [each[common:] for each in names]


def _usual(header: list[str], file: str, messages: list[str]) -> dict[str, list[str]]:
    """Find the columns with the usual names; numbered columns are sorted by their numbers."""
    folded = [each.casefold() for each in header]
    chosen: dict[str, list[str]] = {}
    for key, names in USUAL.items():
        found = {name: taken for name in names if (taken := _family(name, folded, key in VECTORS))}
        if not found:
            continue
        first = next(iter(found))
        others = [name for name in found if name != first and not (key == "observation" and name in ("state", "states"))]
        if others:
            both = f"{header[found[first][0]]!r} and {header[found[others[0]][0]]!r}"
            raise InvalidInput(f"{file}: both {both} can be the {key}", hint=proposal(chosen, header, say="name it in a map"))
        places = _numbered(found[first], folded, header, first, file, messages) if key in VECTORS else found[first]
        if len(places) > 1 and key not in VECTORS:
            both = " and ".join(repr(header[place]) for place in places[:2])
            raise InvalidInput(f"{file}: both {both} can be the {key}", hint="rename one, or name it with --map")
        chosen[key] = [header[place] for place in places]
    if "next_observation" in chosen and len(chosen["next_observation"]) != len(chosen.get("observation", ())):
        messages.append(
            f"next observations of {len(chosen['next_observation'])} columns do not fit the observation's "
            f"{len(chosen.get('observation', ()))}: they are left out"
        )
        del chosen["next_observation"]
    return chosen


def _family(name: str, folded: list[str], vector: bool) -> list[int]:
    """Return the indices of the columns of a name; for a vector also of its numbered or named columns."""
    pattern = re.compile(re.escape(name) + r"(?:[._\-\[ ].+|\d+)?" if vector else re.escape(name))
    return [place for place, each in enumerate(folded) if pattern.fullmatch(each)]


def _by_number(name: str) -> list[Any]:
    """A key that sorts names by the numbers in them, however long these are."""
    parts: list[Any] = re.split(r"([0-9]+)", name)  # texts and numbers in turn
    parts[1::2] = [(len(digits), digits) for digits in (part.lstrip("0") for part in parts[1::2])]
    return parts


def _numbered(places: list[int], folded: list[str], header: list[str], name: str, file: str, messages: list[str]) -> list[int]:
    """Choose the columns of a vector: the bare name, or the numbered columns, or all. Others beside a bare name or numbers are left out."""
    bare = [place for place in places if folded[place] == name]
    numbers = {
        place: int(match[1]) for place in places if (match := re.fullmatch(re.escape(name) + r"[._\-\[ ]?(\d{1,18})\]?", folded[place]))
    }
    if bare and numbers:
        both = f"{header[bare[0]]!r} and {header[next(iter(numbers))]!r}"
        raise InvalidInput(f"{file}: {both} can both be the {name}", hint="list its columns with --map")
    if bare:
        return bare
    if not numbers:
        return places
    ordered = sorted(numbers, key=lambda place: numbers[place])
    for one, two in itertools.pairwise(ordered):
        if numbers[one] == numbers[two] and header[one] != header[two]:  # equal names are reported elsewhere
            both = f"{header[one]!r} and {header[two]!r}"
            raise InvalidInput(f"{file}: {both} have the same number", hint="rename one, or list them with --map")
        if numbers[two] > numbers[one] + 1:
            messages.append(f"there is no column between {header[one]!r} and {header[two]!r}: is one missing?")
    if ordered != list(numbers):
        both = f"{header[ordered[0]]!r} to {header[ordered[-1]]!r}"
        messages.append(f"columns {both} are sorted by their numbers, not in the order of the file")
    return ordered


#: Field -> pattern of unusual names that suggest it, for the proposal of a map.
GUESSES = {
    "reward": r"rew|^r$|^score$", "episode": r"^ep|traj|run|trial|demo|seq",
    "action": r"^a(ct|ction|_|\d|$)|torque|control|cmd|^u_?\d*$",
}  # fmt: skip


def proposal(chosen: Mapping[str, list[str]], header: list[str], say: str = "for example") -> str:
    """Propose a complete map of the columns."""
    mapped = {each for names in chosen.values() for each in names}
    left = [each for each in header if each not in mapped]
    made = {key: names for key, names in chosen.items() if names}
    for key, pattern in GUESSES.items():
        if key == "episode" and made.keys() & {"episode", "terminal", "done"}:
            continue
        if key not in {each.partition(".")[0] for each in made}:
            matches = [each for each in left if re.search(pattern, each, re.IGNORECASE)]
            made[key] = (matches if key == "action" else matches[:1]) or ["COLUMN"]
            left = [each for each in left if each not in made[key]]
    if not any(key.partition(".")[0] == "observation" for key in made):
        made["observation"] = left or ["COLUMNS"]
    order = [*(key for key in FIELDS if key in made), *(key for key in made if key not in FIELDS)]
    return f"{say}: --map " + ",".join(f"{key}={_named(made[key])}" for key in order)


def _named(names: list[str]) -> str:
    """Write columns as a map does: as a pattern if they have a common beginning."""
    prefix = re.match(r"(.+[._])[^._]+$", names[0])
    if len(names) > 3 and prefix and all(each.startswith(prefix[1]) for each in names):
        return f"{prefix[1]}*"
    shown = "+".join(names[:12])
    return f"'{shown}'" if re.search(r"[\s\[]", shown) else shown


def _entries(map: Any) -> dict[str, list[str]]:
    """Parse a map to field -> patterns. Raises `InvalidInput`."""
    if isinstance(map, str):
        pairs = [each.partition("=") for each in re.split(r"\s*,\s*", map.strip()) if each]
        for key, equals, names in pairs:
            if not equals or not key.strip() or not names.strip():
                raise InvalidInput(f"--map: {key!r} is not FIELD=COLUMNS", hint=f"needed: {NEEDS}")
        entries: dict[str, list[str]] = {}
        for key, _, names in pairs:
            _add(entries, {key.strip(): [each.strip() for each in names.split("+")]})
        return entries
    if not isinstance(map, Mapping) or not map:
        raise InvalidInput(f"--map is {map!r:.60}", hint=f"needed: {NEEDS}")
    entries = {}
    for key, names in map.items():
        if isinstance(names, Mapping):  # a table of TOML: [extra] or [observation]
            _add(entries, {f"{key}.{part}": each for part, each in _entries(names).items()})
            continue
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
            raise InvalidInput(f"--map: {key!r} is {names!r:.60}", hint="pass a column, a pattern, or a list of them")
        _add(entries, {str(key): names})
    return entries


def _add(entries: dict[str, list[str]], more: Mapping[str, list[str]]) -> None:
    for key, names in more.items():
        if key in entries:
            hint = f"list its columns once: {key}={'+'.join((*entries[key], *names))}"
            raise InvalidInput(f"--map: {key!r} is mapped twice", hint=hint)
        entries[key] = names


def _matched(patterns: list[str], header: list[str], file: str, key: str) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        names = [each for each in header if each == pattern] or [each for each in header if fnmatch.fnmatchcase(each, pattern)]
        if not names:
            hint = nearest(pattern, header) or f"columns: {listed(header)}"
            raise InvalidInput(f"{file} has no column {pattern!r}, which is mapped to {key!r}", hint=hint)
        found += [each for each in names if each not in found]
    return found
