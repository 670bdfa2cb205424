"""Generate docs/algorithms.md from the registry: `python -m offrld.docs` writes it; `--check` only compares (exit status 1: stale).

Each algorithm's formulas and metrics come from its file's docstring, its tables from the settings that `offrl algos NAME` shows.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from offrl import streams
from offrl.cli.output import number
from offrl.cli.service import default_text, meaning
from offrld import settings
from offrld.algos import ALGORITHMS
from offrld.engine import Algorithm

PATH = Path(__file__).resolve().parent.parent / "docs" / "algorithms.md"
METRICS = re.compile(r"\s*\bMetrics?:\s(.*?)\.(?=\s|$)", re.DOTALL)
INTRODUCTION = """# Algorithms

`make docs` generates this page from the registry: do not edit it. `offrl algos NAME` shows the same. Set a setting with
`--set NAME=VALUE`, a component's setting with `--set critic_encoder.units=[256,256]`, and its type with the component's
name: `--set q_function=qr`. `--preset d3rlpy` applies a preset; `--set` overrides it. To add your own algorithms, see
[extending](extending.md).
"""


def text() -> str:
    """Return the whole page."""
    kinds = {kind.__name__: kind for algorithm in ALGORITHMS.values() for kind in _components(algorithm.config).values()}
    return "\n".join(_lines(dict(sorted(kinds.items())))).rstrip() + "\n"


def _lines(kinds: Mapping[str, type]) -> Iterator[str]:
    yield INTRODUCTION
    yield from ("| algorithm | actions | summary |", "|---|---|---|")
    for name, algorithm in ALGORITHMS.items():
        yield f"| [`{name}`](#{name}) | {algorithm.actions} | {_cell(algorithm.summary)} |"
    yield f"\nComponents: {', '.join(f'[{name}](#{name.lower()})' for name in kinds)}."
    for algorithm in ALGORITHMS.values():
        yield from _algorithm(algorithm)
    yield "\n# Components"
    for name, kind in kinds.items():
        yield f"\n## {name}\n"
        yield inspect.cleandoc(kind.__doc__ or "").replace("``", "`") + "\n"
        yield from _table(settings.describe(kind))


def _algorithm(algorithm: Algorithm) -> Iterator[str]:
    yield f"\n## {algorithm.name}\n"
    yield f"{algorithm.paper}. {algorithm.actions.capitalize()} actions.\n"
    described = inspect.cleandoc(inspect.getdoc(sys.modules[f"offrld.algos.{algorithm.name}"]) or "")
    metrics = METRICS.search(described)
    yield METRICS.sub("", described).rstrip() + "\n"
    if metrics:
        yield f"Metrics: {' '.join(metrics[1].split())}.\n"
    if algorithm.inputs:
        takes = [f"`{name}` ({'any algorithm that acts' if kind == 'policy' else f'`{kind}`'})" for name, kind in algorithm.inputs.items()]
        yield f"Uses other jobs: {', '.join(takes)}.\n"
    described_settings = settings.describe(algorithm.config)
    yield from _table({name: setting for name, setting in described_settings.items() if "." not in name})
    components = _components(algorithm.config)
    if components:
        yield from ("\n| component | type | different defaults |", "|---|---|---|")
        for name, kind in components.items():
            usual = settings.describe(kind)
            defaults = {part: described_settings[f"{name}.{part}"].default for part in usual}
            different = {part: value for part, value in defaults.items() if value != usual[part].default}
            yield f"| `{name}` | [{kind.__name__}](#{kind.__name__.lower()}) | {_values(different)} |"
    yield ""
    for preset, values in algorithm.presets.items():
        yield f"- preset `{preset}`: {_values(values) or 'the defaults'}"


def _table(rows: Mapping[str, settings.Setting]) -> Iterator[str]:
    yield from ("| setting | type | default | meaning |", "|---|---|---|---|")
    described = {name: setting.as_json() for name, setting in rows.items()}
    for name, entry in described.items():
        cells = entry["type"], default_text(entry["default"]), meaning(name, entry, described) + _limits(entry)
        yield f"| `{name}` | {' | '.join(map(_cell, cells))} |"


def _limits(entry: Mapping[str, Any]) -> str:
    low, high = entry.get("low"), entry.get("high")
    words = [] if low is None else [f"{'above' if entry.get('exclusive_low') else 'at least'} {number(low)}"]
    words += [] if high is None else [f"at most {number(high, 7)}"]
    return f"; {' and '.join(words)}" if words else ""


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={default_text(list(value) if isinstance(value, tuple) else value)}`" for name, value in values.items())


def _cell(value: str) -> str:
    return value.replace("|", "\\|")


def _components(config: Any) -> dict[str, type]:
    hints = typing.get_type_hints(type(config))
    return {field.name: hints[field.name] for field in dataclasses.fields(config) if dataclasses.is_dataclass(hints[field.name])}


def main() -> int:
    """Write the page, or with ``--check`` compare it; return the exit status."""
    if "--check" not in sys.argv[1:]:
        PATH.write_text(text())
    elif not PATH.is_file() or PATH.read_text() != text():
        print(f"error: {PATH.name} is stale: run make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(streams.run(main, needs_stdout=False))
