"""Print what this installation can do as JSON: versions, gymnasium environments, algorithms with all their settings.

The daemon never loads torch. It runs ``python -m offrld.worker.describe`` once per set of installed versions, keeps the answer, and checks
submissions against it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

from offrl.errors import OffrlError, to_wire


def describe() -> dict[str, Any]:
    """Return ``{"versions", "environments", "algorithms", "problems"}``; see the module's docstring.

    ``problems`` has one line for each algorithm of an installed package that cannot be used and for each package whose environments cannot
    be registered; all others are still listed.
    """
    from offrld.algos import get, names
    from offrld.worker.versions import installed

    algorithms, problems = [], []
    for name in names():
        try:
            algorithms.append(_algorithm(get(name)))
        except Exception as error:  # a faulty package must not hide the others
            text = " ".join(str(error).split())
            problems.append(f"{name}: {text}" if isinstance(error, OffrlError) else f"{name}: {type(error).__name__}: {text}")
    environments, more = _environments()
    return {"versions": installed(), "environments": environments, "algorithms": algorithms, "problems": [*problems, *more]}


def _algorithm(algorithm: Any) -> dict[str, Any]:
    """Return one entry of ``algorithms``."""
    from offrld import settings
    from offrld.collect.online import refusal

    for preset in algorithm.presets:
        algorithm.configure(preset=preset)  # a preset that cannot be applied fails here, not in a job
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
        "evaluates": algorithm.next_action == "policy",
        "presets": {name: dict(values) for name, values in algorithm.presets.items()},
        "config": {name: setting.as_json() for name, setting in settings.describe(algorithm.config).items()},
    }
    json.dumps(entry, allow_nan=False)
    return entry


def _environments() -> tuple[list[str], list[str]]:
    """Return the ids of gymnasium's environments, with ours and those of installed packages, and the problems of those packages."""
    import gymnasium

    from offrl import environments

    problems = environments.register()
    for prefix in environments.PACKAGES:
        try:
            environments.register_package(prefix)
        except Exception as error:  # as above
            problems.append(f"environments {prefix}...: {type(error).__name__}: {' '.join(str(error).split())}")
    return sorted(gymnasium.registry), problems


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Answer what the check of a submission needs beyond the description.

    Args:
        question: any of the following; the answer has the same names:
            ``environment``: an id, answered with its spaces (`offrld.environment_spaces`). With ``policy``, arguments of
            `offrl.foreign.opened`, the policy must also fit the environment.
            ``cards``: answered with the number of cards that torch can use.
            ``start``: a checkpoint, with ``origin`` (for messages), ``algorithm``, ``config``, ``preset`` and ``transfer``. The algorithm
            must be able to start from it.

    If a check fails, ``refusal`` has code, message and hint.
    """
    reply: dict[str, Any] = {}
    try:
        if "cards" in question:
            import torch

            reply["cards"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if "environment" in question:
            reply["environment"] = _environment(question["environment"], question.get("policy"))
        if "start" in question:
            from offrld.algos import get
            from offrld.engine.learner.loaded import Loaded
            from offrld.engine.learner.transfer import check_start

            algorithm = get(question["algorithm"])
            config = algorithm.configure(question["config"], question["preset"])
            source = dataclasses.replace(Loaded.read(question["start"], get), origin=question["origin"])
            check_start(algorithm, config, source, question["transfer"])
            reply["start"] = True
    except OffrlError as error:
        reply["refusal"] = to_wire(error)
    return {"answer": reply}


def _environment(env_id: str, policy: dict[str, Any] | None) -> dict[str, Any]:
    """Describe the spaces of an environment. Raises `InvalidInput` if it cannot be made or the policy does not fit it."""
    from offrl.environments import calls
    from offrl.rollout import check_spaces, make_env
    from offrld import environment_spaces

    env = make_env(env_id)
    try:
        spaces = environment_spaces.describe(env_id, *calls.spaces_of(env))
        if policy is not None:
            from offrl.foreign import opened

            check_spaces(opened(**policy), env, env_id)
    finally:
        calls.close(env, env_id)
    return spaces


def main() -> None:
    """Print the description or, if the command line has a question as JSON, the answer to it."""
    stdout = os.dup(1)
    os.dup2(2, 1)  # plugins that print while they are imported must not end up in the JSON
    text = json.dumps(answer(json.loads(sys.argv[1])) if len(sys.argv) > 1 else describe(), allow_nan=False)
    with os.fdopen(stdout, "w") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)
