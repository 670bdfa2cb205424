"""What is printed: results on stdout (JSON, tables, key-value lists), talk on stderr, and numbers as people read them."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON value.")]


def emit(value: Any) -> None:
    """Print ``value`` (or a pydantic model) as one JSON value on stdout; numbers that JSON does not have become null."""
    print(json.dumps(_clean(value), indent=2 if sys.stdout.isatty() else None), flush=True)


def talk(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print rows under headers: by rich on a terminal, else as aligned plain text that is never cut. ``right``: headers of numbers."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(headers, rows, right=right))
        return
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, *rows]:
        cells = [
            cell.rjust(width) if header in right else cell.ljust(width) for header, cell, width in zip(headers, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> Any:
    """The same as an object of rich, for a live display."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, header in enumerate(headers):
        # A narrow terminal cuts the columns between: the first names the row, the last one may take several lines.
        least = max(len(row[0]) for row in [headers, *rows]) if index == 0 else None
        last = index == len(headers) - 1
        made.add_column(header, justify="right" if header in right else "left", no_wrap=not last, min_width=least)
    for row in rows:
        made.add_row(*[Text(cell) for cell in row])  # Text: a "[" in a name is no markup
    return made


def pairs(values: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair per line."""
    width = max(len(name) for name, _ in values)
    for name, value in values:
        print(f"{name.ljust(width)}  {value}".rstrip())


def number(value: float | None, digits: int = 4) -> str:
    """A number with as many digits as say something; "" for None."""
    if value is None:
        return ""
    if isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def seconds(value: float | None) -> str:
    """A span of time as 42 s, 3:07 or 2:03:07; "" for None."""
    if value is None or not math.isfinite(value):
        return ""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def moment(value: float | None) -> str:
    """Seconds since the epoch as a time of this machine's zone; "" for None."""
    return "" if value is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))


def size(value: float) -> str:
    """Bytes as 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _clean(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
