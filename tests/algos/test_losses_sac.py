"""SAC, SAC-N, EDAC, CQL and CalQL against a plain computation of their updates (see `oracle`)."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import KINDS, Follow, Move, Trace, choose, chosen_mean, clip, layers, logsumexp, net, replay, squashed_sample

kinds = pytest.mark.parametrize("kind", KINDS)
RATES = {"actor_learning_rate": 0.01, "critic_learning_rate": 0.02, "temp_learning_rate": 0.03, "tau": 0.1}
A = 2


def soft_critic(p, x, low=-20.0):
    a, log_density = squashed_sample(x.p, "actor", x.next_observation, x.noise["next"], low)
    y = x.bellman(choose(x.critics(x.t, x.next_observation, a), "min") - np.exp(x.p["temp.log"]) * log_density[:, None])
    return x.loss_of(x.critics(p, x.observation, x.action), y)


def temperature(p, x):
    _, log_density = squashed_sample(x.p, "actor", x.observation, x.noise["actor"])
    return -np.mean(np.exp(p["temp.log"]) * (log_density - A))


def soft_actor(p, x, low=-20.0):
    a, log_density = squashed_sample(p, "actor", x.observation, x.noise["actor"], low)
    return np.mean(np.exp(x.p["temp.log"]) * log_density - chosen_mean(x.critics(x.p, x.observation, a), "min"))


SAC_TAIL = [Move("temp", ("temp",), 0.03, temperature), Move("actor", ("actor",), 0.01, soft_actor), Follow({"critic": 0.1})]


@kinds
def test_sac(kind, continuous_store):
    trace = Trace("sac", continuous_store, {**RATES, **KINDS[kind], "initial_temperature": 0.5}, 3)
    assert trace.p["temp.log"] == pytest.approx(np.log(0.5))
    replay(trace, lambda k: [Move("critic", ("critic",), 0.02, soft_critic), *SAC_TAIL], ("critic",))


def test_sac_keeps_its_temperature_at_learning_rate_zero(continuous_store):
    trace = Trace("sac", continuous_store, {**RATES, "temp_learning_rate": 0.0}, 2)
    replay(trace, lambda k: [Move("critic", ("critic",), 0.02, soft_critic), *SAC_TAIL[1:]], ("critic",))


# --- Large ensembles ---
def log_temperature(p, x):
    _, log_density = squashed_sample(x.p, "actor", x.observation, x.noise["temp"], -5.0)
    return -np.mean(p["temp.log"] * (log_density - A))


def action_gradient(p, name, s, a):
    """``dQ/da`` of one member, by back-propagation written out: ``[B, A]``."""
    active: list = []
    layers(p, name, np.concatenate([s, a], -1), active)
    gradient = np.repeat(p[f"{name}.head.weight"], len(s), 0)
    for i in reversed(range(len(active))):
        gradient = (gradient * active[i]) @ p[f"{name}.encoder.{i}.weight"]
    return gradient[:, s.shape[1] :]


def diverse_critic(p, x):
    n = x.config.n_critics
    directions = []
    for i in range(n):
        g = action_gradient(p, f"critic.{i}", x.observation, x.action)
        directions.append(g / (np.sqrt((g * g).sum(-1, keepdims=True)) + 1e-10))
    pairs = sum((directions[i] * directions[j]).sum(-1) for i in range(n) for j in range(n) if i != j)
    return soft_critic(p, x, -5.0) + x.config.eta * np.mean(pairs) / (n - 1)


@pytest.mark.parametrize(("name", "critic"), [("sac_n", lambda p, x: soft_critic(p, x, -5.0)), ("edac", diverse_critic)])
def test_sac_n_and_edac_move_temperature_policy_and_critics_in_this_order(name, critic, continuous_store):
    trace = Trace(name, continuous_store, {**RATES, "n_critics": 4, **({"eta": 0.7} if name == "edac" else {})}, 3)
    plan = [
        Move("temp", ("temp",), 0.03, log_temperature),
        Move("actor", ("actor",), 0.01, lambda p, x: soft_actor(p, x, -5.0)),
        Move("critic", ("critic",), 0.02, critic),
        Follow({"critic": 0.1}),
    ]
    replay(trace, lambda k: plan, ("critic",))


@pytest.mark.parametrize("name", ["sac_n", "edac"])
def test_large_ensembles_have_edacs_initialisation(name, continuous_store):
    p = Trace(name, continuous_store, {"n_critics": 4}, 0).p
    biases = [value for key, value in p.items() if ".encoder." in key and key.endswith(".bias")]
    assert len(biases) == 2 * (4 + 1)
    assert all((value == 0.1).all() for value in biases)
    for network, limit in (("actor", 1e-3), ("critic", 3e-3)):
        heads = np.concatenate([value.ravel() for key, value in p.items() if key.startswith(network) and ".head." in key])
        assert 0.7 * limit < np.abs(heads).max() <= limit


# --- Conservative values ---
def penalty(p, x, floor=None):
    """C_i of each member."""
    s, k = x.observation, x.config.n_action_samples
    terms = [[] for _ in range(x.config.n_critics)]
    for source, state in (("policy", s), ("next_policy", x.next_observation), ("random", None)):
        for j in range(k):
            if source == "random":
                a, log_density = 2 * x.noise["random"][j] - 1, A * np.log(0.5)
            else:
                a, log_density = squashed_sample(x.p, "actor", state, x.noise[source][j])
            for i, value in enumerate(x.critics(p, s, a)):
                q = value.mean
                if floor is not None and source != "random":
                    q = np.where(np.real(q) > floor, q, floor)
                terms[i].append(q - log_density)
    data = x.critics(p, s, x.action)
    return [np.mean(logsumexp(np.stack(terms[i]), 0) - data[i].mean) for i in range(x.config.n_critics)]


def conservative_critic(target, calibrated=False):
    def loss(p, x):
        y = x.bellman(target(x))
        gaps = penalty(p, x, x.returns if calibrated else None)
        conservative = sum(x.config.conservative_weight * (gap - x.config.alpha_threshold) for gap in gaps)
        x.remember["conservative"] = conservative
        return x.loss_of(x.critics(p, x.observation, x.action), y) + clip(np.exp(x.p["alpha.log"]), 0, 1e6) * conservative

    return loss


def dual(p, x):
    return -clip(np.exp(p["alpha.log"]), 0, 1e6) * x.memory["conservative"] / x.config.n_critics


def greedy_target(x):
    a = np.tanh(net(x.p, "actor", x.next_observation)[:, :A])
    return choose(x.critics(x.t, x.next_observation, a), "min")


def soft_target(x):
    a, log_density = squashed_sample(x.p, "actor", x.next_observation, x.noise["next"])
    return choose(x.critics(x.t, x.next_observation, a), "min") - np.exp(x.p["temp.log"]) * log_density[:, None]


def best_target(x):
    found = []
    for noise in x.noise["backup"]:
        a, _ = squashed_sample(x.p, "actor", x.next_observation, noise)
        values = x.critics(x.t, x.next_observation, a)
        found.append((chosen_mean(values, "min"), choose(values, "min")))
    best = np.stack([mean for mean, _ in found]).argmax(0)
    return np.stack([found[best[b]][1][b] for b in range(len(best))])


CQL = {
    **RATES, "alpha_learning_rate": 0.04, "n_action_samples": 3, "alpha_threshold": 1.5, "conservative_weight": 2.0, "initial_alpha": 0.6,
}  # fmt: skip


def cql_plan(critic):
    return lambda k: [Move("critic", ("critic",), 0.02, critic), Move("alpha", ("alpha",), 0.04, dual), *SAC_TAIL]


@kinds
@pytest.mark.parametrize(
    ("target", "values"), [(greedy_target, {}), (soft_target, {"soft_q_backup": True}), (best_target, {"max_q_backup": True})]
)
def test_cql_with_each_kind_of_target(target, values, kind, continuous_store):
    trace = Trace("cql", continuous_store, {**CQL, **KINDS[kind], **values}, 2)
    assert trace.p["alpha.log"] == pytest.approx(np.log(0.6))
    replay(trace, cql_plan(conservative_critic(target)), ("critic",))


@pytest.mark.parametrize("name", ["cql", "cal_ql"])
def test_a_fixed_dual_variable_does_not_change(name, continuous_store):
    trace = Trace(name, continuous_store, {**CQL, "alpha_learning_rate": 0.0}, 2)
    critic = conservative_critic(greedy_target, name == "cal_ql")
    replay(trace, lambda k: [step for step in cql_plan(critic)(k) if getattr(step, "name", "") != "alpha"], ("critic",))


def test_a_diverging_dual_variable_is_clipped_and_stops_moving(continuous_store):
    trace = Trace("cql", continuous_store, {**CQL, "initial_alpha": 1e7}, 2)
    assert trace.after[1][0]["alpha.log"] == trace.p["alpha.log"]
    replay(trace, cql_plan(conservative_critic(greedy_target)), ("critic",))


@kinds
def test_cal_ql_bounds_the_policys_values_by_the_returns(kind, continuous_store):
    # Both sides of the bound must occur, or a wrong side would not be seen.
    trace = Trace("cal_ql", continuous_store, {**CQL, **KINDS[kind]}, 2)
    assert (trace.seen[0][0].batch["returns"] > 0.5).any()
    assert (trace.seen[0][0].batch["returns"] < -0.5).any()
    replay(trace, cql_plan(conservative_critic(greedy_target, calibrated=True)), ("critic",))


def test_the_returns_of_cal_ql_are_those_of_the_stored_episodes(continuous_store):
    halved = {"reward_scaler": "multiply", "reward_scaler.multiplier": 0.5}
    trace = Trace("cal_ql", continuous_store, {"batch_size": 32, "gamma": 0.9, **halved}, 1)
    batch = trace.seen[0][0].batch
    known = {}
    for number in range(len(continuous_store)):
        episode = continuous_store.read_episode(number)
        total = 0.0
        for step in reversed(range(len(episode.reward))):
            total = 0.5 * float(episode.reward[step]) + 0.9 * total
            known[tuple(episode.observation[step].tolist())] = total
    expected = [known[tuple(np.float32(row).tolist())] for row in batch["observation"]]
    np.testing.assert_allclose(batch["returns"], expected, rtol=1e-6, atol=1e-6)
    assert np.std(expected) > 0.1
