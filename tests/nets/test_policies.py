"""Policies and their distributions against torch's own distributions and plain formulas, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import distributions

from offrld.nets import (
    CategoricalPolicy,
    DeterministicPolicy,
    DiscreteCritics,
    Encoder,
    Normal,
    NormalPolicy,
    ResidualPolicy,
    SquashedNormal,
    SquashedNormalPolicy,
)

D, A, B, K = 3, 2, 5, 4
ENCODER = Encoder(units=(7, 6))


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def params_of(net):
    return net.init(torch.Generator().manual_seed(0), torch.float64)


def head(params, name, x):
    """Compute two ReLU layers and the head in NumPy."""
    p = {n: v.numpy() for n, v in params.items()}
    for i in range(2):
        x = np.maximum(x @ p[f"{name}.encoder.{i}.weight"].T + p[f"{name}.encoder.{i}.bias"], 0)
    return x @ p[f"{name}.head.weight"].T + p[f"{name}.head.bias"]


def same(tensor, array):
    np.testing.assert_allclose(tensor.detach().numpy(), array, rtol=1e-9, atol=1e-12)


def test_a_deterministic_policy_is_the_tanh_of_its_head():
    net = DeterministicPolicy("pi", (D,), A, ENCODER)
    params = params_of(net)
    assert all(name.startswith("pi.") for name in params)
    same(net(params, normal(B, D)), np.tanh(head(params, "pi", normal(B, D).numpy())))


def test_a_residual_policy_corrects_actions_within_its_scale_and_the_box():
    net = ResidualPolicy("pi", (D,), A, ENCODER, scale=0.4)
    params, observation, actions = params_of(net), normal(B, D), normal(K, B, A, seed=2).clamp(-1, 1)
    corrected = net(params, observation, actions)
    for k in range(K):
        x = np.concatenate([observation.numpy(), actions[k].numpy()], -1)
        same(corrected[k], np.clip(actions[k].numpy() + 0.4 * np.tanh(head(params, "pi", x)), -1, 1))
        same(net(params, observation, actions[k]), corrected[k].numpy())
    assert (corrected.abs() == 1).any()
    assert (corrected - actions).abs().max() <= 0.4


@pytest.mark.parametrize(("log_std_range", "middle"), [((-6.0, 0.0), -3.0), ((-5.0, 2.0), -1.5)])
def test_a_free_log_std_starts_in_the_middle_of_its_range(log_std_range, middle):
    net = NormalPolicy("pi", (D,), A, ENCODER, log_std_range=log_std_range, free_std=True)
    params = params_of(net)
    same(net.distribution(params, normal(B, D)).log_std, np.full(A, middle))
    params["pi.log_std"] = torch.tensor([-50.0, 2.0], dtype=torch.float64)
    low, high = log_std_range
    same(net.distribution(params, normal(B, D)).log_std, [low, low + (high - low) / (1 + math.exp(-2))])
    same(net(params, normal(B, D)), np.tanh(head(params, "pi", normal(B, D).numpy())))


def test_a_state_dependent_log_std_is_clamped_to_its_range():
    net = NormalPolicy("pi", (D,), A, ENCODER, log_std_range=(-0.1, 0.2), free_std=False)
    params = {name: 5 * value for name, value in params_of(net).items()}
    mean, log_std = np.split(head(params, "pi", normal(B, D).numpy()), 2, -1)
    distribution = net.distribution(params, normal(B, D))
    same(distribution.mean, np.tanh(mean))
    same(distribution.log_std, np.clip(log_std, -0.1, 0.2))
    assert len({float(x) for x in distribution.log_std.flatten()} & {-0.1, 0.2}) == 2


def test_the_normals_density_and_samples_are_torchs():
    mean, log_std, noise = normal(B, A), normal(A, seed=2), normal(K, B, A, seed=3)
    mine, other = Normal(mean, log_std), distributions.Normal(mean, log_std.exp())
    sample = mine.sample(noise)
    torch.testing.assert_close(sample, mean + log_std.exp() * noise)
    torch.testing.assert_close(mine.log_prob(sample), other.log_prob(sample).sum(-1))


@pytest.mark.parametrize("leading", [(), (K,)])
def test_the_squashed_normals_density_and_samples_are_torchs(leading):
    mean, log_std, noise = normal(B, A), 0.3 * normal(B, A, seed=2), normal(*leading, B, A, seed=3)
    mine = SquashedNormal(mean, log_std)
    other = distributions.TransformedDistribution(distributions.Normal(mean, log_std.exp()), distributions.TanhTransform(cache_size=1))
    action, log_prob = mine.sample(noise)
    u = mine.unsquashed(noise)
    torch.testing.assert_close(u, mean + log_std.exp() * noise)
    torch.testing.assert_close(action, torch.tanh(u))
    assert log_prob.shape == (*leading, B)
    torch.testing.assert_close(log_prob, other.log_prob(action).sum(-1))
    torch.testing.assert_close(mine.log_prob(action), log_prob, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine.mode, torch.tanh(mean))


def test_the_squashed_density_integrates_to_one():
    actions = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[:, None]
    density = SquashedNormal(torch.tensor([0.4]).double(), torch.tensor([-0.5]).double()).log_prob(actions).exp()
    assert float(torch.trapezoid(density, actions[:, 0])) == pytest.approx(1, abs=1e-4)


def test_the_density_of_an_action_on_the_bound_is_that_at_the_clamp():
    mine = SquashedNormal(torch.zeros(1, 1).double(), torch.zeros(1, 1).double())
    u = math.atanh(0.999999)
    expected = -0.5 * u * u - 0.5 * math.log(2 * math.pi) - math.log(1 - 0.999999**2)
    for bound in (1.0, -1.0):
        assert float(mine.log_prob(torch.tensor([[bound]]).double())) == pytest.approx(expected, rel=1e-9)


def test_the_squashed_density_keeps_its_digits_where_tanh_is_flat():
    """In float32, 1 - tanh(u)^2 is 0 from u = 9 on; the density there is not."""
    mean = torch.tensor([[12.0, -30.0]])
    _, log_prob = SquashedNormal(mean, torch.zeros(1, 2)).sample(torch.zeros(1, 2))
    slope = [2 * (math.log(2) - abs(u)) for u in (12.0, -30.0)]  # log(1 - tanh(u)^2) but for exp(-2 |u|)
    assert float(log_prob) == pytest.approx(-math.log(2 * math.pi) - sum(slope), rel=1e-5)


def test_the_gradient_of_a_samples_density_is_the_reparametrised_one():
    mean, log_std, noise = normal(B, A).requires_grad_(), (0.3 * normal(B, A, seed=2)).requires_grad_(), normal(B, A, seed=3)
    mine = torch.autograd.grad(SquashedNormal(mean, log_std).sample(noise)[1].sum(), (mean, log_std))
    u = mean + log_std.exp() * noise
    density = distributions.Normal(mean, log_std.exp()).log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)
    for one, other in zip(mine, torch.autograd.grad(density.sum(), (mean, log_std)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_squashed_policys_head_gives_mean_and_clamped_log_std():
    net = SquashedNormalPolicy("pi", (D,), A, ENCODER, log_std_range=(-0.1, 0.2))
    params = {name: 5 * value for name, value in params_of(net).items()}
    observation, noise = normal(B, D), normal(K, B, A, seed=3)
    mean, log_std = np.split(head(params, "pi", observation.numpy()), 2, -1)
    distribution = net.distribution(params, observation)
    same(distribution.mean, mean)
    same(distribution.log_std, np.clip(log_std, -0.1, 0.2))
    same(net(params, observation), np.tanh(mean))
    same(net.unsquashed(params, observation, noise), mean + np.exp(np.clip(log_std, -0.1, 0.2)) * noise.numpy())
    action, log_prob = net.sample(params, observation, noise)
    same(action, np.tanh(net.unsquashed(params, observation, noise).numpy()))
    inside = 0.9 * action
    torch.testing.assert_close(net.log_prob_of(params, observation, inside), distribution.log_prob(inside))
    torch.testing.assert_close(log_prob, distribution.sample(noise)[1])


def test_a_squashed_policys_log_std_ranges_from_minus_20_to_2():
    net = SquashedNormalPolicy("pi", (D,), A, ENCODER)
    params = {name: 1000 * value for name, value in params_of(net).items()}
    log_std = net.distribution(params, normal(B, D)).log_std
    assert (float(log_std.min()), float(log_std.max())) == (-20.0, 2.0)


def test_a_categorical_policy_gives_logits_and_normalised_log_probabilities():
    net = CategoricalPolicy("pi", (D,), 4, ENCODER)
    params = params_of(net)
    logits = head(params, "pi", normal(B, D).numpy())
    same(net(params, normal(B, D)), logits)
    same(net.log_prob(params, normal(B, D)), logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def test_a_categorical_policy_can_share_a_q_functions_encoder():
    critics = DiscreteCritics("q", 1, (D,), 4, ENCODER)
    net = CategoricalPolicy("pi", (D,), 4, ENCODER, shared=critics.encoders[0])
    own = params_of(net)
    assert set(own) == {"pi.head.weight", "pi.head.bias"}
    params = own | params_of(critics)
    renamed = own | {name.replace("q.0.encoder", "pi.encoder"): value for name, value in params.items()}
    same(net(params, normal(B, D)), head(renamed, "pi", normal(B, D).numpy()))


def test_policies_map_over_seeds():
    net = SquashedNormalPolicy("pi", (D,), A, ENCODER)
    seeds = [net.init(torch.Generator().manual_seed(seed), torch.float64) for seed in (0, 1)]
    stacked = {name: torch.stack([params[name] for params in seeds]) for name in seeds[0]}
    observation, noise = normal(2, B, D), normal(2, K, B, A, seed=3)
    action, log_prob = torch.func.vmap(net.sample)(stacked, observation, noise)
    for i, params in enumerate(seeds):
        one, other = net.sample(params, observation[i], noise[i])
        torch.testing.assert_close(action[i], one)
        torch.testing.assert_close(log_prob[i], other)
