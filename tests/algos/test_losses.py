"""Each loss against an independent, plain NumPy computation in float64: the formulas of the papers, written out once more."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offrld.algos import ALGORITHMS
from offrld.engine import Learner, State

B = 24


def mlp(params, name, x):
    """Linear and ReLU layers, layer norm where the parameters have it, and the head."""
    i = 0
    while f"{name}.encoder.{i}.weight" in params:
        layer = f"{name}.encoder.{i}"
        x = np.maximum(x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"], 0)
        if f"{layer}.norm.weight" in params:
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            x = x * params[f"{layer}.norm.weight"] + params[f"{layer}.norm.bias"]
        i += 1
    return x @ params[f"{name}.head.weight"].T + params[f"{name}.head.bias"]


def huber(e):
    return np.where(np.abs(e) < 1, 0.5 * e * e, np.abs(e) - 0.5)


class Problem:
    """A learner after a few updates (so that targets differ from the online networks), its batch and parameters as arrays."""

    def __init__(self, name, store, values=None):
        algorithm = ALGORITHMS[name]
        steps = {"n_steps": 2} if hasattr(algorithm.config, "n_steps") else {}
        config = algorithm.configure({"batch_size": B, **steps, **(values or {})})
        self.learner = Learner.create(algorithm, config, store, dtype=torch.float64)
        self.learner.run(3)
        self.config = self.learner.config
        self.batch = self.learner._batches(3)[0]
        self.p = {n: v[0].numpy() for n, v in self.learner.state.params.items()}
        self.t = {n: v[0].numpy() for n, v in self.learner.state.target.items()}
        for field in ("observation", "action", "reward", "next_observation", "terminal", "discount", "next_action"):
            value = getattr(self.batch, field)
            setattr(self, field, None if value is None else value.numpy())
        self.noise = {n: v.numpy() for n, v in self.batch.noise.items()}

    def loss(self, step):
        chosen = next(s for s in self.learner.algorithm.schedule(self.config) if s.name == step)
        state = self.learner.state.of_seed(0, {})
        value, metrics = chosen.loss(state.params, self.config, self.learner.nets, state, self.batch)
        return float(value), {name: float(m) for name, m in metrics.items()}

    def bellman(self, value):
        return self.reward + self.discount * (1 - self.terminal) * value

    def critics(self, params, s, a):
        x = np.concatenate([s, a], -1)
        return np.stack([mlp(params, f"critic.{i}", x)[:, 0] for i in range(self.config.n_critics)])

    def smoothed_target_action(self):
        c = self.config
        noise = np.clip(self.noise["target"] * c.target_smoothing_sigma, -c.target_smoothing_clip, c.target_smoothing_clip)
        return np.clip(np.tanh(mlp(self.t, "actor", self.next_observation)) + noise, -1, 1)


def test_bc(continuous_store):
    x = Problem("bc", continuous_store)
    assert x.loss("policy")[0] == pytest.approx(np.mean((np.tanh(mlp(x.p, "policy", x.observation)) - x.action) ** 2), rel=1e-10)


def test_stochastic_bc(continuous_store):
    x = Problem("bc", continuous_store, {"policy_type": "stochastic"})
    mean, log_std = np.split(mlp(x.p, "policy", x.observation), 2, -1)
    sample = np.clip(np.tanh(mean) + np.exp(np.clip(log_std, -4, 15)) * x.noise["sample"], -1, 1)
    assert x.loss("policy")[0] == pytest.approx(np.mean((sample - x.action) ** 2), rel=1e-10)


def test_td3_bc(continuous_store):
    x = Problem("td3_bc", continuous_store)
    y = x.bellman(x.critics(x.t, x.next_observation, x.smoothed_target_action()).min(0))
    q = x.critics(x.p, x.observation, x.action)
    assert x.loss("critic")[0] == pytest.approx(sum(np.mean((q_i - y) ** 2) for q_i in q), rel=1e-10)
    action = np.tanh(mlp(x.p, "actor", x.observation))
    q = x.critics(x.p, x.observation, action)[0]
    expected = -x.config.alpha / np.abs(q).mean() * q.mean() + np.mean((x.action - action) ** 2)
    assert x.loss("actor")[0] == pytest.approx(expected, rel=1e-10)


def test_rebrac(continuous_store):
    x = Problem("rebrac", continuous_store, {"critic_beta": 0.3, "actor_beta": 0.2})
    next_action = x.smoothed_target_action()
    penalty = x.config.critic_beta * ((next_action - x.next_action) ** 2).sum(-1)
    y = x.bellman(x.critics(x.t, x.next_observation, next_action).min(0) - penalty)
    q = x.critics(x.p, x.observation, x.action)
    assert x.loss("critic")[0] == pytest.approx(sum(np.mean((q_i - y) ** 2) for q_i in q), rel=1e-10)
    action = np.tanh(mlp(x.p, "actor", x.observation))
    q = x.critics(x.p, x.observation, action).min(0)
    expected = np.mean(-q / np.abs(q).mean() + x.config.actor_beta * ((x.action - action) ** 2).sum(-1))
    assert x.loss("actor")[0] == pytest.approx(expected, rel=1e-10)


def test_iql(continuous_store):
    x = Problem("iql", continuous_store, {"max_weight": 1.5})
    value, next_value = mlp(x.p, "value", x.observation)[:, 0], mlp(x.p, "value", x.next_observation)[:, 0]
    u = x.critics(x.t, x.observation, x.action).min(0) - value
    value_loss = np.mean(np.abs(x.config.expectile - (u < 0)) * u**2)
    q = x.critics(x.p, x.observation, x.action)
    q_loss = sum(np.mean((q_i - x.bellman(next_value)) ** 2) for q_i in q)
    total, metrics = x.loss("critic")
    assert total == pytest.approx(q_loss + value_loss, rel=1e-10)
    assert metrics["value_loss"] == pytest.approx(value_loss, rel=1e-10)
    weight = np.minimum(np.exp(x.config.weight_temp * u), x.config.max_weight)
    log_std = -5 + 7 / (1 + np.exp(-x.p["actor.log_std"]))
    scaled = (x.action - np.tanh(mlp(x.p, "actor", x.observation))) / np.exp(log_std)
    log_prob = (-0.5 * scaled**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)
    assert x.loss("actor")[0] == pytest.approx(-np.mean(weight * log_prob), rel=1e-10)


def test_discrete_bc(discrete_store):
    x = Problem("discrete_bc", discrete_store)
    logits = mlp(x.p, "policy", x.observation)
    log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -log_prob[np.arange(B), x.action].mean() + x.config.beta * np.mean(log_prob**2)
    assert x.loss("policy")[0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["dqn", "double_dqn", "discrete_cql"])
def test_q_learning(name, discrete_store):
    x = Problem(name, discrete_store, {"n_critics": 2, "learning_rate": 0.05})
    rows = np.arange(B)
    online = np.stack([mlp(x.p, f"q.{i}", x.next_observation) for i in range(2)])
    target = np.stack([mlp(x.t, f"q.{i}", x.next_observation) for i in range(2)])
    choice = (target if name == "dqn" else online).mean(0).argmax(-1)
    y = x.bellman(target[:, rows, choice].min(0))
    q = np.stack([mlp(x.p, f"q.{i}", x.observation) for i in range(2)])
    expected = sum(np.mean(huber(q_i[rows, x.action] - y)) for q_i in q)
    if name == "discrete_cql":
        mean = q.mean(0)
        expected += x.config.alpha * np.mean(np.log(np.exp(mean).sum(-1)) - mean[rows, x.action])
    assert x.loss("q")[0] == pytest.approx(expected, rel=1e-10)


# --- The same with quantiles ---
def quantile_huber(predicted, target):
    """Of ``[B, M]`` against ``[B, M']``, at the mid-points of M fractions: the batch mean."""
    tau = (np.arange(predicted.shape[1]) + 0.5) / predicted.shape[1]
    e = target[:, None, :] - predicted[:, :, None]
    return np.mean((np.abs(tau[:, None] - (e < 0)) * huber(e)).mean(-1).sum(-1))


def lowest(quantiles):
    """Of ``[N, B, M]`` the member with the lowest mean, per sample: ``[B, M]``."""
    return quantiles[quantiles.mean(-1).argmin(0), np.arange(B)]


QR = {"q_function.type": "qr", "q_function.n_quantiles": 5}


@pytest.mark.parametrize("name", ["dqn", "double_dqn", "discrete_cql"])
def test_quantile_q_learning(name, discrete_store):
    x = Problem(name, discrete_store, {"n_critics": 2, "learning_rate": 0.05, **QR})
    rows = np.arange(B)
    online, target = (np.stack([mlp(p, f"q.{i}", x.next_observation).reshape(B, 3, 5) for i in range(2)]) for p in (x.p, x.t))
    choice = (target if name == "dqn" else online).mean((0, -1)).argmax(-1)
    low = lowest(target[:, rows, choice])
    y = x.reward[:, None] + (x.discount * (1 - x.terminal))[:, None] * low
    q = np.stack([mlp(x.p, f"q.{i}", x.observation).reshape(B, 3, 5) for i in range(2)])
    expected = sum(quantile_huber(q_i[rows, x.action], y) for q_i in q)
    if name == "discrete_cql":
        mean = q.mean((0, -1))
        expected += x.config.alpha * np.mean(np.log(np.exp(mean).sum(-1)) - mean[rows, x.action])
    assert x.loss("q")[0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["td3_bc", "rebrac"])
def test_quantile_actor_critic(name, continuous_store):
    x = Problem(name, continuous_store, {**QR, **({"critic_beta": 0.3} if name == "rebrac" else {})})

    def quantiles(params, s, a):
        return np.stack([mlp(params, f"critic.{i}", np.concatenate([s, a], -1)) for i in range(2)])

    action = x.smoothed_target_action()
    target = lowest(quantiles(x.t, x.next_observation, action))
    if name == "rebrac":
        target = target - 0.3 * ((action - x.next_action) ** 2).sum(-1, keepdims=True)
    y = x.reward[:, None] + (x.discount * (1 - x.terminal))[:, None] * target
    assert x.loss("critic")[0] == pytest.approx(sum(quantile_huber(q, y) for q in quantiles(x.p, x.observation, x.action)), rel=1e-10)
    action = np.tanh(mlp(x.p, "actor", x.observation))
    q = quantiles(x.p, x.observation, action).mean(-1)
    if name == "td3_bc":
        expected = -x.config.alpha / np.abs(q[0]).mean() * q[0].mean() + np.mean((x.action - action) ** 2)
    else:
        q = q.min(0)
        expected = np.mean(-q / np.abs(q).mean() + x.config.actor_beta * ((x.action - action) ** 2).sum(-1))
    assert x.loss("actor")[0] == pytest.approx(expected, rel=1e-10)


def test_an_update_is_one_step_of_torchs_own_adam(continuous_store):
    algorithm = ALGORITHMS["bc"]
    learner = Learner.create(algorithm, algorithm.configure({"batch_size": B}), continuous_store, dtype=torch.float64)
    params = {n: v[0].clone().requires_grad_() for n, v in learner.state.params.items()}
    optimizer = torch.optim.Adam(params.values(), lr=1e-3)
    for k in range(3):
        batch = learner._batches(k)[0]
        value, _ = algorithm.schedule(learner.config)[0].loss(params, learner.config, learner.nets, State(params, {}), batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    learner.run(3)
    for name, value in params.items():
        torch.testing.assert_close(learner.state.params[name][0], value.detach(), rtol=1e-10, atol=1e-13)
