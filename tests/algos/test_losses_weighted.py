"""BC and the algorithms that imitate by weights, IQL, AWAC and CRR, against a plain computation of their updates (see `oracle`)."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import KINDS, Follow, Move, Trace, choose, clip, lowest, net, normal_log_density, replay, sigmoid, stop

kinds = pytest.mark.parametrize("kind", KINDS)
RATES = {"actor_learning_rate": 0.01, "critic_learning_rate": 0.02, "tau": 0.1}


# --- BC ---
@pytest.mark.parametrize("policy_type", ["deterministic", "stochastic", "likelihood"])
def test_bc(policy_type, continuous_store):
    def loss(p, x):
        if policy_type == "deterministic":
            action = np.tanh(net(p, "policy", x.observation))
        else:
            mean, log_std = np.split(net(p, "policy", x.observation), 2, -1)
            if policy_type == "likelihood":
                return -np.mean(normal_log_density(x.action, np.tanh(mean), clip(log_std, -4, 15)))
            action = clip(np.tanh(mean) + np.exp(clip(log_std, -4, 15)) * x.noise["sample"], -1, 1)
        return np.mean((action - x.action) ** 2)

    trace = Trace("bc", continuous_store, {"learning_rate": 0.01, "policy_type": policy_type}, 3)
    replay(trace, lambda k: [Move("policy", ("policy",), 0.01, loss)], ())


# --- IQL ---
def free_normal(p, s, low, high):
    return np.tanh(net(p, "actor", s)), low + sigmoid(p["actor.log_std"]) * (high - low)


def advantage(p, x):
    return lowest([q.mean for q in x.critics(x.t, x.observation, x.action)]) - net(p, "value", x.observation)[:, 0]


def iql_critic(p, x):
    u = stop(lowest([q.mean for q in x.critics(x.t, x.observation, x.action)])) - net(p, "value", x.observation)[:, 0]
    value_loss = np.mean(np.where(np.real(u) < 0, 1 - x.config.expectile, x.config.expectile) * u * u)
    y = x.bellman(net(x.p, "value", x.next_observation))
    q_loss = x.loss_of(x.critics(p, x.observation, x.action), y)
    assert x.metrics["value_loss"] == pytest.approx(np.real(value_loss), rel=1e-9)
    assert x.metrics["critic_loss"] == pytest.approx(np.real(q_loss), rel=1e-9)
    return q_loss + value_loss


WEIGHTS: list[np.ndarray] = []


def iql_actor(p, x):
    weight = np.minimum(np.exp(x.config.weight_temp * advantage(x.p, x)), x.config.max_weight)
    WEIGHTS.append(weight)
    return -np.mean(weight * normal_log_density(x.action, *free_normal(p, x.observation, -5.0, 2.0)))


def test_iql(continuous_store):
    trace = Trace("iql", continuous_store, {**RATES, "max_weight": 1.5, "weight_temp": 4.0, "expectile": 0.8}, 3)
    assert (trace.p["actor.log_std"] == 0).all()
    plan = [
        Move("critic", ("critic", "value"), 0.02, iql_critic),
        Move("actor", ("actor",), 0.01, iql_actor),
        Follow({"critic": 0.1}),
    ]
    WEIGHTS.clear()
    replay(trace, lambda k: plan, ("critic",))
    cut = np.concatenate(WEIGHTS) == 1.5
    assert cut.any()
    assert not cut.all()


# --- AWAC ---
def clipped_sample(distribution, noise):
    mean, log_std = distribution
    return clip(mean + np.exp(log_std) * noise, -1, 1)


def awac_critic(p, x):
    a = clipped_sample(free_normal(x.p, x.next_observation, -6.0, 0.0), x.noise["next"])
    y = x.bellman(choose(x.critics(x.t, x.next_observation, a), "min"))
    return x.loss_of(x.critics(p, x.observation, x.action), y)


def awac_actor(p, x):
    s = x.observation

    def least(a):
        return lowest([q.mean for q in x.critics(x.p, s, a)])

    v = np.mean([least(clipped_sample(free_normal(x.p, s, -6.0, 0.0), noise)) for noise in x.noise["samples"]], 0)
    scaled = (least(x.action) - v) / x.config.lam
    weight = len(scaled) * np.exp(scaled) / np.exp(scaled).sum()
    return -np.sum(weight * normal_log_density(x.action, *free_normal(p, s, -6.0, 0.0)))


@kinds
@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_awac_moves_policy_and_target_every_interval(decay, kind, continuous_store):
    values = {"lam": 0.3, "n_action_samples": 3, "update_actor_interval": 2, "actor_optimizer.weight_decay": decay}
    trace = Trace("awac", continuous_store, {**RATES, **KINDS[kind], **values}, 3)

    def plan(k):
        first = [Move("critic", ("critic",), 0.02, awac_critic)]
        if k % 2:
            return first
        return [*first, Move("actor", ("actor",), 0.01, awac_actor, adam={"weight_decay": decay}), Follow({"critic": 0.1})]

    replay(trace, plan, ("critic",))


# --- CRR ---
def state_normal(p, s):
    mean, log_std = np.split(net(p, "actor", s), 2, -1)
    return np.tanh(mean), clip(log_std, -20, 2)


def crr_critic(p, x):
    a = clipped_sample(state_normal(x.t, x.next_observation), x.noise["next"])
    y = x.bellman(choose(x.critics(x.t, x.next_observation, a), "min"))
    return x.loss_of(x.critics(p, x.observation, x.action), y)


def crr_actor(p, x):
    s, c = x.observation, x.config

    def average(a):
        return np.mean([q.mean for q in x.critics(x.p, s, a)], 0)

    others = [average(clipped_sample(state_normal(x.p, s), noise)) for noise in x.noise["samples"]]
    adv = average(x.action) - (np.mean(others, 0) if c.advantage_type == "mean" else np.max(others, 0))
    weight = np.where(adv > 0, 1.0, 0.0) if c.weight_type == "binary" else np.minimum(np.exp(adv / c.beta), c.max_weight)
    return -np.mean(weight * normal_log_density(x.action, *state_normal(p, s)))


@kinds
@pytest.mark.parametrize(("advantage_type", "weight_type"), [("mean", "exp"), ("max", "exp"), ("mean", "binary")])
def test_crr(advantage_type, weight_type, kind, continuous_store):
    values = {"actor_learning_rate": 0.01, "critic_learning_rate": 0.02, "target_update_interval": 2, "update_actor_interval": 3}
    values |= {"advantage_type": advantage_type, "weight_type": weight_type, "n_critics": 2}
    values |= {"beta": 0.4, "max_weight": 1.1} if weight_type == "exp" else {}
    trace = Trace("crr", continuous_store, {**values, **KINDS[kind]}, 4)

    def plan(k):
        steps = [Move("critic", ("critic",), 0.02, crr_critic)]
        if k % 3 == 0:
            steps.append(Move("actor", ("actor",), 0.01, crr_actor))
        if k % 2 == 0:
            steps.append(Follow({"critic": 1.0, "actor": 1.0}))
        return steps

    replay(trace, plan, ("critic", "actor"))


def test_crr_with_soft_targets_follows_at_every_update(continuous_store):
    trace = Trace("crr", continuous_store, {**RATES, "target_update_type": "soft"}, 3)
    follow = Follow({"critic": 0.1, "actor": 0.1})
    plan = [Move("critic", ("critic",), 0.02, crr_critic), Move("actor", ("actor",), 0.01, crr_actor), follow]
    replay(trace, lambda k: plan, ("critic", "actor"))
