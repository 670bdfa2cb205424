"""docs/algorithms.md matches the registry, and docs/extending.md shows the files of the example."""

from __future__ import annotations

import re
from pathlib import Path

from offrld import docs, settings
from offrld.algos import ALGORITHMS

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_algorithms_is_the_one_that_make_docs_writes():
    assert docs.PATH.read_text() == docs.text(), "docs/algorithms.md is stale: make docs"


def test_it_lists_every_algorithm_with_its_settings_metrics_and_presets():
    parts = dict(re.findall(r"^## (\w+)\n(.*?)(?=^##? |\Z)", docs.text(), re.MULTILINE | re.DOTALL))
    for name, algorithm in ALGORITHMS.items():
        part = parts[name]
        assert algorithm.paper in part
        for setting in settings.describe(algorithm.config):
            assert f"| `{setting.partition('.')[0]}` |" in part, (name, setting)
        for preset in algorithm.presets:
            assert f"- preset `{preset}`: " in part
        assert "Metrics: `" in part or not algorithm.schedule(algorithm.config), name


def test_the_page_of_own_algorithms_shows_the_files_of_the_example():
    page = (ROOT / "docs" / "extending.md").read_text()
    shown = re.findall(r"^`(examples/plugin/\S+)`:\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert {Path(path).name for path, _ in shown} == {"pyproject.toml", "filtered_bc.py", "fourier.py"}
    for path, code in shown:
        assert code == (ROOT / path).read_text(), f"{path} differs from docs/extending.md"
