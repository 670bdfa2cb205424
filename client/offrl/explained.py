"""What is wrong with a value, in plain words, from the errors of pydantic: ``steps must be 1 or more, got -5``."""

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
# Parts of a place that name no field but the alternative of a type that was tried there.
_BRANCH = re.compile(
    r"(literal|list|tuple|dict|union|nullable|function-\w+|lax-or-strict|json-or-python|chain|model)\[.*\]"
    r"|constrained-\w+|int|float|str|bool|none|bytes|date|datetime"
)

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Problem:
    """The first thing that is wrong.

    Attributes:
        where: the field, ``spec.seeds[0]``.
        what: ``must be 0 or more, got -1``.
        kind: pydantic's name of the error.
        place: the parts of ``where``.
        value: what was given.
    """

    where: str
    what: str
    kind: str
    place: tuple[str | int, ...]
    value: Any

    def __str__(self) -> str:
        return f"{self.where} {self.what}"


def explained(error: ValidationError) -> Problem:
    """The first error. Where a value may be of several types and is none of them, all are named."""
    errors = error.errors(include_url=False)
    place = _fields(errors[0]["loc"])
    same = [each for each in errors if _fields(each["loc"]) == place]
    # A value of a right type that is out of range is told the range alone.
    first = next((each for each in same if each["type"] in _LIMITS or each["type"] == "string_pattern_mismatch"), None)
    wanted = list(dict.fromkeys(_wanted(each) for each in ([first] if first else same)))
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
    """Make a ``model`` of these values; raise `InvalidInput` naming the first wrong one."""
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
    """A text as a name that `NAME_PATTERN` allows, "" where nothing of it can be one."""
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
