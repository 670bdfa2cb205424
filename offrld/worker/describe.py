"""What this installation can do, as one JSON on stdout: versions, gymnasium environments, algorithms with all their settings.

The daemon, which never loads torch, runs ``python -m offrld.worker.describe`` once per set of installed versions, keeps the
answer, and checks submissions against it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

from offrl.errors import OffrlError, to_wire


def describe() -> dict[str, Any]:
    """``{"versions", "environments", "algorithms", "problems"}``; see the module's caption.

    ``problems``: one line for each algorithm of an installed package that cannot be used, and for each package whose environments cannot
    be registered; the others are listed all the same.
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
        algorithm.configure(preset=preset)  # a setting that cannot be built fails here rather than in a job
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
    """The ids that gymnasium knows, ours and those of installed packages included; and what is wrong with the latter."""
    import gymnasium

    from offrl import environments

    problems = environments.register()
    for begin in environments.PACKAGES:
        try:
            environments.register_package(begin)
        except Exception as error:  # as above
            problems.append(f"environments {begin}...: {type(error).__name__}: {' '.join(str(error).split())}")
    return sorted(gymnasium.registry), problems


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What a submission has to know beyond the description.

    Args:
        question: any of these, each with its answer under the same name:
            ``environment``, an id: its description (`offrld.told_spaces`); with ``policy``, arguments of `offrl.foreign.opened`: whether
            that fits it.
            ``cards``: how many torch can use.
            ``start``, a checkpoint, with ``origin`` (for messages), ``algorithm``, ``config``, ``preset`` and ``transfer``: whether the
            algorithm can start from it.

    If something is wrong, ``refusal`` has code, message and hint.
    """
    found: dict[str, Any] = {}
    try:
        if "cards" in question:
            import torch

            found["cards"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if "environment" in question:
            found["environment"] = _environment(question["environment"], question.get("policy"))
        if "start" in question:
            from offrld.algos import get
            from offrld.engine.learner.loaded import Loaded
            from offrld.engine.learner.transfer import check_start

            algorithm = get(question["algorithm"])
            config = algorithm.configure(question["config"], question["preset"])
            source = dataclasses.replace(Loaded.read(question["start"], get), origin=question["origin"])
            check_start(algorithm, config, source, question["transfer"])
            found["start"] = True
    except OffrlError as error:
        found["refusal"] = to_wire(error)
    return {"answer": found}


def _environment(env_id: str, policy: dict[str, Any] | None) -> dict[str, Any]:
    """Describe an environment. Raises `InvalidInput` if it cannot be made, or the policy does not fit it."""
    from offrl.environments import calls
    from offrl.rollout import check_spaces, make_env
    from offrld import told_spaces

    env = make_env(env_id)
    try:
        told = told_spaces.tell(env_id, *calls.spaces_of(env))
        if policy is not None:
            from offrl.foreign import opened

            check_spaces(opened(**policy), env, env_id)
    finally:
        calls.close(env, env_id)
    return told


def main() -> None:
    """Print the description; or, where one argument is given, a question as JSON, the answer to it."""
    stdout = os.dup(1)
    os.dup2(2, 1)  # plugins that print while they are imported must not end up in the JSON
    text = json.dumps(answer(json.loads(sys.argv[1])) if len(sys.argv) > 1 else describe(), allow_nan=False)
    with os.fdopen(stdout, "w") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)
