"""Settings of algorithms and networks: frozen dataclasses whose fields carry meaning, unit, limits and choices.

Dotted paths address the settings of a component (a nested dataclass: an encoder, an optimizer, a scaler), for example
``critic_encoder.units``. A component with a field ``type`` can also be set by its own name, which sets the type (``q_function=qr``).

`build` applies the user's settings. It checks each value against its field, suggests the nearest name for a misspelling, and refuses a
setting that the chosen type does not read. `describe` returns everything about every field; `offrl algos`, the daemon's validation and the
generated documentation use it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from offrl.errors import InvalidInput, Unknown, likely, nearest

T = TypeVar("T")
Words = tuple[str, ...] | Callable[[], tuple[str, ...]]
_META = "offrl.setting"
EXACT = 2**53  # a float holds every whole number up to this
LARGEST = 3e38  # about the largest float32
MOST_ITEMS, MOST_SHOWN = 1000, 100  # items of a list; characters of a value in a message
IN_WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text",
    "list[int]": "a list of whole numbers", "list[float]": "a list of numbers", "dict": "a table of names and values",
}  # fmt: skip
_WRONG: Any = object()  # stands for a value of the wrong type


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    exclusive_low: bool = False,
    choices: Words | None = None,
    only: Words | Mapping[str, Words] | None = None,
    probe: Any = None,
) -> Any:
    """Make a field of a settings dataclass: int, float, bool, str, tuple[int, ...], tuple[float, ...] or dict, each also ``| None``.

    Args:
        default: the default value.
        help: its meaning, one line.
        unit: the value's unit, if it has one ("updates", "transitions", ...).
        low, high: inclusive limits of the value, or of each element of a list (``exclusive_low``: the value must be above low).
        choices: the allowed words of a text setting; a function if plug-ins add to them.
        only: the words of the neighbouring field ``type`` under which this setting is read, or {neighbour: words}. A value for a setting
            that is not read is an error, not ignored.
        probe: another valid value that changes training within a few updates, for the test that every setting matters; needed if the
            default hides the effect (a limit that is never reached, for example). A dict maps other settings to values that both sides of
            the comparison use, with ``""`` for this setting.
    """
    metadata = {
        _META: {
            "help": help,
            "unit": unit,
            "low": low,
            "high": high,
            "exclusive_low": exclusive_low,
            "choices": choices,
            "probe": probe,
            "only": {"type": only} if isinstance(only, tuple) or callable(only) else dict(only or {}),
        }
    }
    if isinstance(default, dict):  # each instance gets its own copy, because a dict is mutable
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field as `describe` returns it: dotted name, type in words, default, and the arguments of `setting`.

    ``only`` maps dotted names of other settings to the words under which this one is read.
    """

    name: str
    type: str
    default: Any
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    exclusive_low: bool = False
    choices: tuple[str, ...] | None = None
    only: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    probe: Any = None

    def as_json(self) -> dict[str, Any]:
        """Return ``{"type", "default", "help", ...}`` without the keys that are not set."""
        result: dict[str, Any] = {"type": self.type, "default": _plain(self.default), "help": self.help}
        for key in ("unit", "low", "high", "exclusive_low", "choices"):
            value = getattr(self, key)
            if value is not None and value != "" and value is not False:
                result[key] = _plain(value)
        if self.only:
            result["only"] = {name: list(words) for name, words in self.only.items()}
        return result

    @classmethod
    def of_json(cls, name: str, entry: Mapping[str, Any]) -> Setting:
        """Read the output of `as_json`; keys of a later version are ignored."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items() if key in _PLAIN_KEYS
        }
        return cls(name=name, only={other: tuple(words) for other, words in entry.get("only", {}).items()}, **values)

    def check(self, value: Any) -> Any:
        """Return ``value`` as one of the setting's types. Raises `InvalidInput` with the setting's name, the value and what is allowed."""
        for kind in self.type.split(" | "):
            converted = _converted(value, kind)
            if converted is not _WRONG and all(self._takes(item) for item in (converted if isinstance(converted, tuple) else (converted,))):
                return converted
        hint = nearest(str(value)[:MOST_SHOWN], self.choices) if self.choices is not None and isinstance(value, str) else ""
        about = f"default {_plain(self.default)!r}: {self.help}"[: 2 * MOST_SHOWN]
        raise InvalidInput(f"setting {self.name!r} takes {self._wanted()}, got {shown(value)}", hint=hint or about)

    def _takes(self, item: Any) -> bool:
        if item is None or isinstance(item, (bool, Mapping)):
            return True
        if self.choices is not None and item not in self.choices:
            return False
        return isinstance(item, str) or self._within(item)

    def _within(self, value: float) -> bool:
        above = self.low is None or (value > self.low if self.exclusive_low else value >= self.low)
        # NaN fails, and so does a number that float32, the type of all computations, cannot hold.
        return above and (self.high is None or value <= self.high) and abs(value) <= (EXACT if isinstance(value, int) else LARGEST)

    def _wanted(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        limits = []
        if self.low is not None:
            limits.append(f"{'above' if self.exclusive_low else 'at least'} {self.low:g}")
        if self.high is not None:
            limits.append(f"at most {self.high:g}")
        kinds = [IN_WORDS.get(kind, kind) for kind in self.type.split(" | ") if kind != "None"]
        words = " or ".join(kinds) + (f" {' and '.join(limits)}" if limits else "")
        return words + (" or none" if self.type.endswith("None") else "")


# --- Reading a config ---
def describe(config: Any) -> dict[str, Setting]:
    """Return every setting of a dataclass (class or instance) by its dotted name, in the order of declaration."""
    described: dict[str, Setting] = {}
    for name, field, value in _walk(config() if isinstance(config, type) else config):
        prefix = name.removesuffix(field.name)
        rules = dict(field.rules)
        rules["choices"] = _words(rules["choices"])
        rules["only"] = {prefix + other: _words(words) for other, words in rules["only"].items()}
        if isinstance(rules["probe"], dict):
            rules["probe"] = {prefix + other if other else "": value for other, value in rules["probe"].items()}
        described[name] = Setting(name=name, type=field.type, default=value, **rules)
    return described


def as_flat(config: Any) -> dict[str, Any]:
    """Map dotted name -> value (tuples as lists): `build` takes this form; run folders and policy files keep it."""
    return {name: _plain(value) for name, _, value in _walk(config)}


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    type: str  # in words; "" for a component
    rules: Mapping[str, Any]  # the arguments of `setting`


@functools.cache
def _fields(kind: type) -> tuple[_Field, ...]:
    """Return the fields of a settings dataclass. Resolving the annotations is slow, so it happens once for each class."""
    hints = typing.get_type_hints(kind)
    return tuple(
        _Field(field.name, "", {})
        if dataclasses.is_dataclass(hints[field.name])
        else _Field(field.name, _type_in_words(hints[field.name]), field.metadata[_META])
        for field in dataclasses.fields(kind)
    )


def _walk(config: Any, prefix: str = "") -> Iterator[tuple[str, _Field, Any]]:
    """Yield dotted name, field and value of every setting, those of components too, in the order of declaration."""
    kind: type = type(config)
    for field in _fields(kind):
        value = getattr(config, field.name)
        if field.type:
            yield prefix + field.name, field, value
        else:
            yield from _walk(value, f"{prefix}{field.name}.")


def _type_in_words(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return f"{_type_in_words(inner[0])} | None"
    if typing.get_origin(hint) is tuple:
        return f"list[{typing.get_args(hint)[0].__name__}]"
    return "dict" if typing.get_origin(hint) is dict else hint.__name__


# --- Applying settings ---
def build(config: T, *layers: Mapping[str, Any]) -> T:
    """Return ``config`` (an instance) with settings checked and applied; later layers override earlier ones (a preset, then the user's).

    Names are dotted (``{"critic_encoder.units": [64]}``) or nested (``{"critic_encoder": {"units": [64]}}``). A text as the value of a
    component is its type (``{"q_function": "qr"}``).

    Raises:
        Unknown: no setting has that name; the hint suggests the nearest one.
        InvalidInput: a value has the wrong type or is out of range, or the chosen types do not read a setting.
    """
    return _replaced(config, merge(describe(config), *layers), "")


_PLAIN_KEYS = frozenset(field.name for field in dataclasses.fields(Setting)) - {"name", "only"}


def of_json(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Setting]:
    """Read an algorithm's settings from their JSON form, which is all that the daemon has; the result is that of `describe`."""
    return {name: Setting.of_json(name, entry) for name, entry in config.items()}


def of_catalog(catalog: dict[str, Any], algorithm: str) -> dict[str, Setting]:
    """Return the settings of an algorithm of a describe worker's catalog. They are read once and kept in the catalog."""
    known: dict[str, dict[str, Setting]] = catalog.setdefault("settings", {})
    if algorithm not in known:
        known[algorithm] = of_json(next(entry["config"] for entry in catalog["algorithms"] if entry["name"] == algorithm))
    return known[algorithm]


def merge(known: Mapping[str, Setting], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of all layers by dotted name, checked; later layers override earlier ones. Raises as `build`."""
    chosen: dict[str, Any] = {}
    for values in layers:
        for name, value in resolve(values, known).items():
            by_entry = known[name].type.startswith("dict") and isinstance(value, _Parts)
            chosen[name] = known[name].check(_merged(chosen.get(name, known[name].default) or {}, value) if by_entry else value)
    _refuse_unread(chosen, known)
    return chosen


def _refuse_unread(chosen: Mapping[str, Any], known: Mapping[str, Setting]) -> None:
    """Raise `InvalidInput` for a setting that differs from its default but is not read under the chosen types."""
    for name, value in chosen.items():
        for other, words in known[name].only.items():
            now = chosen.get(other, known[other].default)
            if now not in words and value != known[name].default:
                raise InvalidInput(
                    f"setting {name!r} has no effect with {other} {now!r}",
                    hint=f"it counts for {', '.join(words) or 'types that other packages add'}",
                )


def resolve(values: Mapping[str, Any], known: Mapping[str, Setting]) -> dict[str, Any]:
    """Return ``values``, unchecked, under the full dotted names of ``known``. Raises as `build`.

    Single entries of a dict setting (``encoder.options.depth``) become one table, which `merge` lays over the earlier values.
    """
    groups = {name.rpartition(".")[0] for name in known if "." in name}
    groups |= {group.rpartition(".")[0] for group in groups if "." in group}
    resolved: dict[str, Any] = {}

    def take(name: str, value: Any) -> None:
        if name in groups and isinstance(value, Mapping):
            for inner, item in value.items():
                take(f"{name}.{inner}", item)
            return
        if name in groups and f"{name}.type" not in known:
            inside = ", ".join(other for other in known if other.startswith(f"{name}."))
            raise InvalidInput(f"setting {name!r} is a group and takes no value, got {shown(value)}", hint=f"its settings: {inside}")
        full = f"{name}.type" if name in groups else name
        table, inner = _table_of(full, known)
        if table is not None:
            _put(resolved.setdefault(table, _Parts()), inner, value, name)
            return
        if full not in known:
            close = likely(name, [*known, *sorted(groups)])
            raise Unknown(f"unknown setting {name!r}", hint=f"did you mean {close!r}?" if close else "`offrl algos NAME` lists them")
        if full in resolved and resolved[full] != value:
            raise InvalidInput(f"setting {full!r} is given twice, as {shown(resolved[full])} and as {shown(value)}", hint="set it once")
        resolved[full] = _plain(value)

    for name, value in values.items():
        take(name, value)
    return resolved


class _Parts(dict[str, Any]):
    """Single entries of a dict setting, as opposed to a whole table that replaces the default."""


def _put(parts: Any, path: list[str], value: Any, name: str) -> None:
    for part in path[:-1]:
        parts = parts.setdefault(part, _Parts()) if isinstance(parts, dict) else None
    if not isinstance(parts, dict):
        raise InvalidInput(f"setting {name!r} lies inside a value that is not a table", hint="set the table or its entries, not both")
    parts[path[-1]] = value


def _table_of(name: str, known: Mapping[str, Setting]) -> tuple[str | None, list[str]]:
    """Return the dict setting that a dotted name points into and the path inside it, or None and an empty path."""
    pieces = name.split(".")
    for length in range(len(pieces) - 1, 0, -1):
        head = known.get(".".join(pieces[:length]))
        if head is not None:
            table = head.type.startswith("dict")
            return (".".join(pieces[:length]), pieces[length:]) if table else (None, [])
    return None, []


def _merged(base: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in parts.items():
        below = result.get(name)
        result[name] = _merged(below if isinstance(below, Mapping) else {}, value) if isinstance(value, _Parts) else value
    return result


def _replaced(config: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """Return ``config`` with checked values; the error names a component that refuses their combination (in ``__post_init__``)."""
    changed: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            changed[head] = value
    for head, mine in inner.items():
        changed[head] = _replaced(getattr(config, head), mine, f"{prefix}{head}")
    try:
        return dataclasses.replace(config, **changed)
    except InvalidInput as error:
        if not prefix:
            raise
        raise InvalidInput(f"{prefix}: {error.message}", hint=error.hint) from None


def contrast(known: Mapping[str, Setting], name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return two groups of settings that differ only in ``name``; None if no installed type reads the setting.

    The test that every setting matters expects different training from them. Both groups select types that read the setting; the second
    group has its probe, or a value near its default.
    """
    field, common = known[name], {}
    for other, words in field.only.items():
        if not words:
            return None
        if known[other].default not in words:
            common[other] = words[0]
    value = field.probe
    if isinstance(value, dict):
        common |= {other: shared for other, shared in value.items() if other}
        value = value[""]
    elif value is None and field.choices is not None:
        value = next(choice for choice in field.choices if choice != field.default)
    elif value is None:
        kind = type(field.default)
        value = not field.default if kind is bool else field.default + 1 if kind is int else field.default / 2
    return common, {**common, name: value}


# --- Values ---
def _words(words: Any) -> Any:
    return tuple(words()) if callable(words) else words


def _converted(value: Any, kind: str) -> Any:
    """Return ``value`` as a type in words; `_WRONG` if it is of another type."""
    if kind.startswith("list["):
        if not isinstance(value, (list, tuple)) or len(value) > MOST_ITEMS:
            return _WRONG
        items = tuple(_converted(item, kind[5:-1]) for item in value)
        return _WRONG if any(item is _WRONG for item in items) else items
    if kind == "dict":
        table = _table(value)
        return _WRONG if table is None else table
    if kind == "int":
        value = as_whole(value)
    elif kind == "float" and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST:
        value = float(value)
    expected: Any = {"int": int, "float": float, "bool": bool, "str": str, "None": types.NoneType}.get(kind, ())
    return value if isinstance(value, expected) and (kind == "bool" or not isinstance(value, bool)) else _WRONG


def shown(value: Any) -> str:
    """Return a value as text for a message, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number with more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def as_whole(value: Any) -> Any:
    """Return a float with a whole value as an int (TOML reads 1e5 as a float); anything else unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < EXACT else value


def _plain(value: Any) -> Any:
    """Return tuples as lists, tables as deep copies, and anything else unchanged."""
    if isinstance(value, tuple):
        return list(value)
    return copy.deepcopy(value) if isinstance(value, dict) else value


def _table(value: Any) -> dict[str, Any] | None:
    """Copy a table with text as names and plain values (numbers that float32 holds, text, lists, tables); None for anything else."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return None
    copied = {name: _entry(item) for name, item in value.items()}
    return None if any(item is _WRONG for item in copied.values()) else copied


def _entry(value: Any) -> Any:
    if isinstance(value, Mapping):
        table = _table(value)
        return _WRONG if table is None else table
    if isinstance(value, (list, tuple)):
        items = [_entry(item) for item in value]
        return _WRONG if any(item is _WRONG for item in items) else items
    plain = value is None or isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and abs(value) <= LARGEST)
    return value if plain else _WRONG
