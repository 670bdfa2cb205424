"""CHANGELOG.md has fixed headings, and its newest release is the version of the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import offrl

ROOT = Path(__file__).resolve().parents[2]
HEADINGS = ["Added", "Changed", "Fixed", "Removed"]


def test_every_release_has_the_same_headings_and_a_date():
    _, *releases = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert releases[0].startswith("Unreleased\n")
    for release in releases:
        assert re.findall(r"^### (.*)$", release, re.MULTILINE) == HEADINGS, release.splitlines()[0]
    for release in releases[1:]:
        assert re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d{2}-\d{2}", release.splitlines()[0]), release.splitlines()[0]


def test_the_version_is_the_same_everywhere():
    newest = re.search(r"^## (\d\S*) - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert newest == project == offrl.__version__
    assert f"offrl-{newest}-cp311" in (ROOT / "docs" / "operations.md").read_text()
