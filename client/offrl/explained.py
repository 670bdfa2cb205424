"""Errors of pydantic in plain words: ``steps must be 1 or more, got -5``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from offrl import message
from offrl.errors import InvalidInput, nearest
from offrl.job import DEVICE_PATTERN, JOB_PATTERN, NAME_PATTERN, POLICY_PATTERN, TAKEN_PATTERN

NAME = "letters, digits, '.', '_' and '-', at most 100, of which the first is a letter or digit"
PATTERNS = {
    NAME_PATTERN: f"a name ({NAME})",
    JOB_PATTERN: "the id of a job",
    TAKEN_PATTERN: "JOB or JOB:SEED",
    DEVICE_PATTERN: "auto, cpu, cuda or cuda:N",
    POLICY_PATTERN: "random, normal, job:ID or a policy file",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits",
}
_TYPES = {
    "int": "a whole number", "float": "a number", "finite_number": "a finite number", "bool": "true or false", "string": "text",
    "list": "a list", "tuple": "a list", "dict": "a table", "model": "a table", "mapping": "a table", "path": "a path", "bytes": "bytes",
    "none": "null",
}  # fmt: skip
_LIMITS = {
    "greater_than_equal": "{ge} or more", "greater_than": "more than {gt}", "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "int_parsing_size": "a whole number of fewer digits", "string_too_long": "text of at most {max_length} characters",
    "string_too_short": "text of at least {min_length} characters", "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
}  # fmt: skip
# Parts of a location that name an alternative of a union instead of a field.
_BRANCH = re.compile(
    r"(literal|list|tuple|dict|union|nullable|function-\w+|lax-or-strict|json-or-python|chain|model)\[.*\]"
    r"|constrained-\w+|int|float|str|bool|none|bytes|date|datetime"
)

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Problem:
    """The first error.

    Attributes:
        where: the field, ``spec.seeds[0]``.
        what: ``must be 0 or more, got -1``.
        kind: pydantic's name for the error.
        place: the parts of ``where``.
        value: the refused value.
    """

    where: str
    what: str
    kind: str
    place: tuple[str | int, ...]
    value: Any

    def __str__(self) -> str:
        return f"{self.where} {self.what}"


def explained(error: ValidationError) -> Problem:
    """Describe the first error. If a value may have several types and has none of them, all are named."""
    errors = error.errors(include_url=False)
    place = _fields(errors[0]["loc"])
    same = [detail for detail in errors if _fields(detail["loc"]) == place]
    # If the type is right and only the range is wrong, the message names the range and no other types.
    first = next((detail for detail in same if detail["type"] in _LIMITS or detail["type"] == "string_pattern_mismatch"), None)
    wanted = list(dict.fromkeys(_wanted(detail) for detail in ([first] if first else same)))
    first = first or same[0]
    value = first.get("input")
    if first["type"] == "missing":
        what = "is missing"
    elif first["type"] == "extra_forbidden":
        what = "is unknown"
    elif first["type"] in ("value_error", "assertion_error"):
        what = f"{' '.join(str(first['ctx']['error']).split())[:500]}, got {message.shown(value)}"
    else:
        what = f"must be {' or '.join(wanted)}, got {message.shown(value)}"
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{str(part)[:100]}" for part in place).lstrip(".")
    return Problem(where or "message", what, first["type"], place, value)


def build(model: type[Model], **values: Any) -> Model:
    """Make a ``model`` of these values; raise `InvalidInput` naming the first invalid one."""
    try:
        return model(**values)
    except ValidationError as error:
        problem = explained(error)
        name = as_name(problem.value) if problem.kind == "string_pattern_mismatch" and problem.place == ("dataset",) else ""
        hint = nearest(str(problem.place[-1]), model.model_fields) if problem.kind == "extra_forbidden" else ""
        refused = InvalidInput(str(problem), hint=f"for example {name}" if name else hint)
        refused.field = problem.where
        raise refused from None


def as_name(text: Any) -> str:
    """Turn a text into a name that `NAME_PATTERN` allows; "" if nothing of it is usable."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(text))[:100].strip("-._")
    return name if re.fullmatch(NAME_PATTERN, name) else ""


def _fields(place: tuple[str | int, ...]) -> tuple[str | int, ...]:
    return tuple(part for part in place if isinstance(part, int) or not _BRANCH.fullmatch(part))


def _wanted(error: Mapping[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _LIMITS:
        return _LIMITS[kind].format(**context)
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(context["pattern"], f"text that fits {context['pattern']}")
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "union_tag_invalid":
        return f"one of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"a table with {context['discriminator']}"
    for name, words in _TYPES.items():
        if kind == name or kind.startswith(f"{name}_"):
            return words
    return error["msg"][:200].removeprefix("Input should be ").removeprefix("Value error, ")


__all__ = ["PATTERNS", "Problem", "as_name", "build", "explained"]
