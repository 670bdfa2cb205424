"""The algorithms over discrete actions against a plain computation of their updates (see `oracle`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import KINDS, Follow, Inputs, Move, Trace, choose, chosen_mean, log_softmax, logsumexp, lowest, member, net, replay, stop

kinds = pytest.mark.parametrize("kind", KINDS)
N = 3  # actions of the store


def values_of(p, x, s, action, name="q"):
    """Values of the members at actions ``[B]``, or at one for all."""
    action = np.broadcast_to(action, (len(s),))
    kind = x.config.q_function.type if hasattr(x.config, "q_function") else "mean"
    return [member(p, f"{name}.{i}", kind, s, action=action) for i in range(x.config.n_critics)]


def averages(p, x, s):
    """Expected values, averaged over the members: ``[B, n]``."""
    return np.stack([np.mean([value.mean for value in values_of(p, x, s, a)], 0) for a in range(N)], -1)


def td_loss(p, x, choice):
    y = x.bellman(choose(values_of(x.t, x, x.next_observation, choice), "min"))
    return x.loss_of(values_of(p, x, x.observation, x.action), y, discrete=True)


def dqn(p, x):
    return td_loss(p, x, averages(x.t, x, x.next_observation).argmax(-1))


def double_dqn(p, x):
    return td_loss(p, x, averages(x.p, x, x.next_observation).argmax(-1))


def discrete_cql(p, x):
    q = averages(p, x, x.observation)
    return double_dqn(p, x) + x.config.alpha * np.mean(logsumexp(q, 1) - q[np.arange(len(q)), x.action])


Q = {"learning_rate": 0.02, "n_critics": 2}


@kinds
@pytest.mark.parametrize(
    ("name", "loss", "values"), [("dqn", dqn, {}), ("double_dqn", double_dqn, {}), ("discrete_cql", discrete_cql, {"alpha": 0.7})]
)
def test_q_learning_copies_its_target_every_interval(name, loss, values, kind, discrete_store):
    trace = Trace(name, discrete_store, {**Q, **KINDS[kind], **values, "target_update_interval": 2}, 4)

    def plan(k):
        return [Move("q", ("q",), 0.02, loss), *([Follow({"q": 1.0})] if k % 2 == 0 else [])]

    replay(trace, plan, ("q",))


@kinds
def test_nfq_copies_its_target_after_every_update(kind, discrete_store):
    trace = Trace("nfq", discrete_store, {**Q, **KINDS[kind]}, 3)
    replay(trace, lambda k: [Move("q", ("q",), 0.02, dqn), Follow({"q": 1.0})], ("q",))


def test_discrete_bc(discrete_store):
    def loss(p, x):
        log_prob = log_softmax(net(p, "policy", x.observation))
        return -np.mean(log_prob[np.arange(len(log_prob)), x.action]) + x.config.beta * np.mean(log_prob**2)

    trace = Trace("discrete_bc", discrete_store, {"learning_rate": 0.01, "beta": 0.3}, 3)
    replay(trace, lambda k: [Move("policy", ("policy",), 0.01, loss)], ())


# --- DiscreteBCQ ---
def imitator(p, x, s):
    if x.config.share_encoder:
        p = {**p, **{n.replace("q.0.encoder", "imitator.encoder"): v for n, v in p.items() if n.startswith("q.0.encoder")}}
    return net(p, "imitator", s)


def discrete_bcq(p, x):
    s = x.next_observation
    q, log_g = averages(x.p, x, s), log_softmax(imitator(x.p, x, s))
    choice = np.zeros(len(s), int)
    for b in range(len(s)):
        scores = []
        for a in range(N):
            likely = log_g[b, a] - log_g[b].max() > np.log(x.config.action_flexibility)
            scores.append((q[b, a] - q[b].min() + 1e-5) if likely else 0.0)
        choice[b] = int(np.argmax(scores))
    logits = imitator(p, x, x.observation)
    likelihood = log_softmax(logits)[np.arange(len(logits)), x.action]
    return td_loss(p, x, choice) - np.mean(likelihood) + x.config.beta * np.mean(logits**2)


@kinds
@pytest.mark.parametrize("shared", [True, False])
def test_discrete_bcq_updates_values_and_imitator_with_one_optimizer(shared, kind, discrete_store):
    values = {**Q, "target_update_interval": 3, "action_flexibility": 0.9, "beta": 0.3, "share_encoder": shared}
    trace = Trace("discrete_bcq", discrete_store, {**values, **KINDS[kind]}, 4)

    def plan(k):
        return [Move("q", ("q", "imitator"), 0.02, discrete_bcq), *([Follow({"q": 1.0})] if k % 3 == 0 else [])]

    replay(trace, plan, ("q",))
    assert any(n.startswith("imitator.encoder") for n in trace.p) is not shared


def test_discrete_bcq_takes_the_best_of_the_likely_actions(discrete_store):
    values = {**Q, "action_flexibility": 0.8, "share_encoder": False}
    trace, random = Trace("discrete_bcq", discrete_store, values, 0), np.random.default_rng(0)
    p, x = {n: random.normal(size=v.shape) for n, v in trace.p.items()}, Inputs(config=trace.config)
    s = random.normal(size=(300, 3))
    q, share = averages(p, x, s), np.exp(log_softmax(imitator(p, x, s)))
    wanted, worst, counts = [], 0, set()
    for b in range(len(s)):
        likely = [a for a in range(N) if share[b, a] > 0.8 * share[b].max()]
        wanted.append(max(likely, key=lambda a: q[b, a]))
        worst += likely == [q[b].argmin()] and likely != [0]
        counts.add(len(likely))
    assert worst > 0, "where the worst action alone is likely, only a small constant keeps it above the forbidden ones"
    assert counts == {1, 2, 3}
    scores = trace.algorithm.act({n: torch.from_numpy(v) for n, v in p.items()}, trace.config, trace.learner.nets, torch.from_numpy(s))
    assert scores.argmax(-1).tolist() == wanted


# --- DiscreteSAC ---
def temperature(p):
    return np.exp(p["temp.log"]) if "temp.log" in p else 0.0


def sac_critic(p, x):
    s = x.next_observation
    log_prob = log_softmax(net(x.p, "actor", s))
    value = 0.0
    for a in range(N):
        soft = choose(values_of(x.t, x, s, a, "critic"), "min") - (temperature(x.p) * log_prob[:, a])[:, None]
        value = value + np.exp(log_prob[:, a])[:, None] * soft
    return x.loss_of(values_of(p, x, x.observation, x.action, "critic"), x.bellman(value), discrete=True)


def sac_temperature(p, x):
    log_prob = log_softmax(net(x.p, "actor", x.observation))
    return -np.mean(np.exp(p["temp.log"]) * ((np.exp(log_prob) * log_prob).sum(-1) + 0.98 * np.log(N)))


def sac_actor(p, x):
    log_prob = log_softmax(net(p, "actor", x.observation))
    total = 0.0
    for a in range(N):
        q = stop(chosen_mean(values_of(x.p, x, x.observation, a, "critic"), "min"))
        total = total + np.exp(log_prob[:, a]) * (temperature(x.p) * log_prob[:, a] - q)
    return np.mean(total)


# --- DiscreteIQL ---
def least_target(x):
    return stop(lowest([q.mean for q in values_of(x.t, x, x.observation, x.action, "critic")]))


def iql_critic(p, x):
    u = least_target(x) - net(p, "value", x.observation)[:, 0]
    value_loss = np.mean(np.where(np.real(u) < 0, 1 - x.config.expectile, x.config.expectile) * u * u)
    y = x.bellman(net(x.p, "value", x.next_observation))[:, 0]
    return value_loss + sum(np.mean((q.mean - y) ** 2) for q in values_of(p, x, x.observation, x.action, "critic"))


def iql_actor(p, x):
    advantage = least_target(x) - stop(net(x.p, "value", x.observation)[:, 0])
    weight = np.minimum(np.exp(x.config.weight_temp * advantage), x.config.max_weight)
    log_prob = log_softmax(net(p, "actor", x.observation))
    return -np.mean(weight * log_prob[np.arange(len(log_prob)), x.action])


def test_discrete_iql(discrete_store):
    values = {"actor_learning_rate": 0.01, "critic_learning_rate": 0.02, "tau": 0.3, "target_update_interval": 2, "max_weight": 1.05}
    trace = Trace("discrete_iql", discrete_store, {**values, "expectile": 0.8}, 4)

    def plan(k):
        moves = [Move("critic", ("critic", "value"), 0.02, iql_critic), Move("actor", ("actor",), 0.01, iql_actor)]
        return [*moves, *([Follow({"critic": 0.3})] if k % 2 == 0 else [])]

    replay(trace, plan, ("critic",))


@kinds
@pytest.mark.parametrize("eps", [1e-8, 1e-4])
def test_discrete_sac(eps, kind, discrete_store):
    values = {"actor_learning_rate": 0.01, "critic_learning_rate": 0.02, "temp_learning_rate": 0.03, "target_update_interval": 2}
    values |= {f"{name}_optimizer.eps": eps for name in ("actor", "critic", "temp")} if eps != 1e-8 else {}
    trace = Trace("discrete_sac", discrete_store, {**values, **KINDS[kind], "initial_temperature": 0.5}, 3)

    def plan(k):
        return [
            Move("critic", ("critic",), 0.02, sac_critic, adam={"eps": eps}),
            Move("temp", ("temp",), 0.03, sac_temperature, adam={"eps": eps}),
            Move("actor", ("actor",), 0.01, sac_actor, adam={"eps": eps}),
            *([Follow({"critic": 1.0})] if k % 2 == 0 else []),
        ]

    replay(trace, plan, ("critic",))


def test_discrete_sac_without_a_temperature_has_no_entropy_anywhere(discrete_store):
    values = {"actor_learning_rate": 0.01, "critic_learning_rate": 0.02, "initial_temperature": 0.0, "target_update_interval": 1}
    trace = Trace("discrete_sac", discrete_store, values, 3)
    moves = [Move("critic", ("critic",), 0.02, sac_critic), Move("actor", ("actor",), 0.01, sac_actor), Follow({"critic": 1.0})]
    replay(trace, lambda k: moves, ("critic",))
    assert not any(name.split("/")[1].startswith("temp") for name in trace.learner.state.tensors())
