"""The list of the daemon's settings, with value, default, source and meaning: for `offrl config`, and as a commented offrld.toml."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from offrl.wire import Setting
from offrld.daemon.config import Settings, Sources, dotted

MACHINES = {  # defaults that depend on the machine: comments in the file
    "state_dir": "/var/lib/offrld",
    "bind": "ipc:///var/lib/offrld/run/offrld.sock",
}


def listing(settings: Settings, sources: Sources) -> list[Setting]:
    """List every setting of a running daemon."""
    values = dotted(settings.model_dump(mode="json"))
    return [
        Setting(
            name=name,
            value=values.get(name, _group(settings, name)),
            default=_default(field),
            source=sources.of.get(name, "default"),
            type=_type(field.annotation),
            help=field.description or "",
        )
        for name, field in fields(Settings)
    ]


def default_toml() -> str:
    """Return an offrld.toml with every setting at its default and its meaning as a comment."""
    lines = ["# offrld.toml: all settings of offrld, each at its default. Lines and comments may be removed."]
    group = ""
    for name, field in fields(Settings):
        table, _, key = name.rpartition(".")
        if table != group:
            group = table
            lines += ["", f"[{table}]" + (f"  # {caption}" if (caption := _caption(table)) else "")]
        else:
            lines.append("")
        lines.append(f"# {field.description} ({_type(field.annotation)})")
        default = MACHINES.get(name, _default(field))
        lines.append(f"# {key} = ..." if default is None else f"{'# ' if name in MACHINES else ''}{key} = {_toml(default)}")
    return "\n".join(lines) + "\n"


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield dotted name and field of every setting; settings outside of a table come first, as TOML requires."""
    tables = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            tables.append((name, field.annotation))
        else:
            yield prefix + name, field
    for name, table in tables:
        yield from fields(table, f"{prefix}{name}.")


def _group(settings: BaseModel, name: str) -> Any:
    """Return the value of a setting that is itself a table."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    return str(value) if isinstance(value, Path) else value


def _caption(table: str) -> str:
    model: Any = Settings
    for part in table.split("."):
        model = model.model_fields[part].annotation
    return " ".join((model.__doc__ or "").split()).rstrip(".")


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type(argument) for argument in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "table"
    names = {str: "text", Path: "path", int: "whole number", float: "number", bool: "true or false", type(None): "none"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)  # JSON and TOML write text, numbers, true and false alike
