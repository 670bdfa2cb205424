"""Models of the environment, the algorithms that train on what these imagine, and evaluations of policies, against a plain computation
of their updates (see `oracle`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import (
    KINDS,
    Follow,
    Inputs,
    Move,
    Rewrite,
    Trace,
    choose,
    chosen_mean,
    layers,
    logsumexp,
    member,
    net,
    replay,
    softplus,
    squashed_sample,
)

from offrl.errors import InvalidInput
from offrld.algos import get
from offrld.engine import Learner
from offrld.losses import model_based

kinds = pytest.mark.parametrize("kind", KINDS)
D, A = 3, 2


# --- The ensemble ---
def unit(v):
    return v / max(np.linalg.norm(v), 1e-12)


def spectral(p, name, buffers=None):
    """The weight divided by its largest singular value, after one step of the power iteration where there are ``buffers`` to fill."""
    weight, left = p[name], p[f"{name}.running_direction"]
    right = unit(np.real(weight).T @ left)
    if buffers is not None:
        left = unit(np.real(weight) @ right)
        buffers[f"{name}.running_direction"] = left
    return weight / (left @ weight @ right)


def predict(p, i, s, a, buffers=None):
    """Mean and log deviation of one member, and its bounds."""
    name = f"dynamics.{i}"
    p = dict(p)
    for key in [k for k in p if k.startswith(f"{name}.") and f"{k}.running_direction" in p]:
        p[key] = spectral(p, key, buffers)
    h = layers(p, name, np.concatenate([s, a], -1))
    mean = h @ p[f"{name}.mean.weight"].T + p[f"{name}.mean.bias"]
    most, least = p[f"{name}.most"], p[f"{name}.least"]
    log_std = most - softplus(most - (h @ p[f"{name}.log_std.weight"].T + p[f"{name}.log_std.bias"]))
    return mean, least + softplus(log_std - least), most, least


def dynamics(p, x, rows=None):
    a = np.eye(3)[x.action] if x.action.ndim == 1 else x.action
    target = np.concatenate([x.next_observation - x.observation, x.reward[:, None]], -1)[:rows]
    total = 0.0
    for i in range(x.config.n_ensembles):
        mean, log_std, most, least = predict(p, i, x.observation[:rows], a[:rows], x.buffers)
        each = 0.5 * ((mean - target) ** 2 * np.exp(-2 * log_std)).sum(-1) + log_std.sum(-1) + 0.01 * (most - least).sum()
        total = total + np.mean(np.where(x.noise["bootstrap"][i][:rows] < 0.5, each, 0))
    return total


@pytest.mark.parametrize("discrete", [False, True])
def test_ensemble_dynamics(discrete, continuous_store, discrete_store):
    values = {"learning_rate": 0.01, "n_ensembles": 2, "observation_scaler": "standard", "batch_size": 12}
    trace = Trace("ensemble_dynamics", discrete_store if discrete else continuous_store, values, 3)
    assert (trace.p["dynamics.0.most"] == 2).all()
    assert (trace.p["dynamics.0.least"] == -10).all()
    replay(trace, lambda k: [Move("dynamics", ("dynamics",), 0.01, dynamics, adam={"weight_decay": 1e-4})], ())


def test_the_power_iteration_finds_the_largest_singular_value(continuous_store):
    algorithm = get("ensemble_dynamics")
    config = algorithm.configure({"learning_rate": 1e-7, "n_ensembles": 1, "encoder.units": [5, 4], "batch_size": 4})
    learner = Learner.create(algorithm, config, continuous_store, dtype=torch.float64)
    learner.run(100)
    p = {n: v[0].numpy() for n, v in learner.state.params.items()}
    for name in ("dynamics.0.encoder.0.weight", "dynamics.0.encoder.1.weight", "dynamics.0.mean.weight"):
        assert np.linalg.norm(spectral(p, name), 2) == pytest.approx(1.0, rel=1e-3), name
    assert "dynamics.0.log_std.weight.running_direction" not in p


# --- MOPO and COMBO ---
@pytest.fixture
def drawn(monkeypatch):
    """The random numbers of the rollouts, in the order in which they are drawn."""
    numbers = []
    for method in ("normal", "whole"):
        original = getattr(model_based._Numbers, method)

        def recorded(self, name, *arguments, _original=original):
            value = _original(self, name, *arguments)
            numbers.append((name, value.numpy().copy()))
            return value

        monkeypatch.setattr(model_based._Numbers, method, recorded)
    return numbers


def imagined(config, numbers, penalty, observations):
    """What a round of rollouts does to the memory."""

    def change(memory, p, following):
        memory = {n: v.copy() for n, v in memory.items()}
        size, n = config.generated_maxlen, config.rollout_batch_size
        steps, s = [], None
        for _ in range(config.rollout_horizon):
            named = dict(next(numbers) for _ in ("action", "model", "member"))
            if s is None:  # the observations drawn are those of the first transitions kept
                at = (int(memory["next"]) + np.arange(n)) % size
                s = following["observation"][at]
                known = {tuple(np.round(row, 9)) for row in observations}
                assert all(tuple(np.round(row, 9)) in known for row in s)
            a, _ = squashed_sample(p, "actor", s, named["action"])
            after, reward = np.zeros_like(s), np.zeros(n)
            predictions = [predict(p, i, s, a) for i in range(config.n_ensembles)]
            for b in range(n):
                samples = [mean[b] + np.exp(log_std[b]) * named["model"][i, b] for i, (mean, log_std, _, _) in enumerate(predictions)]
                sample = samples[named["member"][b]]
                after[b], reward[b] = s[b] + sample[:D], sample[D]
                if penalty and config.variance_type == "data":
                    reward[b] -= penalty * np.stack(samples).var(0, ddof=1).sum()
                elif penalty:
                    reward[b] -= penalty * max(np.sum(np.exp(log_std[b]) ** 2) for _, log_std, _, _ in predictions)
            steps.append((s, a, reward, after))
            s = after
        for t, (state, action, _, _) in enumerate(steps):
            used = min(config.n_steps, len(steps) - t)
            total = sum(config.gamma**i * steps[t + i][2] for i in range(used))
            for b in range(n):
                at = int(memory["next"])
                memory["observation"][at], memory["action"][at] = state[b], action[b]
                memory["reward"][at], memory["discount"][at] = total[b], config.gamma**used
                memory["next_observation"][at] = steps[t + used - 1][3][b]
                memory["next"] = np.asarray((at + 1) % size, float)
                memory["count"] = np.asarray(min(memory["count"] + 1, size), float)
        return memory

    return Rewrite(change)


def mixed(x):
    """The batch with its last rows from the memory."""
    kept = int(x.config.real_ratio * x.config.batch_size)
    fields = dict(x.__dict__)
    index = (x.noise["imagined"] * x.memory["count"]).astype(int)
    for name in ("observation", "action", "reward", "next_observation", "discount"):
        fields[name] = np.concatenate([fields[name][:kept], x.memory[name][index]])
    fields["terminal"] = np.concatenate([x.terminal[:kept], np.zeros(len(index))])
    return Inputs(**fields)


def soft_target(x):
    a, log_density = squashed_sample(x.p, "actor", x.next_observation, x.noise["next"])
    return choose(x.critics(x.t, x.next_observation, a), "min") - np.exp(x.p["temp.log"]) * log_density[:, None]


def greedy_target(x):
    a = np.tanh(net(x.p, "actor", x.next_observation)[:, :A])
    return choose(x.critics(x.t, x.next_observation, a), "min")


def mopo_critic(p, x):
    x = mixed(x)
    return x.loss_of(x.critics(p, x.observation, x.action), x.bellman(soft_target(x)))


def combo_critic(target):
    def loss(p, x):
        x = mixed(x)
        kept, k = int(x.config.real_ratio * x.config.batch_size), x.config.n_action_samples
        s, after = x.observation[kept:], x.next_observation[kept:]
        found = [[] for _ in range(x.config.n_critics)]
        for j in range(k):
            proposals = [
                squashed_sample(x.p, "actor", s, x.noise["policy"][j]),
                squashed_sample(x.p, "actor", after, x.noise["next_policy"][j]),
                (2 * x.noise["random"][j] - 1, np.full(len(s), A * np.log(0.5))),
            ]
            for a, log_density in proposals:
                for i, value in enumerate(x.critics(p, s, a)):
                    found[i].append(value.mean - log_density)
        pressed = sum(np.mean(logsumexp(np.stack(terms), 0)) for terms in found)
        held = sum(np.mean(value.mean) for value in x.critics(p, x.observation[:kept], x.action[:kept]))
        values = x.critics(p, x.observation, x.action)
        return x.loss_of(values, x.bellman(target(x))) + x.config.conservative_weight * (pressed - held)

    return loss


def soft_actor(p, x):
    x = mixed(x)
    a, log_density = squashed_sample(p, "actor", x.observation, x.noise["actor"])
    return np.mean(np.exp(x.p["temp.log"]) * log_density - chosen_mean(x.critics(x.p, x.observation, a), "min"))


def temperature(p, x):
    x = mixed(x)
    _, log_density = squashed_sample(x.p, "actor", x.observation, x.noise["next"])
    return -np.mean(np.exp(p["temp.log"]) * (log_density - A))


MODEL = {
    "actor_learning_rate": 0.01, "critic_learning_rate": 0.02, "temp_learning_rate": 0.03, "dynamics_learning_rate": 0.01, "tau": 0.1,
    "n_ensembles": 2, "dynamics_batch_size": 5, "rollout_interval": 2, "rollout_horizon": 3, "rollout_batch_size": 4, "real_ratio": 0.4,
    "generated_maxlen": 20, "update_actor_interval": 2, "batch_size": 10,
}  # fmt: skip


@pytest.mark.parametrize("n_steps", [1, 2])
@pytest.mark.parametrize(
    ("name", "critic", "values"),
    [
        ("mopo", mopo_critic, {"lam": 0.3}),
        ("mopo", mopo_critic, {"lam": 0.3, "variance_type": "data"}),
        ("combo", combo_critic(greedy_target), {"n_action_samples": 2, "conservative_weight": 0.6}),
        ("combo", combo_critic(soft_target), {"n_action_samples": 2, "soft_q_backup": True}),
    ],
)
def test_training_on_imagined_transitions(name, critic, values, n_steps, continuous_store, drawn):
    trace = Trace(name, continuous_store, {**MODEL, **values, "n_steps": n_steps, "dynamics_steps": 2}, 7)
    config, numbers, rows = trace.config, iter(drawn), store_rows(continuous_store)

    def plan(k):
        if k < 2:  # n-step sums are the policy's: the model learns single steps
            return [Move("dynamics", ("dynamics",), 0.01, lambda p, x: dynamics(p, x, 5), adam={"weight_decay": 1e-4})]
        steps = [imagined(config, numbers, values.get("lam", 0.0), rows)] if (k - 2) % 2 == 0 else []
        steps.append(Move("critic", ("critic",), 0.02, critic))
        if k % 2 == 0:
            steps += [Move("actor", ("actor",), 0.01, soft_actor), Move("temp", ("temp",), 0.03, temperature), Follow({"critic": 0.1})]
        return steps

    replay(trace, plan, ("critic",))
    assert next(numbers, None) is None
    for k in range(2):
        assert trace.seen[k][0].batch["discount"] == pytest.approx(config.gamma), "the model learns from single steps"


def store_rows(store):
    return np.concatenate([store.read_episode(number).observation for number in range(len(store))]).astype(np.float64)


# --- Evaluations ---
def evaluation(discrete):
    def loss(p, x):
        kind = x.config.q_function.type

        def values(parameters, s, a):
            inputs = (s,) if discrete else (s, a)
            chosen = {"action": a} if discrete else {}
            return [member(parameters, f"q.{i}", kind, *inputs, **chosen) for i in range(x.config.n_critics)]

        y = x.bellman(choose(values(x.t, x.next_observation, x.next_action), "min"))
        return x.loss_of(values(p, x.observation, x.action), y, discrete)

    return loss


@kinds
@pytest.mark.parametrize("discrete", [False, True])
def test_fitted_q_evaluation_of_a_policy_with_scalers_of_its_own(discrete, kind, continuous_store, discrete_store):
    store = discrete_store if discrete else continuous_store
    evaluated = get("discrete_bc" if discrete else "bc")
    policy = Learner.create(evaluated, evaluated.configure({"observation_scaler": "standard", "batch_size": 16}), store)
    policy.run(20)
    values = {"learning_rate": 0.02, "n_critics": 2, "target_update_interval": 2, "observation_scaler": "min_max"}
    trace = Trace("discrete_fqe" if discrete else "fqe", store, {**values, **KINDS[kind]}, 3, {"policy": policy})

    def plan(k):
        return [Move("q", ("q",), 0.02, evaluation(discrete)), *([Follow({"q": 1.0})] if k % 2 == 0 else [])]

    replay(trace, plan, ("q",))
    # The next action is the policy's at the raw next observation, in this run's units.
    batch, raw = trace.seen[0][0].batch, store_rows(store)
    scaled = trace.learner.scalers.observation["observation"](torch.from_numpy(raw)).numpy()
    for b in range(len(batch["next_action"])):
        if batch["terminal"][b]:
            continue
        row = int(np.abs(scaled - batch["next_observation"][b]).sum(-1).argmin())
        wanted = policy.policy(0)(torch.from_numpy(raw[row : row + 1]).float()).numpy()[0]
        np.testing.assert_allclose(batch["next_action"][b], wanted if discrete else wanted / 2.0, atol=1e-6)
    assert batch["terminal"].mean() < 1


@pytest.mark.parametrize("name", ["fqe", "discrete_fqe"])
def test_an_evaluation_without_a_policy_is_refused(name, store_for):
    algorithm = get(name)
    with pytest.raises(InvalidInput, match="none was named") as caught:
        Learner.create(algorithm, algorithm.configure(), store_for(algorithm))
    assert "policy" in caught.value.hint
