"""docs/python.md and docs/collecting.md, each as one program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


def run(page: Path, least: int) -> dict[str, Any]:
    """The names that the blocks of a page leave, which are run one after the other."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) >= least
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    return names


def test_the_blocks_of_the_page_run_one_after_the_other(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the last block is about scikit-learn")
    monkeypatch.chdir(tmp_path)
    names = run(DOCS / "python.md", 7)
    assert (tmp_path / "policy.onnx").exists()
    assert names["scores"]["test_error"].shape == (2,)


def test_the_page_about_collecting_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(DOCS / "collecting.md", 4)
    assert names["store"].step_count == 1500 and "rollout_return" in names["epochs"][-1][1]
