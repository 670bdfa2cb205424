"""The shell blocks of the README's quick start run in order, in a temporary folder and home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(heading: str) -> list[str]:
    """The shell blocks below a heading, without the line that activates the virtual environment."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [block.replace("source .venv/bin/activate\n", "") for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]


def test_every_file_that_the_readme_names_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_quick_start_works_word_by_word():
    serve, data, train, online = blocks("Quick start")
    with tempfile.TemporaryDirectory(prefix="offrl-", dir="/tmp") as folder:
        shutil.copytree(ROOT / "examples", Path(folder) / "examples")
        home = Path(folder) / "h"
        home.mkdir()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(home), "OMP_NUM_THREADS": "1"}
        daemon = subprocess.Popen(["sh", "-c", f"exec {serve}"], cwd=folder, env=environment)
        try:
            deadline = time.monotonic() + 180
            while subprocess.run(["offrl", "ping"], env=environment, capture_output=True, check=False).returncode:
                assert daemon.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
            train = train.replace("--wait", "--wait | tee job").replace("fetch JOB", "fetch $(cat job)")
            online = online.replace("--from JOB", "--from $(cat job)")
            printed = {}
            for block in (data, train, online):
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, done.stdout + done.stderr
                printed[block] = done.stdout
            assert "updates" in done.stderr and ", 0 updates" not in done.stderr, done.stderr
            mean = float(re.search(r"return\s+(-[\d,.]+) ", printed[train])[1].replace(",", ""))
            assert mean > -400, printed[train]
        finally:
            daemon.terminate()
            daemon.wait(timeout=120)
