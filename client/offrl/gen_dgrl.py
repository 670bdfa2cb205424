"""Grids of gen_dgrl (Mediratta et al. 2023), whose parameters and run names its users know, as jobs of ours.

The online grids train PPO on Procgen, the offline ones an agent on a dataset that has the game's name. What is not in the grid has the
defaults that gen_dgrl publishes. Parameters about folders, logging and resuming have no counterpart: a job always resumes, and its files
are fetched from the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offrl.environments import procgen_id
from offrl.errors import InvalidInput, nearest

PPO_DEFAULTS: dict[str, Any] = {
    "distribution_mode": "easy", "num_levels": 200, "start_level": 0, "num_env_steps": 5_000_000, "num_processes": 64, "num_steps": 256,
    "num_mini_batch": 8, "ppo_epoch": 1, "clip_param": 0.2, "entropy_coef": 0.01, "eps": 1e-5, "gae_lambda": 0.95, "gamma": 0.999,
    "hidden_size": 256, "lr": 5e-4, "max_grad_norm": 0.5, "value_loss_coef": 0.5, "archive_interval": 50,
}  # fmt: skip
OFFLINE_DEFAULTS: dict[str, Any] = {
    "distribution_mode": "easy", "num_levels": 200, "percentile": 1.0, "lr": 1e-3, "batch_size": 64, "gamma": 0.99, "agent_model": "dqn",
    "target_update_freq": 1000, "tau": 0.005, "perform_polyak_update": False, "bcq_threshold": 0.3, "cql_alpha": 1.0,
    "iql_temperature": 0.1, "iql_expectile": 0.8, "dt_context_length": 128,
}  # fmt: skip
#: Its agents: our algorithm and preset.
AGENTS = {
    "bc": ("discrete_bc", "procgen"), "bcq": ("discrete_bcq", "procgen"), "cql": ("discrete_cql", "procgen"),
    "iql": ("discrete_iql", "procgen"), "dt": ("discrete_decision_transformer", "procgen"),
    "bct": ("discrete_decision_transformer", "procgen-bct"),
}  # fmt: skip
MODELS = {"dqn": "pixel", "bcq": "pixel", "pporesnetbase": "impala", "bcqresnetbase": "impala"}
WITHOUT_EFFECT = {
    "alpha", "no_cuda", "log_interval", "log_wandb", "model_saving_dir", "checkpoint_path", "resume", "xpid", "save_dataset",
    "dataset_saving_dir", "wandb_base_url", "wandb_api_key", "wandb_entity", "wandb_project", "save_path", "ckpt_freq", "eval_freq",
}  # fmt: skip
OURS = (
    "dataset",
    "steps",
    "into",
    "limit",
    "priority",
    "device",
    "threads",
    "eval_env",
    "eval_episodes",
    "eval_every",
    "early_stop",
    "early_stop_delta",
)  # may be added
LEVELS = {(0, 0): "", (0, 200): "train", (200, 50): "validation", (250, 0): "test"}  # (start_level, num_levels) -> in the id


def is_grid(values: Mapping[str, Any]) -> bool:
    """Whether names of a grid are those of gen_dgrl."""
    return "env_name" in values


def job(given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """One combination as options and settings of ours, and its name (the published ``xpid`` without the number of the trial).

    Raises:
        InvalidInput: a parameter that gen_dgrl does not have, an agent, model or set of levels that is not ours.
    """
    algorithm = given.get("algo", "ppo")
    if algorithm != "ppo" and algorithm not in AGENTS:
        raise InvalidInput(f"algo {algorithm!r} is not an algorithm of gen_dgrl", hint=f"ppo, {', '.join(AGENTS)}")
    defaults = PPO_DEFAULTS if algorithm == "ppo" else OFFLINE_DEFAULTS
    known = {*defaults, *WITHOUT_EFFECT, *OURS, "algo", "env_name", "seed"}
    for name in given:
        if name not in known:
            raise InvalidInput(f"{name!r} is not a parameter of gen_dgrl's {algorithm}", hint=nearest(name, sorted(known)))
    values = {**defaults, **{name: value for name, value in given.items() if name not in WITHOUT_EFFECT}}
    game, mode = values["env_name"], values["distribution_mode"]
    start = f"{game}-{mode}-{values['num_levels']}"
    ours = {name: values[name] for name in (*OURS, "seed") if name in values}
    if algorithm == "ppo":
        return {**_ppo(values), **ours}, (
            f"{start}-ppo-lr{values['lr']}-epoch{values['ppo_epoch']}-mb{values['num_mini_batch']}"
            f"-v{values['value_loss_coef']}-ha{values['entropy_coef']}"
        )
    options, own = _agent(algorithm, values)
    name = f"{start}-{algorithm}-p{values['percentile']}-lr{values['lr']}-bs{values['batch_size']}-{values['agent_model']}{own}"
    return {"dataset": game, **options, **ours}, name


def _ppo(values: Mapping[str, Any]) -> dict[str, Any]:
    levels = (values["start_level"], values["num_levels"])
    if levels not in LEVELS:
        raise InvalidInput(f"levels {levels[0]} and {levels[1]} of them have no environment", hint="start_level=0 with num_levels=200 or 0")
    env = procgen_id(values["env_name"], values["distribution_mode"], LEVELS[levels])
    rollout = values["num_steps"] * values["num_processes"]
    return {
        "algorithm": "ppo",
        "preset": "procgen",
        "env": env,
        "steps": values["num_env_steps"],
        "envs": values["num_processes"],
        "eval_env": env,
        "eval_episodes": 10,
        "eval_sample": True,
        "eval_every": values["archive_interval"] * rollout,
        "rollout_steps": values["num_steps"],
        "batch_size": rollout // values["num_mini_batch"],
        "epochs": values["ppo_epoch"],
        "clip": values["clip_param"],
        "entropy_coef": values["entropy_coef"],
        "optimizer.eps": values["eps"],
        "gae_lambda": values["gae_lambda"],
        "gamma": values["gamma"],
        "encoder.feature_size": values["hidden_size"],
        "learning_rate": values["lr"],
        "optimizer.clip_grad_norm": values["max_grad_norm"],
        "value_coef": values["value_loss_coef"],
    }


def _agent(algorithm: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Options and settings of an offline agent, and what its own numbers add to the name."""
    if values["agent_model"] not in MODELS:
        raise InvalidInput(f"agent_model {values['agent_model']!r}", hint=f"one of {', '.join(MODELS)}")
    if values["percentile"] != 1.0:
        raise InvalidInput(f"percentile {values['percentile']} chooses episodes", hint="import the folder with --option percentile=...")
    name, preset = AGENTS[algorithm]
    model, rate = MODELS[values["agent_model"]], values["lr"]
    found: dict[str, Any] = {"algorithm": name, "preset": preset, "batch_size": values["batch_size"]}
    if algorithm in ("dt", "bct"):
        return {**found, "learning_rate": rate, "encoder.type": model, "context_size": values["dt_context_length"]}, (
            f"-cl{values['dt_context_length']}"
        )
    if algorithm == "iql":
        follow = (
            {"tau": values["tau"], "target_update_interval": 1}
            if values["perform_polyak_update"]
            else {"tau": 1.0, "target_update_interval": values["target_update_freq"]}
        )
        settings = {
            **follow,
            "gamma": values["gamma"],
            "actor_learning_rate": rate,
            "critic_learning_rate": rate,
            "weight_temp": values["iql_temperature"],
            "expectile": values["iql_expectile"],
            **{f"{part}_encoder.type": model for part in ("actor", "critic", "value")},
        }
        return {**found, **settings}, f"-t{values['tau']}-e{values['iql_expectile']}-temp{values['iql_temperature']}"
    found |= {"learning_rate": rate, "encoder.type": model}
    if algorithm == "bc":
        return found, ""
    if values["perform_polyak_update"]:
        raise InvalidInput(f"perform_polyak_update with {algorithm}: its target is copied", hint="leave it out, or take iql")
    found |= {"gamma": values["gamma"], "target_update_interval": values["target_update_freq"]}
    if algorithm == "cql":
        return {**found, "alpha": values["cql_alpha"]}, f"-freq{values['target_update_freq']}-a{values['cql_alpha']}"
    return {**found, "action_flexibility": values["bcq_threshold"]}, f"-freq{values['target_update_freq']}-th{values['bcq_threshold']}"
