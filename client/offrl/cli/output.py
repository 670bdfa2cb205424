"""What is printed: results on stdout (JSON, tables, key-value lists), talk on stderr, and numbers as people read them.

Everything that a command prints goes through here, and is made harmless for a terminal on the way (`offrl.printable`).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import IO, Annotated, Any

import typer

from offrl import printable

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON value.")]
GAP = 2          # between the columns of a table
LEAST = 12       # signs of a column of text that a narrow terminal cuts


def emit(value: Any) -> None:
    """Print ``value`` (or a pydantic model) as one JSON value on stdout; numbers that JSON does not have become null."""
    text = json.dumps(_clean(value), indent=2 if sys.stdout.isatty() else None)  # ASCII: the only control that it leaves is DEL
    print(text.replace("\x7f", "\\u007f"), flush=True)


def say(text: object = "", *, word: str = "", colour: str = "") -> None:
    """A line on stdout, there at once; ``word``, before it, has a colour (a number of ANSI) on a terminal that shows colours."""
    if colour and live(sys.stdout) and "NO_COLOR" not in os.environ:
        word = f"\x1b[{colour}m{word}\x1b[0m"
    print(f"{word}{printable.line(text)}", flush=True)


def write(text: str) -> None:
    """A text of several lines on stdout, as it is but for what a terminal would obey."""
    print(printable.block(text), end="", flush=True)


def talk(text: str) -> None:
    """A line on stderr."""
    print(printable.line(text), file=sys.stderr, flush=True)


def live(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that can be written over: no pipe, no file, not Emacs' shell."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
    """Print rows under headers: by rich on a terminal, else as aligned plain text that is never cut.

    Args:
        right: headers of numbers.
        drop: headers of what a narrow terminal does without, the first of them first.
    """
    if live(sys.stdout):
        from rich.console import Console

        console = Console()
        console.print(rich_table(headers, rows, console.width, right=right, drop=drop))
        return
    rows = [[printable.line(cell) for cell in row] for row in [headers, *rows]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(headers))]
    for row in rows:
        cells = [
            cell.rjust(width) if header in right else cell.ljust(width) for header, cell, width in zip(headers, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def rich_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, right: Sequence[str] = (), drop: Sequence[str] = ()
) -> Any:
    """The same as an object of rich, for a live display of so many columns.

    What names a row (the first column), numbers, and columns without a long text keep their width. Where it is too narrow, columns in
    ``drop`` go; a table without any wraps its texts, one that has some cuts them, so that a row stays one line.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[printable.line(cell) for cell in row] for row in [headers, *rows]]
    natural = {header: max(Text(row[i]).cell_len for row in cells) for i, header in enumerate(headers)}
    kept = list(headers)

    def least() -> int:
        texts = [name for name in kept[1:] if name not in right]
        return sum(min(natural[name], LEAST) if name in texts else natural[name] for name in kept) + GAP * (len(kept) - 1)

    for name in drop:
        if least() > width:
            kept.remove(name)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in kept:
        fixed = name == kept[0] or name in right or natural[name] <= LEAST
        made.add_column(
            Text(printable.line(name)), justify="right" if name in right else "left", no_wrap=fixed or bool(drop),
            overflow="ellipsis" if drop else "fold", min_width=natural[name] if fixed else LEAST,
        )  # fmt: skip
    chosen = [headers.index(name) for name in kept]
    for row in cells[1:]:
        made.add_row(*[Text(row[index]) for index in chosen])  # Text: a "[" in a name is no markup
    return made


def pairs(values: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair per line."""
    width = max(len(name) for name, _ in values)
    for name, value in values:
        print(f"{printable.line(name).ljust(width)}  {printable.line(value)}".rstrip())


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
