"""docs/cli.md has a section for every command, with all its options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offrl.cli.app import command

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
