"""BCQ, BEAR and PLAS, which learn a model of the data's actions, against a plain computation of their updates (see `oracle`)."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import KINDS, Clamp, Follow, Move, Trace, absolute, choose, chosen_mean, clip, decode, net, replay, squashed_sample, vae_loss

kinds = pytest.mark.parametrize("kind", KINDS)
RATES = {"actor_learning_rate": 0.01, "critic_learning_rate": 0.02, "imitator_learning_rate": 0.03, "tau": 0.1}


def mixed(values, lam):
    """Quantiles ``[B, M]`` and expected values ``[B]`` of ``lam min + (1 - lam) max``."""
    quantiles = lam * choose(values, "min") + (1 - lam) * choose(values, "max")
    return quantiles, lam * chosen_mean(values, "min") + (1 - lam) * chosen_mean(values, "max")


def best_of(found):
    """Of ``[(quantiles, mean, ...)]`` the entries with the greatest mean: per sample its number and its quantiles."""
    best = np.stack([entry[1] for entry in found]).argmax(0)
    return best, np.stack([found[best[b]][0][b] for b in range(len(best))])


# --- BCQ ---
def corrected(p, name, s, a, scale):
    return clip(a + scale * np.tanh(net(p, name, s, a)), -1, 1)


def bcq_critic(p, x):
    c, s = x.config, x.next_observation
    found = []
    for noise in x.noise["next"]:
        a = corrected(x.t, "actor", s, decode(x.p, s, np.clip(noise, -0.5, 0.5)), c.action_flexibility)
        found.append(mixed(x.critics(x.t, s, a), c.lam))
    _, quantiles = best_of(found)
    return x.loss_of(x.critics(p, x.observation, x.action), x.bellman(quantiles))


def bcq_actor(p, x):
    s = x.observation
    a = decode(x.p, s, np.clip(x.noise["actor"], -0.5, 0.5))
    return -np.mean(x.critics(x.p, s, corrected(p, "actor", s, a, x.config.action_flexibility), 1)[0].mean)


@kinds
def test_bcq_trains_the_model_alone_and_then_all_networks(kind, continuous_store):
    values = {"n_action_samples": 4, "rl_start_step": 2, "update_actor_interval": 3, "action_flexibility": 0.3, "lam": 0.6, "beta": 0.7}
    trace = Trace("bcq", continuous_store, {**RATES, **KINDS[kind], **values}, 4)

    def plan(k):
        steps = [Move("vae", ("vae",), 0.03, lambda p, x: vae_loss(p, x, 0.7))]
        if k >= 2:
            steps.append(Move("critic", ("critic",), 0.02, bcq_critic))
        if k >= 2 and k % 3 == 0:
            steps += [Move("actor", ("actor",), 0.01, bcq_actor), Follow({"critic": 0.1, "actor": 0.1})]
        return steps

    replay(trace, plan, ("critic", "actor"))


# --- BEAR ---
def discrepancy(p, x):
    """The MMD of each sample, ``[B]``."""
    c, s = x.config, x.observation
    mean, log_std = np.split(net(p, "actor", s), 2, -1)
    policy = [mean + np.exp(clip(log_std, -20, 2)) * noise for noise in x.noise["mmd_policy"]]
    data = [decode(x.p, s, np.clip(noise, -0.5, 0.5), squash=False) for noise in x.noise["mmd_data"]]

    def k(one, other):
        total = 0.0
        for u in one:
            for v in other:
                distance = absolute(u - v).sum(-1) if c.mmd_kernel == "laplacian" else ((u - v) ** 2).sum(-1)
                total = total + np.exp(-distance / (2 * c.mmd_sigma))
        return total / (len(one) * len(other))

    return np.sqrt(k(policy, policy) + k(data, data) - 2 * k(policy, data) + 1e-6)


def bear_constraint(p, x):
    return np.exp(np.clip(x.p["alpha.log"], -5, 10)) * np.mean(discrepancy(p, x) - x.config.alpha_threshold)


def bear_alpha(p, x):
    return -np.exp(p["alpha.log"]) * np.mean(discrepancy(x.p, x) - x.config.alpha_threshold)


def bear_temperature(p, x):
    _, log_density = squashed_sample(x.p, "actor", x.observation, x.noise["actor"])
    return -np.mean(np.exp(p["temp.log"]) * (log_density - 2))


def bear_critic(p, x):
    s, found, densities = x.next_observation, [], []
    for noise in x.noise["next"]:
        a, log_density = squashed_sample(x.p, "actor", s, noise)
        found.append(mixed(x.critics(x.t, s, a), x.config.lam))
        densities.append(log_density)
    best, quantiles = best_of(found)
    entropy = np.exp(x.p["temp.log"]) * np.array([densities[best[b]][b] for b in range(len(best))])
    return x.loss_of(x.critics(p, x.observation, x.action), x.bellman(quantiles - entropy[:, None]))


def bear_actor(p, x):
    a, log_density = squashed_sample(p, "actor", x.observation, x.noise["actor"])
    q = chosen_mean(x.critics(x.p, x.observation, a), "min")
    return np.mean(np.exp(x.p["temp.log"]) * log_density - q) + bear_constraint(p, x)


BEAR = {
    **RATES, "temp_learning_rate": 0.04, "alpha_learning_rate": 0.05, "n_target_samples": 3, "n_mmd_action_samples": 3, "mmd_sigma": 1.5,
    "warmup_steps": 2, "vae_kl_weight": 0.7, "lam": 0.6, "initial_alpha": 0.8, "n_action_samples": 4,
}  # fmt: skip


def bear_plan(k):
    return [
        Move("vae", ("vae",), 0.03, lambda p, x: vae_loss(p, x, 0.7)),
        Move("temp", ("temp",), 0.04, bear_temperature),
        Move("alpha", ("alpha",), 0.05, bear_alpha),
        Move("critic", ("critic",), 0.02, bear_critic),
        # One optimizer in both phases.
        Move("warmup", ("actor",), 0.01, bear_constraint, moments="actor") if k < 2 else Move("actor", ("actor",), 0.01, bear_actor),
        Clamp("alpha.log", -5, 10),
        Follow({"critic": 0.1}),
    ]


@kinds
@pytest.mark.parametrize("kernel", ["laplacian", "gaussian"])
def test_bear_first_approaches_the_data_and_then_also_maximises_values(kernel, kind, continuous_store):
    trace = Trace("bear", continuous_store, {**BEAR, **KINDS[kind], "mmd_kernel": kernel}, 4)
    replay(trace, bear_plan, ("critic",))


@pytest.mark.parametrize(("initial", "threshold"), [(np.exp(9.99), -5.0), (np.exp(-4.99), 5.0)])
def test_the_dual_variable_of_bear_is_used_and_stays_within_its_limits(initial, threshold, continuous_store):
    values = {"initial_alpha": float(initial), "alpha_threshold": threshold}
    trace = Trace("bear", continuous_store, {**BEAR, **values}, 3)
    assert trace.after[-1][0]["alpha.log"] == (10.0 if initial > 1 else -5.0)
    replay(trace, bear_plan, ("critic",))


# --- PLAS ---
def plas_action(actor, vae, s, flexibility):
    a = decode(vae, s, 2 * np.tanh(net(actor, "actor", s)))
    return a if flexibility is None else corrected(actor, "perturbation", s, a, flexibility)


def plas_critic(flexibility):
    def loss(p, x):
        a = plas_action(x.t, x.p, x.next_observation, flexibility)
        y = x.bellman(mixed(x.critics(x.t, x.next_observation, a), x.config.lam)[0])
        return x.loss_of(x.critics(p, x.observation, x.action), y)

    return loss


def plas_actor(flexibility):
    def loss(p, x):
        # The model's own parameters are constants here.
        return -np.mean(x.critics(x.p, x.observation, plas_action(p, x.p, x.observation, flexibility), 1)[0].mean)

    return loss


@kinds
@pytest.mark.parametrize(("name", "flexibility"), [("plas", None), ("plas_with_perturbation", 0.3)])
def test_plas_freezes_its_model_after_the_warm_up(name, flexibility, kind, continuous_store):
    values = {"warmup_steps": 2, "update_actor_interval": 2, "lam": 0.6, "beta": 0.7}
    if flexibility is not None:
        values["action_flexibility"] = flexibility
    trace = Trace(name, continuous_store, {**RATES, **KINDS[kind], **values}, 5)
    policy = ("actor",) if flexibility is None else ("actor", "perturbation")

    def plan(k):
        if k < 2:
            return [Move("vae", ("vae",), 0.03, lambda p, x: vae_loss(p, x, 0.7))]
        steps = [Move("critic", ("critic",), 0.02, plas_critic(flexibility))]
        if k % 2 == 0:
            steps += [Move("actor", policy, 0.01, plas_actor(flexibility)), Follow(dict.fromkeys(("critic", *policy), 0.1))]
        return steps

    replay(trace, plan, ("critic", *policy))
