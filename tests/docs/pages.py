"""Run the blocks of a documentation page as one program, in the current folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run_page(page: Path, *, least: int, shell_blocks: bool = False) -> dict[str, Any]:
    """Run the Python blocks of a page and return the names that they define.

    Args:
        least: minimum number of blocks, so that a test never passes on an empty page.
        shell_blocks: run the shell blocks too, in order; variables carry over to the next block.
    """
    names: dict[str, Any] = {"__name__": "page"}
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    ran, text = 0, page.read_text()
    for block in BLOCK.finditer(text):
        language, code = block.groups()
        if language == "sh" and not shell_blocks:
            continue
        ran += 1
        line = text[: block.start(2)].count("\n")
        if language == "python":
            exec(compile("\n" * line + code, str(page), "exec"), names)  # errors carry the page's line numbers
        else:
            variables = _run_shell(code, variables, f"{page.name}, line {line + 1}")
    assert ran >= least
    return names


def links(page: Path) -> list[Path]:
    """Return the files that a page links to."""
    return [page.parent / target for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]


def _run_shell(code: str, variables: dict[str, str], where: str) -> dict[str, str]:
    """Run a shell block and return its variables."""
    script = f"set -euo pipefail -a\n{code}\nenv -0 > .variables"
    done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
    left = Path(".variables")
    variables = dict(line.split("=", 1) for line in left.read_text().rstrip("\0").split("\0"))
    left.unlink()
    return variables
