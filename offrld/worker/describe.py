"""What this installation can do, as one JSON on stdout: versions, gymnasium environments, algorithms with all their settings.

The daemon, which never loads torch, runs ``python -m offrld.worker.describe`` once per set of installed versions, keeps the
answer, and checks submissions against it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from offrl.errors import OffrlError


def describe() -> dict[str, Any]:
    """``{"versions", "environments", "algorithms", "problems"}``; see the module's caption.

    ``problems``: one line for each algorithm of an installed package that cannot be used, and for each package whose environments cannot
    be registered; the others are told all the same.
    """
    from offrld.algos import get, names
    from offrld.worker.versions import installed

    algorithms, problems = [], []
    for name in names():
        try:
            algorithms.append(_algorithm(get(name)))
        except Exception as error:  # whatever a package does wrong, it must not take the others with it
            said = " ".join(str(error).split())
            problems.append(f"{name}: {said}" if isinstance(error, OffrlError) else f"{name}: {type(error).__name__}: {said}")
    environments, more = _environments()
    return {"versions": installed(), "environments": environments, "algorithms": algorithms, "problems": [*problems, *more]}


def _algorithm(algorithm: Any) -> dict[str, Any]:
    """One entry of ``algorithms``."""
    from offrld import settings
    from offrld.collect.online import refusal

    for preset in algorithm.presets:
        algorithm.configure(preset=preset)  # one that cannot be built is told here rather than by a job
    entry = {
        "name": algorithm.name,
        "summary": algorithm.summary,
        "paper": algorithm.paper,
        "actions": algorithm.actions,
        "acts": algorithm.acts,
        "has_policy": algorithm.has_policy,
        "plays": algorithm.plays,
        "online_refusal": refusal(algorithm),
        "inputs": dict(algorithm.inputs),
        "presets": {name: dict(values) for name, values in algorithm.presets.items()},
        "config": {name: setting.as_json() for name, setting in settings.describe(algorithm.config).items()},
    }
    json.dumps(entry, allow_nan=False)
    return entry


def _environments() -> tuple[list[str], list[str]]:
    """The ids that gymnasium knows, ours and those of installed packages included; and what is wrong with the latter."""
    import gymnasium

    from offrl import environments

    problems = environments.register()
    return sorted(gymnasium.registry), problems


def main() -> None:
    """Print the description."""
    stdout = os.dup(1)
    os.dup2(2, 1)  # plugins that print while they are imported must not end up in the JSON
    text = json.dumps(describe(), allow_nan=False)
    with os.fdopen(stdout, "w") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)
