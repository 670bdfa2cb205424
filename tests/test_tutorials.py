"""docs/tutorials: each page as one program, its shell blocks against a daemon; and the scripts that the pages name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pages import DOCS, links, run_page

import offrl
from offrl_store import EpisodeStore, check
from offrld.embedded import embedded_daemon

TUTORIALS = DOCS / "tutorials"
EXAMPLES = DOCS.parent / "examples"


@pytest.fixture(scope="module")
def daemon() -> Iterator[offrl.Client]:
    with embedded_daemon() as client:
        yield client


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def example(name: str, *arguments: object) -> str:
    """What a script of examples/ prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_what_the_pages_link_to_is_there():
    pages = sorted(TUTORIALS.glob("*.md"))
    for page in pages:
        for target in links(page):
            assert target.exists(), f"{page.name}: {target}"


def test_collect_and_store(daemon):
    names = run_page(TUTORIALS / "collect-and-store.md", least=6, url=daemon.url)
    assert len(names["epochs"]) == 2
    assert {each.name: each.transitions for each in daemon.datasets.list()} == {"random": 1000, "replay": 800, "trained": 500}
    file = EpisodeStore.open(names["import_into"]("replay-of-the-job.h5", "of-the-job").path)
    assert file.step_count == 800


def test_three_datasets_of_an_environment(tmp_path):
    assert "replay: 300 steps" in example("three_datasets.py", "Pendulum-v1", tmp_path / "out", "--steps", 300)
    for name in ("random", "replay", "trained"):
        assert check(tmp_path / "out" / name) == []
        assert (tmp_path / "out" / f"{name}.h5").exists()
