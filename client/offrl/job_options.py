"""Options of a job, declared once in its specification (`offrl.job`).

From such a declaration come the option of the command line (`offrl.cli.job_options`), the typed keyword of `Client` (`offrl.job_keywords`)
and the row in docs/cli.md; ``make docs`` writes the last two.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

WORTH_SAYING = 10**6  # limits from here on only catch slips of the keyboard


@dataclass(frozen=True)
class Option:
    """What a field of a specification means to users.

    Attributes:
        help: one sentence.
        value: the placeholder of its value: ``N``, ``JOB[:SEED]``.
        unit: of its value.
        flag: its name on the command line, by default that of the field.
        default: what happens without it, if None stands for something that is chosen later.
        more: further sentences for docs/cli.md.
    """

    help: str
    value: str = ""
    unit: str = ""
    flag: str = ""
    default: str = ""
    more: str = ""


@dataclass(frozen=True)
class JobOption:
    """An `Option` with what the field adds: name, type, default and limits."""

    name: str
    option: Option
    field: FieldInfo

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return self.option.flag or "--" + self.name.replace("_", "-")

    @property
    def type(self) -> type:
        """int, float, bool or str."""
        kind = _without_none(self.field.annotation)
        return str if typing.get_origin(kind) is Literal else kind

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes, if these are fixed."""
        kind = _without_none(self.field.annotation)
        return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()

    @property
    def default(self) -> str:
        """Its default in words, "" if there is none."""
        if self.option.default or self.field.is_required() or self.type is bool:
            return self.option.default
        return "" if self.field.default is None else f"{self.field.default:g}" if self.type is float else str(self.field.default)

    @property
    def limits(self) -> str:
        """Its limits in words: ``at least 1``, ``0 to 1``; "" if it has none worth saying."""
        parts = [*self.field.metadata, *_metadata(self.field.annotation)]
        limits = {name: getattr(part, name) for part in parts for name in ("ge", "gt", "le", "lt") if hasattr(part, name)}
        low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
        if high is None or high >= WORTH_SAYING:
            return "" if low is None else f"{'at least' if 'ge' in limits else 'above'} {low:g}"
        if "ge" in limits and "le" in limits:
            return f"{low:g} to {high:g}"
        return f"{'at least' if 'ge' in limits else 'above'} {low:g}, {'at most' if 'le' in limits else 'below'} {high:g}"


def job_options(spec: type[BaseModel], *, without: Iterable[str] = ()) -> list[JobOption]:
    """Return the options of a specification in its order."""
    skipped = set(without)
    return [
        JobOption(name, part, field)
        for name, field in spec.model_fields.items()
        for part in field.metadata
        if isinstance(part, Option) and name not in skipped
    ]


def _without_none(annotation: Any) -> Any:
    """``int`` of ``Annotated[int, ...] | None``."""
    annotation = _chosen(annotation)
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _metadata(annotation: Any) -> list[Any]:
    """The constraints inside ``Annotated[int, ...] | None``."""
    annotation = _chosen(annotation)
    parts = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is typing.Annotated else ()
    return [constraint for part in parts for constraint in (part.metadata if isinstance(part, FieldInfo) else [part])]


def _chosen(annotation: Any) -> Any:
    """``X`` of ``X | None``."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = (part for part in typing.get_args(annotation) if part is not types.NoneType)
    return annotation
