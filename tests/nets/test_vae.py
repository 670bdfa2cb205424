"""The conditional VAE equals its formula and learns two modes of actions, whose mean would be neither."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offrld.nets import ConditionalVAE, Encoder

D, A, B, K = 3, 2, 5, 4
VAE = ConditionalVAE("vae", (D,), A, Encoder(units=(7, 6)), Encoder(units=(8,)))


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def params_of(net, scale=1.0):
    return {name: scale * value for name, value in net.init(torch.Generator().manual_seed(0), torch.float64).items()}


def mlp(params, name, layers, x):
    p = {n: v.numpy() for n, v in params.items()}
    for i in range(layers):
        x = np.maximum(x @ p[f"{name}.encoder.{i}.weight"].T + p[f"{name}.encoder.{i}.bias"], 0)
    return x @ p[f"{name}.head.weight"].T + p[f"{name}.head.bias"]


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("scale", [1.0, 6.0])  # the larger one reaches the deviation's lower limit
def test_the_loss_is_reconstruction_plus_divergence(beta, scale):
    params, s, a, noise = params_of(VAE, scale), normal(B, D), normal(B, A, seed=2).tanh(), normal(B, 2 * A, seed=3)
    mean, log_std = np.split(mlp(params, "vae.encoder", 2, np.concatenate([s.numpy(), a.numpy()], -1)), 2, -1)
    assert (log_std.min() < -4) == (scale > 1)
    std = np.exp(np.clip(log_std, -4, 15))
    z = mean + std * noise.numpy()
    action = np.tanh(mlp(params, "vae.decoder", 1, np.concatenate([s.numpy(), z], -1)))
    total = 0.0
    for b in range(B):
        for j in range(A):
            total += (action[b, j] - float(a[b, j])) ** 2 / (B * A)
        for j in range(2 * A):
            total += beta * (0.5 * (mean[b, j] ** 2 + std[b, j] ** 2 - 1) - np.log(std[b, j])) / (B * 2 * A)
    assert float(VAE.loss(params, s, a, noise, beta)) == pytest.approx(total, rel=1e-10)


def test_decoding_is_squashed_by_default():
    params, s, z = params_of(VAE, 3.0), normal(B, D), 3 * normal(K, B, 2 * A, seed=3)
    raw = VAE.decode(params, s, z, squash=False)
    assert raw.shape == (K, B, A)
    assert raw.abs().max() > 1
    torch.testing.assert_close(VAE.decode(params, s, z), torch.tanh(raw))
    for k in range(K):
        expected = mlp(params, "vae.decoder", 1, np.concatenate([s.numpy(), z[k].numpy()], -1))
        np.testing.assert_allclose(raw[k].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_latent_is_twice_the_action_by_default():
    assert VAE.latent_size == 2 * A
    net = ConditionalVAE("vae", (D,), A, Encoder(units=(7,)), Encoder(units=(7,)), latent=3)
    assert net.encode(params_of(net), normal(B, D), normal(B, A)).mean.shape == (B, 3)


def test_it_learns_both_actions_of_a_behaviour_that_takes_either():
    """Half of the actions are 0.7 and half -0.7: a regression would give 0, which the data never show."""
    net = ConditionalVAE("vae", (1,), 1, Encoder(units=(32,)), Encoder(units=(32,)))
    params = {n: v.requires_grad_() for n, v in net.init(torch.Generator().manual_seed(0), torch.float32).items()}
    optimizer, draw = torch.optim.Adam(params.values(), lr=5e-3), torch.Generator().manual_seed(4)
    observation = torch.ones(128, 1)
    for _ in range(400):
        action = 0.7 * (2.0 * torch.randint(0, 2, (128, 1), generator=draw) - 1)
        loss = net.loss(params, observation, action, torch.randn(128, 2, generator=draw), 0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    latent = torch.randn(500, 2, generator=draw)
    decoded = net.decode(params, torch.ones(500, 1), latent)
    near = [float(((decoded - mode).abs() < 0.25).float().mean()) for mode in (0.7, -0.7)]
    assert min(near) > 0.25, near
    assert sum(near) > 0.8, near
