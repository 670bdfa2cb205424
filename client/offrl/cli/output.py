"""Output of commands: results on stdout (JSON, tables, key-value lists), notes on stderr, and numbers in readable form.

Everything that a command prints passes through here and is escaped for terminals (`offrl.printable`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from offrl import printable
from offrl.errors import InvalidInput

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON value.")]
GAP, EDGE = 3, 2  # blank characters between columns of a table, and at its sides
LEAST = 12  # characters to which a narrow terminal may shrink a text


def emit(value: Any) -> None:
    """Print a value or pydantic model as one JSON value on stdout; NaN and infinity become null."""
    text = json.dumps(_clean(value), indent=2 if sys.stdout.isatty() else None)  # ASCII: the only control character left is DEL
    print(text.replace("\x7f", "\\u007f"), flush=True)


def say(text: object = "", *, word: str = "", colour: str = "") -> None:
    """Print a line on stdout at once, after ``word``, which has an ANSI colour if the terminal shows colours."""
    if colour and live(sys.stdout) and "NO_COLOR" not in os.environ:
        word = f"\x1b[{colour}m{word}\x1b[0m"
    print(f"{word}{printable.line(text)}", flush=True)


def write(text: str) -> None:
    """Print a text of several lines on stdout, with control characters escaped."""
    print(printable.block(text), end="", flush=True)


def talk(text: str) -> None:
    """Print a line on stderr."""
    print(printable.line(text), file=sys.stderr, flush=True)


@contextmanager
def destination(out: str | None, name: str, what: str, as_json: bool) -> Iterator[Any]:
    """Yield the path to write for ``out``; for ``-`` a temporary file, which is copied to stdout at the end.

    Args:
        name: name of the temporary file.
        what: the content, in an error message.
    """
    if out != "-":
        yield out
        return
    if as_json:
        raise InvalidInput("- and --json both are for stdout", hint="name a file, or leave --json out")
    if sys.stdout.isatty():
        raise InvalidInput(f"{what} is not text, and stdout is a terminal", hint="redirect stdout to a file or a pipe")
    with tempfile.TemporaryDirectory(prefix="offrl-") as folder:
        path = Path(folder) / name
        yield path
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def live(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that can redraw its content, unlike a pipe, a file or the shell of Emacs."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
    """Print rows under headers: with rich on a terminal, else as aligned plain text that is never cut.

    Args:
        right: headers of right-aligned columns.
        drop: headers of columns that a narrow terminal omits, in this order.
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
    """Make the table as an object of rich for a display ``width`` characters wide.

    The first column, numbers, and columns without a long text keep their width. If the display is too narrow, columns in ``drop`` are
    omitted. A table without ``drop`` wraps its texts; one with ``drop`` cuts them, so that each row stays on one line.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[printable.line(cell) for cell in row] for row in [headers, *rows]]
    widths = _widths(headers, cells, width, right, drop)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, columns in widths.items():
        shown.add_column(
            Text(printable.line(name)),
            justify="right" if name in right else "left",
            width=columns,
            no_wrap=bool(drop),
            overflow="ellipsis" if drop else "fold",
        )
    for row in cells[1:]:
        shown.add_row(*[Text(row[headers.index(name)]) for name in widths])  # Text: a "[" in a name is not markup
    return shown


def _widths(
    headers: Sequence[str], cells: Sequence[Sequence[str]], width: int, right: Sequence[str], drop: Sequence[str]
) -> dict[str, int]:
    """Return the visible columns and their widths. Texts share the space that the others leave; the widest shrinks first."""
    from rich.cells import cell_len

    widths = {name: max(cell_len(row[index]) for row in cells) for index, name in enumerate(headers)}
    texts = [name for name in headers[1:] if name not in right and widths[name] > LEAST]

    def over(of: dict[str, int]) -> int:
        return sum(of.values()) + GAP * (len(of) - 1) + EDGE - width

    for name in drop:
        if over({column: LEAST if column in texts else natural for column, natural in widths.items()}) > 0:
            del widths[name]
            texts = [text for text in texts if text != name]
    while (much := over(widths)) > 0 and texts and (widest := max(texts, key=lambda name: widths[name])) and widths[widest] > LEAST:
        others = [widths[name] for name in texts if name != widest]
        widths[widest] = max(LEAST, widths[widest] - much, min(max(others, default=0), widths[widest] - 1))
    return widths


def pairs(values: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair per line."""
    width = max(len(name) for name, _ in values)
    for name, value in values:
        print(f"{printable.line(name).ljust(width)}  {printable.line(value)}".rstrip())


def number(value: float | None, digits: int = 4) -> str:
    """Format a number with ``digits`` significant digits; "" for None."""
    if value is None:
        return ""
    if isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def seconds(value: float | None) -> str:
    """Format a duration as 42 s, 3:07 or 2:03:07; "" for None."""
    if value is None or not math.isfinite(value):
        return ""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def moment(value: float | None) -> str:
    """Format seconds since the epoch as local time; "" for None."""
    return "" if value is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))


def size(value: float) -> str:
    """Format bytes as 12.3 MB."""
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
