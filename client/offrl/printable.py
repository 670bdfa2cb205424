"""Text from elsewhere as a terminal may show it: names out of data files, logs, reasons and notes can hold anything.

A terminal obeys control characters (an escape sequence sets its title, clears it, writes over what stands there), and marks of writing
direction make a text look like another one. Both are shown as escapes (``\\x1b``, ``\\u202e``), and so is what no encoding can write.
"""

from __future__ import annotations

import re

# C0 and C1 controls and DEL; invisible marks and marks of direction; line and paragraph separators; lone surrogates; tag characters.
_MARKS = "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
_LINE = re.compile(f"[\x00-\x1f\x7f-\x9f{_MARKS}]")
_BLOCK = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_MARKS}]")


def line(text: object) -> str:
    """``text`` on one line, tabs and line ends escaped as well."""
    return _LINE.sub(_escape, str(text))


def block(text: str) -> str:
    """``text`` with its lines and tabs. A carriage return, by which a progress bar writes over itself, ends a line."""
    return _BLOCK.sub(_escape, text.replace("\r\n", "\n").replace("\r", "\n"))


def counted(count: int, noun: str) -> str:
    """``1 episode``, ``2,690 episodes``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


__all__ = ["block", "counted", "line"]
