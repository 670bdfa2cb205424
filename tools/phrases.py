"""Reject phrases that are not plain English, in documentation, comments, docstrings and messages.

    python tools/phrases.py            # exit status 1 and one line per phrase; part of `make lint`
    python tools/phrases.py --update   # remove the files that are clean by now from phrases_todo.txt

``phrases_todo.txt`` lists the files that still have such phrases. It only shrinks: the check ignores its files, and nothing adds to it.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TODO = Path(__file__).with_name("phrases_todo.txt")
PHRASES = re.compile(
    r"\b(told|tells?|what is asked for|so many|anew|due is|for who knows|goes before|means ill)\b", re.IGNORECASE
)  # fmt: skip
#: These files quote the phrases.
QUOTING = {"tools/phrases.py", "tests/docs/test_phrases.py"}
TEXT = {".md", ".toml", ".sh", ".service", ".conf", ""}
SPOKEN = {tokenize.COMMENT, tokenize.STRING} | ({tokenize.FSTRING_MIDDLE} if hasattr(tokenize, "FSTRING_MIDDLE") else set())


def files() -> list[str]:
    """Return the paths of all tracked text files, relative to the project's folder."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    suffixes = TEXT | {".py", ".pyx", ".pxd"}
    return [name for name in listed if Path(name).suffix in suffixes and name not in QUOTING and "/samples/" not in name]


def prose(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that people read: of Python its comments and strings, of other files all lines without `code`."""
    if not name.endswith(".py"):
        yield from ((number, re.sub(r"`[^`]*`", "``", line)) for number, line in enumerate(text.splitlines(), 1))
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in SPOKEN:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def problems(name: str) -> list[str]:
    """Return one line for each phrase in a file."""
    try:
        text = (ROOT / name).read_text()
    except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
        return []
    lines = prose(name, text)
    return [f"{name}:{number}: {match[0]!r} in: {line.strip()[:100]}" for number, line in lines if (match := PHRASES.search(line))]


def main() -> int:
    """Check every file that is not on the list; with ``--update`` shorten the list first."""
    names = files()
    todo = set(TODO.read_text().split())
    if "--update" in sys.argv[1:]:
        todo = {name for name in todo if name in names and problems(name)}
        TODO.write_text("".join(f"{name}\n" for name in sorted(todo)))
    rejected = [line for name in names if name not in todo for line in problems(name)]
    print(*rejected, sep="\n", end="\n" if rejected else "")
    return 1 if rejected else 0


if __name__ == "__main__":
    sys.exit(main())
