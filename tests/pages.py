"""The documentation as programs: the blocks of a page, run one after the other in the folder that the test is in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run_page(page: Path, *, least: int, shell_blocks: bool = False) -> dict[str, Any]:
    """The names that the Python blocks of a page leave.

    Args:
        least: so many blocks it has at least.
        shell_blocks: run them as well, each where it stands; a variable that one sets is there in the next.
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
    """The files that a page links to."""
    return [page.parent / target for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]


def _run_shell(code: str, variables: dict[str, str], where: str) -> dict[str, str]:
    """Run a block; the variables as it leaves them."""
    script = f"set -euo pipefail -a\n{code}\nenv -0 > .variables"
    done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
    left = Path(".variables")
    found = dict(each.split("=", 1) for each in left.read_text().rstrip("\0").split("\0"))
    left.unlink()
    return found
