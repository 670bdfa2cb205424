"""Values given as text on the command line: ``--set``, ``--seeds``, ``--config``, ``--map``, ``--at``."""

from __future__ import annotations

import math
import re
import tomllib
from datetime import datetime
from decimal import Decimal
from typing import Any

import typer

from offrl.errors import InvalidInput
from offrl.set_values import flat

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
SCALES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
DIGITS = 40  # of a number that anything here could mean
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_.+/-]*")
_NUMBER = re.compile(r"([+-]?(?:\d+(?:_\d+)*|\d{1,3}(?:,\d{3})+)(?:\.\d*)?(?:[eE][+-]?\d{1,3})?)([kKMGT]?)", re.ASCII)


def count(text: Any) -> int:
    """A whole number, also as ``1e5``, ``100k``, ``1.5M``, ``100_000`` or ``100,000``: the parser of such options."""
    if isinstance(text, int):
        return text
    value = _whole(text.strip())
    if value is None:
        raise typer.BadParameter(f"{text!r} is not a whole number such as 100000, 100_000, 1e5, 100k or 1M")
    return value


def real(text: Any) -> float:
    """A finite number: the parser of such options."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"{text!r} is not a number such as 0.5, 1e-3 or 10")
    return value


def _whole(text: str) -> int | None:
    found = _NUMBER.fullmatch(text)
    if found is None or len(text) > DIGITS:
        return None
    value = Decimal(found[1].replace("_", "").replace(",", "")) * SCALES[found[2]]
    return int(value) if value.adjusted() <= DIGITS and value == value.to_integral_value() else None


def settings(config: str | None, sets: list[str]) -> dict[str, Any]:
    """The settings of a TOML file, and those of ``--set`` over them. Raises `InvalidInput`."""
    found: dict[str, Any] = {}
    if config is not None:
        found.update(flat(_file(config)))
    for text in sets:
        name, value = setting(text)
        found[name] = value
    return found


def setting(text: str, option: str = "--set") -> tuple[str, Any]:
    """``name=value``: a dotted name and a TOML value. A bare word that is not TOML is text, ``null`` is None. Raises `InvalidInput`."""
    name, separator, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not separator or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
        raise InvalidInput(
            f"{option} {text!r} is not name=value", hint=f"for example {option} alpha=2.5 or {option} 'critic_encoder.units=[256,256]'"
        )
    if value == "null":
        return name, None
    if value[-1:] in SCALES and (number := _whole(value)) is not None:  # 100k, which TOML does not know
        return name, number
    try:
        parsed = tomllib.loads(f"value = [{value}]")  # a list of one: the rest of a line that begins with a comment would lack its end
    except RecursionError:
        raise InvalidInput(f"{option} {name}: the value is nested too deeply", hint="pass a list or a table of a few levels") from None
    except ValueError:  # also a number of thousands of digits
        parsed = {}
    if len(parsed.get("value", ())) != 1 or value.endswith(","):
        if _BARE.fullmatch(value):
            return name, value
        hint = f"for a list use {option} {name}=[{value}]" if "," in value else 'use a number, true, false, "text" or [a, b]'
        raise InvalidInput(f"{option} {name}: {value!r:.100} is not a value", hint=hint)
    if set(parsed) != {"value"}:
        raise InvalidInput(f"{option} {name}: {value!r} is more than one value", hint=f"pass {option} once for each setting")
    return name, parsed["value"][0]


def start(text: str | None) -> dict[str, Any]:
    """When a job shall start, as arguments of `Client.submit`: ``+2h``, or an ISO time (of this machine's zone, unless it says another).

    Raises `InvalidInput`.
    """
    if text is None:
        return {}
    if match := re.fullmatch(r"\+(\d{1,9}(?:\.\d{1,9})?)([smhdw])", text, re.ASCII):
        return {"delay_s": float(match[1]) * UNITS[match[2]]}
    try:
        return {"at": datetime.fromisoformat(text)}
    except ValueError:
        raise InvalidInput(f"--at {text!r} is not a time", hint="for example +2h, +30m, 2026-11-30T22:00 or 2026-11-30T21:00Z") from None


def column_map(texts: list[str]) -> Any:
    """``--map``: the path of a TOML file with field = "columns" (or a list of them), else the texts, joined. Raises `InvalidInput`."""
    if len(texts) == 1 and texts[0].endswith(".toml"):
        return _file(texts[0], "--map names a TOML file with field = columns, or is written FIELD=COLUMNS,...")
    return ",".join(texts)


def seed_list(text: str) -> list[int]:
    """``0-7`` or ``0,2,5`` or both. Raises `InvalidInput`."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:\s*-\s*(\d{1,10}))?\s*", part, re.ASCII)
        if match is None:
            raise InvalidInput(f"--seeds {text!r}: {part.strip()!r} is not a seed", hint="for example 0-7 or 0,2,5")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InvalidInput(f"--seeds {text!r}: {part.strip()!r} runs backwards", hint="for example 0-7 or 0,2,5")
        if last - first >= 1024:
            raise InvalidInput(f"--seeds {text!r} are {last - first + 1} seeds", hint="a job trains at most 1,024")
        found += range(first, last + 1)
    repeated = [seed for seed in found if found.count(seed) > 1]
    if repeated:
        raise InvalidInput(f"--seeds {text!r} has {repeated[0]} twice", hint="each seed is trained once")
    return found


def _file(path: str, meaning: str = "--config names a TOML file with settings of the algorithm") -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise InvalidInput(f"no such file: {path!r}", hint=meaning) from None
    except OSError as error:
        raise InvalidInput(f"cannot read {path!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise InvalidInput(f"{path!r} is not TOML: {error}", hint="for example: alpha = 2.5") from None
