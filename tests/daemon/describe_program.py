"""A small describe worker: two algorithms and two environments."""

import json
import sys

SETTINGS = {
    "behaviour": {"type": "str", "default": "normal", "help": "how it goes"},
    "learning_rate": {"type": "float", "default": 3e-4, "help": "of Adam", "low": 0.0, "exclusive_low": True, "high": 1.0},
    "batch_size": {"type": "int", "default": 256, "help": "transitions", "low": 1},
    "critic_encoder.units": {"type": "list[int]", "default": [256, 256], "help": "of the critic", "low": 1},
    "critic_encoder.activation": {"type": "str", "default": "relu", "help": "between layers", "choices": ["relu", "tanh", "gelu"]},
    "clip": {"type": "float | None", "default": None, "help": "of the gradient", "low": 0.0},
    "layer_norm": {"type": "bool", "default": False, "help": "after each layer"},
}
ALGORITHMS = [
    {"name": name, "summary": name, "paper": "none", "actions": actions, "presets": {"paper": {"batch_size": 100}}, "config": SETTINGS}
    for name, actions in (("anything", "both"), ("discrete_thing", "discrete"), ("smooth_thing", "continuous"))
]

INPUTS = {name: {"type": "str | None", "default": None, "help": "a job"} for name in ("policy", "model")}
ALGORITHMS += [
    {**ALGORITHMS[0], "name": "taker", "config": {**SETTINGS, **INPUTS}, "inputs": {"policy": "policy", "model": "model_thing"}},
    {**ALGORITHMS[0], "name": "model_thing", "acts": False, "has_policy": False},
]

if __name__ == "__main__":
    if "--broken" in sys.argv:
        print("torch is not installed", file=sys.stderr)
        sys.exit(1)
    print(json.dumps({"versions": {}, "environments": ["CartPole-v1", "Pendulum-v1"], "algorithms": ALGORITHMS}))
