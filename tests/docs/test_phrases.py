"""tools/phrases.py finds phrases in what people read, and passes over identifiers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "phrases.py"


@pytest.fixture(scope="module")
def phrases():
    specification = importlib.util.spec_from_file_location("phrases", TOOL)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_phrases_in_comments_strings_and_pages_are_found(phrases, monkeypatch, tmp_path):
    monkeypatch.setattr(phrases, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text('told = 1  # it is fine\n"""The page tells\nthat an answer is due is wrong."""\n# made anew\n')
    (tmp_path / "b.md").write_text("Fine.\nSo many words.\n")
    assert [line.split(" ")[0] for line in phrases.problems("a.py")] == ["a.py:2:", "a.py:3:", "a.py:4:"]
    assert [line.split(" ")[0] for line in phrases.problems("b.md")] == ["b.md:2:"]


def test_pages_and_examples_are_clean_and_never_listed(phrases):
    listed = phrases.TODO.read_text().split()
    assert listed == sorted(set(listed))
    for name in listed:
        assert not name.endswith(".md") and not name.startswith("examples/"), name
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        assert phrases.problems(str(page.relative_to(ROOT))) == []
