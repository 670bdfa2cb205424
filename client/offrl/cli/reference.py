"""What is generated from the options of jobs: ``python -m offrl.cli.reference`` (part of ``make docs``) writes

* the keywords of `Client.submit`, `Client.collect` and `Client.train_online` (client/offrl/job_keywords.py), and
* the tables of options in docs/cli.md, between ``<!-- options of submit -->`` and ``<!-- end of options -->``.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from pydantic import BaseModel

import offrl
from offrl.client import Client
from offrl.job import CollectSpec, TrainOnlineSpec, TrainSpec
from offrl.job_options import JobOption, job_options

PACKAGE = Path(offrl.__file__).parent
CLI_PAGE = PACKAGE.parents[1] / "docs" / "cli.md"
KEYWORDS = PACKAGE / "job_keywords.py"
METHODS: dict[str, tuple[type[BaseModel], str]] = {
    "submit": (TrainSpec, "TrainOptions"),
    "collect": (CollectSpec, "CollectOptions"),
    "train_online": (TrainOnlineSpec, "TrainOnlineOptions"),
}
HEAD = '''"""Keywords of `Client` that are options of a job. Generated from `offrl.job` by ``make docs``; do not edit."""

from __future__ import annotations

from typing import Literal, TypedDict
'''


def keywords() -> str:
    """Return the module with the typed keywords."""
    text = HEAD
    for method, (spec, name) in METHODS.items():
        own = inspect.signature(getattr(Client, method)).parameters
        text += f'\n\nclass {name}(TypedDict, total=False):\n    """Options of `Client.{method}`; None stands for the default."""\n'
        for option in job_options(spec, without=own):
            text += f"\n    {option.name}: {_type(option)} | None\n    {_described(option)}\n"
    return text


def _type(option: JobOption) -> str:
    return f"Literal[{', '.join(map(repr, option.choices)).replace(chr(39), chr(34))}]" if option.choices else option.type.__name__


def _described(option: JobOption) -> str:
    """The docstring of a keyword: its help with Python's names, unit, limits and default."""
    text = re.sub(r"--([a-z-]+)", lambda flag: f"``{_name(flag[1])}``", option.option.help).rstrip(".")
    facts = [option.option.unit, option.limits, option.default and f"default {option.default}"]
    return f'"""{text}' + (f" ({'; '.join(filter(None, facts))})" if any(facts) else "") + '."""'


def _name(flag: str) -> str:
    return {"from": "start"}.get(flag, flag.replace("-", "_"))


def table(spec: type[BaseModel]) -> str:
    """Return the table of a specification's options."""
    rows = ["| option | meaning | default | values |", "|---|---|---|---|"]
    for option in job_options(spec):
        flag = " ".join(filter(None, (option.flag, option.option.value)))
        values = ", ".join(f"`{word}`" for word in option.choices) or " ".join(filter(None, (option.limits, option.option.unit)))
        meaning = " ".join(filter(None, (_code(option.option.help), option.option.more)))
        default = "required" if option.field.is_required() else option.default
        rows.append(f"| `{flag}` | {meaning} | {_thousands(default)} | {_thousands(values)} |")
    return "\n".join(rows)


def _code(text: str) -> str:
    return re.sub(r"(--[a-z-]+)", r"`\1`", text)


def _thousands(text: str) -> str:
    return re.sub(r"\d{5,}", lambda number: f"{int(number[0]):,}", text)


def page(text: str) -> str:
    """Return docs/cli.md with its tables of options renewed."""
    for method, (spec, _) in METHODS.items():
        name = method.replace("_", "-")
        start, end = f"<!-- options of {name} -->", "<!-- end of options -->"
        before, found, rest = text.partition(start)
        assert found, f"docs/cli.md has no {start}"
        text = f"{before}{start}\n{table(spec)}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    """Write both."""
    KEYWORDS.write_text(keywords())
    CLI_PAGE.write_text(page(CLI_PAGE.read_text()))


if __name__ == "__main__":
    main()
