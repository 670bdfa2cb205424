"""Losses of the sequence models against plain computations in NumPy, in float64, with the weights of a plain torch transformer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch_decision_transformer import TorchDecisionTransformer

from offrld.algos import get
from offrld.engine import Learner
from offrld.nets.context import CONTEXT, Context

L = 5
SMALL = {
    "batch_size": 12, "context_size": L, "max_timestep": 8, "transformer.layers": 2, "transformer.attention_dropout": 0.0,
    "transformer.residual_dropout": 0.0, "transformer.embedding_dropout": 0.0,
}  # fmt: skip
PLAIN = {"context": L, "timesteps": 8, "layers": 2}


class Case:
    """One batch of a learner whose parameters were moved by noise, and the plain transformer with the same weights."""

    def __init__(self, name, store, values, **plain):
        self.algorithm = get(name)
        self.learner = Learner.create(self.algorithm, self.algorithm.configure({**SMALL, **values}), store, dtype=torch.float64)
        random = torch.Generator().manual_seed(5)
        for value in [*self.learner.state.params.values(), *self.learner.state.target.values()]:
            value += 0.2 * torch.randn(value.shape, generator=random, dtype=torch.float64)
        self.config, self.nets = self.learner.config, self.learner.nets
        self.state = self.learner.state.of_seed(0, {})
        self.batch = self.learner.trainer.batches(0)[0]
        assert (self.batch.mask == 0).any() and (self.batch.timesteps > 8).any()
        torch.set_default_dtype(torch.float64)
        try:
            self.plain = TorchDecisionTransformer(3, self.learner.space_.action_size, **PLAIN, **plain).load(self.state.params, "actor")
        finally:
            torch.set_default_dtype(torch.float32)

    def predictions(self):
        b = self.batch
        with torch.no_grad():
            return self.plain(b.observation, b.action, b.returns_to_go, b.timesteps, b.mask).numpy()

    def loss(self, step=0, context=None):
        params = self.state.params if context is None else {**self.state.params, CONTEXT: context}
        value, metrics = self.algorithm.schedule(self.config)[step].loss(params, self.config, self.nets, self.state, self.batch)
        return value.item(), {name: metric.item() for name, metric in metrics.items()}


def test_decision_transformer_is_the_squared_error_over_real_steps(continuous_store):
    case = Case(
        "decision_transformer",
        continuous_store,
        {"encoder.units": [16], "encoder.last_activation": True, "transformer.heads": 2},
        discrete=False,
        units=(16,),
        heads=2,
        activation="relu",
        position="simple",
    )
    predicted, total, count = case.predictions(), 0.0, 0
    for b, t in np.argwhere(case.batch.mask.numpy() > 0):
        total, count = total + np.sum((predicted[b, t] - case.batch.action[b, t].numpy()) ** 2), count + 1
    assert case.loss()[0] == pytest.approx(total / count, rel=1e-9)


def test_returns_to_go_are_those_of_the_scaled_rewards_of_the_whole_episode(continuous_store):
    case = Case(
        "decision_transformer",
        continuous_store,
        {"reward_scaler": "multiply", "reward_scaler.multiplier": 0.1, "encoder.units": [16], "encoder.last_activation": True},
        discrete=False,
        units=(16,),
        heads=1,
        activation="relu",
        position="simple",
    )
    table, rewards = continuous_store.episode_table, continuous_store.column("reward")
    b, t = np.argwhere(case.batch.mask.numpy() > 0)[-1]
    last = int(continuous_store.windows(batch_size=12, length=L, seed=0).sample().index[b]) - (L - 1 - t)
    episode = np.flatnonzero(table["first_row"] <= last)[-1]
    end = table["first_row"][episode] + table["steps"][episode]
    assert case.batch.returns_to_go[b, t].item() == pytest.approx(0.1 * rewards[last:end].sum(), rel=1e-5)


def discrete_case(store, returns=True):
    return Case(
        "discrete_decision_transformer",
        store,
        {
            "encoder.units": [16],
            "encoder.last_activation": True,
            "transformer.heads": 4,
            "warmup_tokens": 100,
            "final_tokens": 500,
            "return_conditioned": returns,
        },
        discrete=True,
        units=(16,),
        heads=4,
        activation="gelu",
        position="global",
        embedding_activation="tanh",
        with_returns=returns,
    )


@pytest.mark.parametrize("returns", [True, False])
def test_discrete_decision_transformer_is_the_likelihood_of_real_steps(returns, discrete_store):
    case = discrete_case(discrete_store, returns)
    logits, total, count = case.predictions(), 0.0, 0
    for b, t in np.argwhere(case.batch.mask.numpy() > 0):
        row = logits[b, t]
        total += math.log(sum(math.exp(x - row.max()) for x in row)) + row.max() - row[int(case.batch.action[b, t])]
        count += 1
    context = Context(torch.tensor(3), training=True)
    value, _ = case.loss(context=context)
    assert value == pytest.approx(total / count, rel=1e-9)
    assert context.updates["memory/tokens"].item() == count


@pytest.mark.parametrize(
    ("tokens", "factor"),
    [(0, 0.01), (50, 0.5), (100, 1.0), (300, 0.5), (200, 0.5 * (1 + math.cos(math.pi / 4))), (499, 0.1), (9_999, 0.1)],
)
def test_the_rate_rises_with_the_tokens_then_falls_as_a_cosine_to_a_tenth(discrete_store, tokens, factor):
    case = discrete_case(discrete_store)
    memory = {"tokens": torch.tensor(float(tokens), dtype=torch.float64)}
    (step,) = case.algorithm.schedule(case.config)
    assert step.rate(memory).item() == pytest.approx(factor, rel=1e-9)


def test_tokens_are_counted_by_updates_and_kept_in_checkpoints(discrete_store, tmp_path):
    learner = discrete_case(discrete_store).learner
    expected = sum(learner.trainer.batches(k)[0].mask.sum().item() for k in range(3))
    learner.run(3)
    assert learner.state.carry["tokens"].item() == expected
    learner.save(tmp_path / "three.safetensors")
    again = discrete_case(discrete_store).learner
    again.restore(tmp_path / "three.safetensors")
    assert again.state.carry["tokens"].item() == expected
    before = {name: value.clone() for name, value in learner.state.params.items()}
    learner.run(1)
    assert any(not torch.equal(before[name], value) for name, value in learner.state.params.items())


def tacr_case(store, q_function="mean"):
    return Case(
        "tacr",
        store,
        {"actor_encoder.units": [16], "critic_encoder.units": [8], "q_function": q_function, "alpha": 1.7, "gamma": 0.9, "batch_size": 96},
        discrete=False,
        units=(16,),
        heads=1,
        activation="relu",
        position="simple",
    )


def q_of(params, member, observation, action):
    x = np.concatenate([observation, action])
    w = {name: value.numpy() for name, value in params.items() if name.startswith(f"critic.{member}.")}
    hidden = np.maximum(w[f"critic.{member}.encoder.0.weight"] @ x + w[f"critic.{member}.encoder.0.bias"], 0)
    return (w[f"critic.{member}.head.weight"] @ hidden + w[f"critic.{member}.head.bias"])[0]


def test_tacr_actor_weighs_the_minimum_value_against_imitation(continuous_store):
    case = tacr_case(continuous_store)
    action, qs, errors = case.predictions(), [], []
    for b, t in np.argwhere(case.batch.mask.numpy() > 0):
        observation = case.batch.observation[b, t].numpy()
        qs.append(min(q_of(case.state.params, i, observation, action[b, t]) for i in range(2)))
        errors.append(np.sum((action[b, t] - case.batch.action[b, t].numpy()) ** 2))
    weight = 1.7 / np.mean(np.abs(qs))
    value, metrics = case.loss()
    assert value == pytest.approx(np.mean(errors) - weight * np.mean(qs), rel=1e-9)
    assert metrics["bc_loss"] == pytest.approx(np.mean(errors), rel=1e-9)
    assert metrics["q_mean"] == pytest.approx(np.mean(qs), rel=1e-9)


def test_tacr_critic_takes_the_next_steps_own_action_and_sees_the_ends(continuous_store):
    case = tacr_case(continuous_store)
    batch, action = case.batch, case.predictions()
    noise = np.clip(batch.noise["target"].numpy() * 0.2, -0.5, 0.5)
    errors = []
    for b, t in np.argwhere(batch.mask.numpy() > 0):
        terminal = batch.terminal[b, t].item()
        if t == L - 1 and not terminal:
            continue
        target = batch.reward[b, t].item()
        if not terminal:
            following = np.clip(action[b, t + 1] + noise[b, t + 1], -1, 1)
            target += 0.9 * min(q_of(case.state.target, i, batch.observation[b, t + 1].numpy(), following) for i in range(2))
        observation, taken = batch.observation[b, t].numpy(), batch.action[b, t].numpy()
        errors.append(sum((q_of(case.state.params, i, observation, taken) - target) ** 2 for i in range(2)))
    assert batch.terminal[:, -1].sum() > 0  # an end is among them
    assert case.loss(step=1)[0] == pytest.approx(np.mean(errors), rel=1e-9)


def test_tacr_critic_ignores_padding(continuous_store):
    case = tacr_case(continuous_store, "qr")
    expected = case.loss(step=1)[0]
    padding = case.batch.mask == 0
    case.batch.reward[padding] = 99.0
    case.batch.action[padding] = 0.7
    case.batch.observation[padding] = -3.0
    assert case.loss(step=1)[0] == pytest.approx(expected, rel=1e-12)
    case.batch.reward[case.batch.mask > 0] += 1.0
    assert case.loss(step=1)[0] != pytest.approx(expected, rel=1e-3)
