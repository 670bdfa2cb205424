"""docs/cli.md describes every command and every option; the options of jobs derive from their specifications."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offrl import job_keywords
from offrl.cli import reference
from offrl.cli.app import command
from offrl.client import Client
from offrl.job_options import job_options

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def commands(group: Any, path: str = "offrl") -> Iterator[tuple[str, Any]]:
    for name, child in group.commands.items():
        if hasattr(child, "commands"):
            yield from commands(child, f"{path} {name}")
        else:
            yield f"{path} {name}", child


def test_every_command_has_its_section_and_every_option_stands_in_it():
    sections = {
        title.split("`")[1]: title + body for title, body in re.findall(r"^### (.*?)$\n(.*?)(?=^##|\Z)", DOCS.read_text(), re.M | re.S)
    }
    known = dict(commands(command()))
    assert set(sections) == set(known)
    for name, leaf in known.items():
        for parameter in leaf.params:
            if parameter.param_type_name == "option" and "--help" not in parameter.opts:
                missing = [option for option in parameter.opts if option not in sections[name]]
                assert not missing, f"{name}: {missing}"


def test_the_options_of_jobs_in_the_page_and_in_the_keywords_are_those_of_the_specifications():
    """``make docs`` writes both."""
    assert reference.page(DOCS.read_text()) == DOCS.read_text()
    assert reference.keywords() == reference.KEYWORDS.read_text()


@pytest.mark.parametrize("method", reference.METHODS)
def test_every_option_of_a_job_is_an_option_of_the_command_and_a_keyword_of_the_client(method):
    spec, name = reference.METHODS[method]
    own = inspect.signature(getattr(Client, method)).parameters
    known = {parameter.name for parameter in dict(commands(command()))[f"offrl {method.replace('_', '-')}"].params}
    options = {option.name for option in job_options(spec)}
    assert options
    assert options <= known
    assert options <= {*own, *getattr(job_keywords, name).__annotations__}
