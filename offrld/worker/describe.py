"""What this installation can do, as one JSON on stdout: versions, gymnasium environments, algorithms with all their settings.

The daemon, which never loads torch, runs ``python -m offrld.worker.describe`` once per set of installed versions, keeps the
answer, and checks submissions against it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def describe() -> dict[str, Any]:
    """``{"versions", "environments", "algorithms"}``; see the module's caption."""
    from offrld import settings
    from offrld.algos import ALGORITHMS
    from offrld.worker.versions import installed

    return {
        "versions": installed(),
        "environments": _environments(),
        "algorithms": [
            {
                "name": algorithm.name,
                "summary": algorithm.summary,
                "paper": algorithm.paper,
                "actions": algorithm.actions,
                "acts": algorithm.acts,
                "has_policy": algorithm.has_policy,
                "inputs": dict(algorithm.inputs),
                "presets": {name: dict(values) for name, values in algorithm.presets.items()},
                "config": {name: setting.as_json() for name, setting in settings.describe(algorithm.config).items()},
            }
            for algorithm in ALGORITHMS.values()
        ],
    }


def _environments() -> list[str]:
    """The ids that gymnasium knows, those of installed plugins included."""
    import gymnasium

    return sorted(gymnasium.registry)


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
