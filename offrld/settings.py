"""Settings of algorithms and networks: frozen dataclasses whose fields carry meaning, unit, limits and choices.

A nested dataclass is addressed by a dotted path (``critic_encoder.units``). `build` applies settings given by the user, checks
each against its field and names the nearest known one for a misspelling; `describe` tells everything about every field, which
is what `offrl algos`, the daemon's validation and the generated documentation are made from.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from offrl.errors import InvalidInput, Unknown, nearest

T = TypeVar("T")
_META = "offrl.setting"
_IN_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list[int]": "a list of whole numbers"}


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    exclusive_low: bool = False,
    choices: tuple[str, ...] | None = None,
    probe: Any = None,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: the value when nothing is given.
        help: what it means, one line.
        unit: of the value, where it has one ("updates", "transitions", ...).
        low, high: inclusive limits (``exclusive_low``: above low).
        choices: the allowed words of a text setting.
        probe: another valid value under which the change of this setting shows within a few updates; for the test which proves
            that every setting matters, where the default would hide the effect (a limit that is never reached, say). A dict
            maps other settings to values that both sides of the comparison then use, with ``""`` for this one.
    """
    metadata = {
        _META: {
            "help": help, "unit": unit, "low": low, "high": high, "exclusive_low": exclusive_low, "choices": choices, "probe": probe,
        }
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field as `describe` found it: dotted name, type in words, default and what `setting` was told."""

    name: str
    type: str
    default: Any
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    exclusive_low: bool = False
    choices: tuple[str, ...] | None = None
    probe: Any = None

    def as_json(self) -> dict[str, Any]:
        """``{"type", "default", "help", ...}`` without the keys that say nothing."""
        default = list(self.default) if isinstance(self.default, tuple) else self.default
        result: dict[str, Any] = {"type": self.type, "default": default, "help": self.help}
        for key in ("unit", "low", "high", "exclusive_low", "choices"):
            value = getattr(self, key)
            if value is not None and value != "" and value is not False:
                result[key] = list(value) if isinstance(value, tuple) else value
        return result

    def check(self, value: Any) -> Any:
        """``value`` as the field's type; raises `InvalidInput` that names setting, value and what is allowed."""
        kind, optional = self.type.removesuffix(" | None"), self.type.endswith(" | None")
        if value is None and optional:
            return None
        if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        expected = {"int": int, "float": float, "bool": bool, "str": str, "list[int]": (list, tuple)}[kind]
        wrong = not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool")
        if kind == "list[int]" and not wrong:
            value = tuple(value)
            wrong = any(not isinstance(item, int) or isinstance(item, bool) for item in value)
        if wrong:
            raise InvalidInput(f"setting {self.name!r} takes {self._wanted()}, got {value!r}", hint="see `offrl algos NAME`")
        if self.choices is not None and value not in self.choices:
            raise InvalidInput(f"setting {self.name!r} takes {self._wanted()}, got {value!r}", hint=nearest(str(value), self.choices))
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (int, float)) and not isinstance(item, bool) and not self._within(item):
                raise InvalidInput(f"setting {self.name!r} takes {self._wanted()}, got {value!r}", hint="see `offrl algos NAME`")
        return value

    def _within(self, value: float) -> bool:
        above = self.low is None or (value > self.low if self.exclusive_low else value >= self.low)
        return above and (self.high is None or value <= self.high) and value == value  # NaN is never within

    def _wanted(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        limits = []
        if self.low is not None:
            limits.append(f"{'above' if self.exclusive_low else 'at least'} {self.low:g}")
        if self.high is not None:
            limits.append(f"at most {self.high:g}")
        words = _IN_WORDS[self.type.removesuffix(" | None")] + (f" {' and '.join(limits)}" if limits else "")
        return words + (" or none" if self.type.endswith("None") else "")


def describe(config: Any) -> dict[str, Setting]:
    """Every setting of a dataclass (class or instance) by its dotted name, in the order of declaration."""
    instance = config() if isinstance(config, type) else config
    hints = typing.get_type_hints(type(instance))
    found: dict[str, Setting] = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(value):
            for name, inner in describe(value).items():
                found[f"{field.name}.{name}"] = dataclasses.replace(inner, name=f"{field.name}.{name}")
        else:
            found[field.name] = Setting(name=field.name, type=_type_in_words(hints[field.name]), default=value, **field.metadata[_META])
    return found


def build(config: T, values: Mapping[str, Any]) -> T:
    """``config`` (an instance) with the dotted ``values`` applied and checked; raises `Unknown` or `InvalidInput`."""
    known = describe(config)
    nested: dict[str, dict[str, Any]] = {}
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise Unknown(f"unknown setting {name!r}", hint=nearest(name, list(known)))
        checked = known[name].check(value)
        head, _, rest = name.partition(".")
        if rest:
            nested.setdefault(head, {})[rest] = checked
        else:
            plain[name] = checked
    for head, inner in nested.items():
        plain[head] = build(getattr(config, head), inner)
    return dataclasses.replace(config, **plain)  # type: ignore[type-var]


def as_flat(config: Any) -> dict[str, Any]:
    """Dotted name -> value (tuples as lists): what `build` takes, and what run folders and policy files keep."""
    return {name: list(s.default) if isinstance(s.default, tuple) else s.default for name, s in describe(config).items()}


def _type_in_words(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return f"{_type_in_words(inner[0])} | None"
    if typing.get_origin(hint) is tuple:
        return "list[int]"
    return hint.__name__
