"""The defaults of every algorithm against the tables of what was published: those of d3rlpy's second version (preset ``d3rlpy``), of its
first where they differ (``d3rlpy-v1``; of what only the first has, ``d3rlpy``), and the defaults without a preset."""

from __future__ import annotations

import dataclasses

import pytest
from cheap_settings import FROM_DATA

from offrld import settings
from offrld.algos import ALGORITHMS, get

VALUES = {"gamma": 0.99, "n_steps": 1, "frame_stack": 1, "observation_scaler.type": "none", "reward_scaler.type": "none"}


def rates(actor=None, critic=None, **others):
    named = {"actor": actor, "critic": critic, **others}
    return {f"{name}_learning_rate": rate for name, rate in named.items() if rate is not None}


ACTOR_CRITIC = {**VALUES, "tau": 0.005, "q_function.type": "mean"}
TD3 = {
    **ACTOR_CRITIC, **rates(3e-4, 3e-4), "batch_size": 256, "n_critics": 2, "target_smoothing_sigma": 0.2, "target_smoothing_clip": 0.5,
    "update_actor_interval": 2,
}  # fmt: skip
SAC = {**ACTOR_CRITIC, **rates(3e-4, 3e-4, temp=3e-4), "batch_size": 256, "n_critics": 2, "initial_temperature": 1.0}
CQL = {
    **SAC, **rates(1e-4, 3e-4, temp=1e-4, alpha=1e-4), "initial_alpha": 1.0, "alpha_threshold": 10.0, "conservative_weight": 5.0,
    "n_action_samples": 10, "soft_q_backup": False, "max_q_backup": False,
}  # fmt: skip
PLAS = {
    **ACTOR_CRITIC, **rates(1e-4, 1e-3, imitator=1e-4), "batch_size": 100, "n_critics": 2, "update_actor_interval": 1, "lam": 0.75,
    "warmup_steps": 500_000, "beta": 0.5,
}  # fmt: skip
DQN = {**VALUES, "learning_rate": 6.25e-5, "batch_size": 32, "n_critics": 1, "target_update_interval": 8000, "q_function.type": "mean"}
NFQ = {name: value for name, value in DQN.items() if name != "target_update_interval"}
MODEL = {"rollout_interval": 1000, "rollout_horizon": 5, "rollout_batch_size": 50_000, "generated_maxlen": 1_250_000, "dynamics": None}
DYNAMICS = {"n_ensembles": 5, "dynamics_learning_rate": 1e-3, "dynamics_batch_size": 100, "dynamics_optimizer.weight_decay": 1e-4}
FQE = {**VALUES, "learning_rate": 1e-4, "batch_size": 100, "n_critics": 1, "target_update_interval": 100}
DROPOUT = {f"transformer.{where}_dropout": 0.1 for where in ("attention", "residual", "embedding")}
TRANSFORMER = {
    **DROPOUT, "context_size": 20, "max_timestep": 1000, "batch_size": 64, "transformer.heads": 1, "transformer.layers": 3,
    "transformer.activation": "relu", "transformer.position_encoding": "simple",
}  # fmt: skip

D3RLPY = {
    "bc": {"learning_rate": 1e-3, "batch_size": 100, "policy_type": "deterministic"},
    "ddpg": {**ACTOR_CRITIC, **rates(3e-4, 3e-4), "batch_size": 256, "n_critics": 1},
    "td3": TD3,
    "sac": SAC,
    "bcq": {
        **ACTOR_CRITIC, **rates(1e-3, 1e-3, imitator=1e-3), "batch_size": 100, "n_critics": 2, "update_actor_interval": 1, "lam": 0.75,
        "n_action_samples": 100, "action_flexibility": 0.05, "rl_start_step": 0, "beta": 0.5,
    },
    "bear": {
        **SAC, **rates(1e-4, 3e-4, imitator=3e-4, temp=1e-4, alpha=1e-3), "initial_alpha": 1.0, "alpha_threshold": 0.05, "lam": 0.75,
        "n_action_samples": 100, "n_target_samples": 10, "n_mmd_action_samples": 4, "mmd_kernel": "laplacian", "mmd_sigma": 20.0,
        "vae_kl_weight": 0.5, "warmup_steps": 40_000,
    },
    "crr": {
        **ACTOR_CRITIC, **rates(3e-4, 3e-4), "batch_size": 100, "beta": 1.0, "n_action_samples": 4, "advantage_type": "mean",
        "weight_type": "exp", "max_weight": 20.0, "n_critics": 1, "target_update_type": "hard", "target_update_interval": 100,
        "update_actor_interval": 1,
    },
    "cql": CQL,
    "cal_ql": CQL,
    "awac": {
        **ACTOR_CRITIC, **rates(3e-4, 3e-4), "actor_optimizer.weight_decay": 0.0, "batch_size": 1024, "lam": 1.0, "n_action_samples": 1,
        "n_critics": 2, "update_actor_interval": 1,
    },
    "plas": PLAS,
    "plas_with_perturbation": {**PLAS, "action_flexibility": 0.05},
    "td3_bc": {**TD3, "alpha": 2.5},
    "iql": {
        **VALUES, "tau": 0.005, **rates(3e-4, 3e-4), "batch_size": 256, "n_critics": 2, "expectile": 0.7, "weight_temp": 3.0,
        "max_weight": 100.0,
    },
    "prdc": {**TD3, "alpha": 2.5, "beta": 2.0},
    "rebrac": {**TD3, **rates(1e-3, 1e-3), "batch_size": 1024, "actor_beta": 1e-3, "critic_beta": 0.01},
    "random_policy": {"distribution": "uniform", "normal_std": 1.0, "batch_size": 1},
    "discrete_random_policy": {},
    "discrete_bc": {"learning_rate": 1e-3, "batch_size": 100, "beta": 0.5},
    "nfq": NFQ,
    "dqn": DQN,
    "double_dqn": DQN,
    "discrete_sac": {
        **VALUES, **rates(3e-4, 3e-4, temp=3e-4), "batch_size": 64, "n_critics": 2, "initial_temperature": 1.0,
        "target_update_interval": 8000, "actor_optimizer.eps": None, "critic_optimizer.eps": None, "temp_optimizer.eps": None,
    },
    "discrete_bcq": {**DQN, "action_flexibility": 0.3, "beta": 0.5, "share_encoder": True},
    "discrete_cql": {**DQN, "alpha": 1.0},
    # d3rlpy has none; as of iql
    "discrete_iql": {
        **VALUES, "tau": 0.005, "target_update_interval": 1, **rates(3e-4, 3e-4), "batch_size": 256, "n_critics": 2, "expectile": 0.7,
        "weight_temp": 3.0, "max_weight": 100.0,
    },
    "ensemble_dynamics": {"learning_rate": 1e-3, "optimizer.weight_decay": 1e-4, "batch_size": 100, "n_ensembles": 5},
    "mopo": {
        **SAC, **MODEL, **DYNAMICS, "batch_size": 100, "update_actor_interval": 1, "lam": 1.0, "real_ratio": 0.05, "variance_type": "max",
    },
    "combo": {
        **SAC, **MODEL, **DYNAMICS, **rates(1e-4, 3e-4, temp=1e-4), "update_actor_interval": 1, "conservative_weight": 1.0,
        "n_action_samples": 10, "soft_q_backup": False, "real_ratio": 0.5,
    },
    "fqe": FQE,
    "discrete_fqe": FQE,
    # d3rlpy has neither; CORL's
    "sac_n": {**SAC, "n_critics": 10},
    "edac": {**SAC, "n_critics": 10, "eta": 1.0},
    "decision_transformer": {**TRANSFORMER, "learning_rate": 1e-4},
    "discrete_decision_transformer": {
        **TRANSFORMER, "batch_size": 128, "learning_rate": 6e-4, "transformer.heads": 8, "transformer.layers": 6,
        "transformer.activation": "gelu", "embedding_activation": "tanh", "transformer.position_encoding": "global",
        "warmup_tokens": 10_240, "final_tokens": 30_000_000,
    },
    "tacr": {
        **TRANSFORMER, **rates(1e-4, 1e-4), "n_critics": 2, "alpha": 2.5, "tau": 0.005, "target_smoothing_sigma": 0.2,
        "target_smoothing_clip": 0.5,
    },
}  # fmt: skip

FIRST = {
    "ddpg": {"batch_size": 100},
    "td3_bc": {"observation_scaler.type": "standard"},
    "awac": {"actor_optimizer.weight_decay": 1e-4},
    "discrete_sac": {"actor_optimizer.eps": 1e-4, "critic_optimizer.eps": 1e-4, "temp_optimizer.eps": 1e-4},
    "discrete_bcq": {"share_encoder": False},
}

# Where the defaults without a preset follow a paper rather than d3rlpy.
OWN = {
    "td3_bc": {"observation_scaler.type": "standard"},
    "rebrac": {"actor_encoder.units": (256, 256, 256), "critic_encoder.units": (256, 256, 256), "critic_encoder.layer_norm": True},
    "sac_n": {"actor_encoder.units": (256, 256, 256), "critic_encoder.units": (256, 256, 256)},
    "edac": {"actor_encoder.units": (256, 256, 256), "critic_encoder.units": (256, 256, 256)},
}
CORL = ("sac_n", "edac")


def check(config, expected):
    flat = settings.as_flat(config)
    missing = sorted(set(expected) - set(flat))
    assert not missing, f"no such settings: {missing}"
    different = {name: (flat[name], value) for name, value in expected.items() if _plain(flat[name]) != _plain(value)}
    assert not different, f"(ours, published): {different}"


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def encoders(config):
    return {name: (256, 256) for name in settings.as_flat(config) if name.endswith("encoder.units")} | {
        name: False for name in settings.as_flat(config) if name.endswith("encoder.layer_norm")
    }


def test_every_algorithm_has_its_row():
    assert set(D3RLPY) == set(FROM_DATA)


@pytest.mark.parametrize("name", D3RLPY)
def test_preset_d3rlpy_equals_d3rlpys_defaults(name):
    config = get(name).configure(preset="d3rlpy")
    plain = encoders(config) if name not in (*CORL, "decision_transformer", "discrete_decision_transformer", "tacr") else {}
    check(config, {**plain, **D3RLPY[name]})
    if hasattr(config, "learning_rate") or hasattr(config, "actor_learning_rate"):
        flat = settings.as_flat(config)
        kinds = {name_: value for name_, value in flat.items() if name_.endswith("optimizer.type")}
        assert set(kinds.values()) <= ({"adam"} if "decision" not in name else {"adamw", "gpt_adamw", "adam"})


@pytest.mark.parametrize("name", FIRST)
def test_preset_d3rlpy_v1_equals_its_first_versions_defaults(name):
    check(get(name).configure(preset="d3rlpy-v1"), {**D3RLPY[name], **FIRST[name]})


# gen_dgrl's argument defaults, with the network, rate and batch of its best configurations.
PROCGEN = {
    "discrete_bc": {"encoder.type": "impala", "batch_size": 512, "learning_rate": 5e-4, "beta": 0.0},
    "discrete_cql": {"encoder.type": "impala", "batch_size": 512, "learning_rate": 5e-4, "alpha": 1.0, "target_update_interval": 1000},
    "discrete_bcq": {
        "encoder.type": "impala", "batch_size": 512, "learning_rate": 5e-4, "action_flexibility": 0.3, "beta": 0.01,
        "target_update_interval": 1000,
    },
    "discrete_iql": {
        "actor_encoder.type": "impala", "critic_encoder.type": "impala", "value_encoder.type": "impala", "batch_size": 512,
        **rates(5e-4, 5e-4), "expectile": 0.8, "weight_temp": 0.1, "max_weight": 100.0, "tau": 1.0, "target_update_interval": 1000,
    },
    "discrete_decision_transformer": {
        "encoder.type": "default", "batch_size": 64, "learning_rate": 1e-3, "context_size": 128, "transformer.heads": 8,
        "transformer.layers": 6, "encoder.feature_size": 128, "optimizer.type": "gpt_adamw", "optimizer.beta2": 0.95,
        "optimizer.weight_decay": 0.1, "optimizer.clip_grad_norm": 1.0, "return_conditioned": True,
    },
    "ppo": {
        "encoder.type": "impala", "batch_size": 2048, "rollout_steps": 256, "epochs": 3, "gamma": 0.999, "gae_lambda": 0.95, "clip": 0.2,
        "clip_value": True, "value_coef": 0.5, "entropy_coef": 0.01, "learning_rate": 5e-4, "optimizer.eps": 1e-5,
        "optimizer.clip_grad_norm": 0.5, "shared_encoder": True, "normalize_reward": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PROCGEN)
def test_preset_procgen_equals_the_benchmarks_settings(name):
    check(get(name).configure(preset="procgen"), {**PROCGEN[name], "observation_scaler.type": "pixel"})


def test_behaviour_cloning_by_transformer_is_the_decision_transformer_without_returns():
    with_returns, without = (get("discrete_decision_transformer").configure(preset=name) for name in ("procgen", "procgen-bct"))
    assert dataclasses.replace(with_returns, return_conditioned=False) == without


def test_there_are_two_presets_only_if_the_versions_differ():
    assert {name for name, algorithm in ALGORITHMS.items() if "d3rlpy-v1" in algorithm.presets} == set(FIRST)


@pytest.mark.parametrize("name", [name for name in D3RLPY if "decision" not in name])
def test_defaults_without_a_preset_differ_from_d3rlpys_only_where_a_paper_does(name):
    check(get(name).configure(), {**D3RLPY[name], **OWN.get(name, {})})
