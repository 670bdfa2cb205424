"""The store's user page runs as it stands: its Python blocks in order, in one process and a folder of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import offrl_store

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "store.md").read_text()


def test_the_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 10
    for block in blocks:
        line = PAGE[: PAGE.index(block)].count("\n")
        exec(compile("\n" * line + block, "docs/store.md", "exec"), names)  # errors carry the page's line numbers


def test_every_public_name_of_the_store_is_on_the_page_or_on_that_of_the_format():
    formats = (Path(__file__).resolve().parent.parent / "docs" / "store-format.md").read_text()
    hidden = {"Batch", "EpisodeList", "PrioritizedSampler", "Snapshot", "Transition", "TransitionList", "TransitionSampler", "WindowBatch",
              "WindowSampler", "Writer", "errors", "rng"}  # fmt: skip
    for name in set(offrl_store.__all__) - hidden:
        assert re.search(rf"\b{name}\b", PAGE + formats), name
    assert hidden <= set(offrl_store.__all__)


def test_every_file_that_the_page_names_is_there():
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (Path(__file__).resolve().parent.parent / "docs" / target).exists(), target
