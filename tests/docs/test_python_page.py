"""docs/python.md and docs/collecting.md run as programs."""

from __future__ import annotations

import pytest
from pages import DOCS, run_page


def test_the_blocks_of_the_page_run_one_after_the_other(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the last block is about scikit-learn")
    monkeypatch.chdir(tmp_path)
    names = run_page(DOCS / "python.md", least=7)
    assert (tmp_path / "policy.onnx").exists()
    assert names["scores"]["test_error"].shape == (2,)


def test_the_page_about_collecting_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_page(DOCS / "collecting.md", least=4)
    assert names["store"].step_count == 1500 and "rollout_return" in names["epochs"][-1][1]
