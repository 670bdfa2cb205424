"""docs/store.md runs as one program and names every public name of the store."""

from __future__ import annotations

import re

import pytest
from pages import DOCS, links, run_page

import offrl_store

PAGE = DOCS / "store.md"


def test_the_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium")
    monkeypatch.chdir(tmp_path)
    run_page(PAGE, least=10)


def test_every_public_name_of_the_store_is_on_the_page_or_on_that_of_the_format():
    text = PAGE.read_text() + (DOCS / "store-format.md").read_text()
    hidden = {
        "Batch",
        "EpisodeList",
        "PrioritizedSampler",
        "Snapshot",
        "Transition",
        "TransitionList",
        "TransitionSampler",
        "WindowBatch",
        "WindowSampler",
        "Writer",
        "errors",
        "rng",
    }
    for name in set(offrl_store.__all__) - hidden:
        assert re.search(rf"\b{name}\b", text), name
    assert hidden <= set(offrl_store.__all__)


def test_every_file_that_the_page_names_is_there():
    for target in links(PAGE):
        assert target.exists(), target
