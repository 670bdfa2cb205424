"""The transformer: equal to a plain torch.nn one on every real step, blind to padding and to the future, dropout from the context."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch_decision_transformer import TorchDecisionTransformer

from offrl.errors import InvalidInput
from offrld.nets.context import CONTEXT, Context
from offrld.nets.encoders import Encoder
from offrld.nets.transformer import SequenceModel, Transformer

B, L, D, A, TIMESTEPS = 5, 6, 3, 2, 9


def windows(discrete: bool, seed: int = 0) -> SimpleNamespace:
    """Return windows with every number of real steps from 1 to L; some exceed the largest time step."""
    random = torch.Generator().manual_seed(seed)
    length = torch.tensor([1, 2, 4, L, L])
    last = length + torch.tensor([0, 0, 0, 0, 7])
    place = torch.arange(L) - (L - 1)
    mask = (place >= 1 - length[:, None]).to(torch.float64)
    return SimpleNamespace(
        observation=torch.randn(B, L, D, generator=random, dtype=torch.float64),
        action=torch.randint(0, A, (B, L), generator=random)
        if discrete
        else torch.rand(B, L, A, generator=random, dtype=torch.float64) * 2 - 1,
        returns_to_go=torch.randn(B, L, generator=random, dtype=torch.float64) * 3,
        timesteps=((last[:, None] + place) * mask).to(torch.int64),
        mask=mask,
    )


def model_of(discrete: bool, position: str = "simple", heads: int = 2, activation: str = "gelu", **dropped) -> SequenceModel:
    settings = {"attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0} | dropped
    return SequenceModel(
        "actor",
        (D,),
        A,
        discrete=discrete,
        context_size=L,
        max_timestep=TIMESTEPS,
        encoder=Encoder(units=(16, 8)),
        transformer=Transformer(heads=heads, layers=3, activation=activation, position_encoding=position, **settings),
        embedding_activation="tanh" if discrete else None,
    )


def parameters(model: SequenceModel) -> dict[str, torch.Tensor]:
    """Return initial parameters plus noise, so that no bias is 0 and no gain is 1."""
    random = torch.Generator().manual_seed(7)
    params = model.init(random, torch.float64)
    return {name: value + 0.3 * torch.randn(value.shape, generator=random, dtype=torch.float64) for name, value in params.items()}


@pytest.mark.parametrize("position", ["simple", "global"])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("heads", "activation"), [(1, "relu"), (4, "swish")])
def test_it_is_the_plain_torch_transformer_on_every_real_step(discrete, position, heads, activation):
    model = model_of(discrete, position, heads, activation)
    params, window = parameters(model), windows(discrete)
    torch.set_default_dtype(torch.float64)
    try:
        plain = TorchDecisionTransformer(
            D,
            A,
            discrete=discrete,
            context=L,
            timesteps=TIMESTEPS,
            units=(16, 8),
            heads=heads,
            layers=3,
            activation=activation,
            position=position,
            embedding_activation="tanh" if discrete else None,
        ).load(params, "actor")
        expected = plain(window.observation, window.action, window.returns_to_go, window.timesteps, window.mask)
    finally:
        torch.set_default_dtype(torch.float32)
    real = window.mask > 0
    given = model(params, window)
    torch.testing.assert_close(given[real], expected[real], rtol=1e-10, atol=1e-12)
    assert torch.isfinite(given).all()
    torch.testing.assert_close(model.last(params, window), given[:, -1], rtol=1e-10, atol=1e-12)
    assert (expected[real].std(0) > 1e-2).all()  # the comparison compares something


@pytest.mark.parametrize("discrete", [False, True])
def test_padding_and_later_steps_change_nothing(discrete):
    model = model_of(discrete)
    params, window, other = parameters(model), windows(discrete, 0), windows(discrete, 1)
    padding, real = window.mask == 0, window.mask > 0
    mixed = SimpleNamespace(**vars(window))
    mixed.observation = torch.where(padding[..., None], other.observation, window.observation)
    mixed.returns_to_go = torch.where(padding, other.returns_to_go, window.returns_to_go)
    mixed.action = torch.where(padding if discrete else padding[..., None], other.action, window.action)
    mixed.action[:, -1] = other.action[:, -1]  # the last action comes after the last prediction
    assert torch.equal(model(params, mixed)[real], model(params, window)[real])
    later = SimpleNamespace(**vars(window))
    later.observation = window.observation.clone()
    later.observation[:, -1] += 1.0
    changed = (model(params, later) != model(params, window)).flatten(2).any(-1)
    assert changed[:, -1].all()
    assert not changed[:, :-1].any()


def test_dropout_follows_the_context_and_acting_has_none():
    window = windows(False)
    still = model_of(False)
    params = parameters(still)
    for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
        model = model_of(False, **{name: 0.5})

        def output(key, training=True, model=model):
            return model({**params, CONTEXT: Context(torch.tensor(key), training=training)}, window)

        assert torch.equal(model(params, window), still(params, window))
        assert torch.equal(output(3, training=False), still(params, window))
        assert torch.equal(output(3), output(3))
        assert not torch.equal(output(3), output(4)), name
        assert not torch.equal(output(3), still(params, window)), name


def test_gradients_are_finite_and_reach_every_parameter():
    model = model_of(False)
    params = {name: value.requires_grad_() for name, value in parameters(model).items()}
    window = windows(False)
    loss = (model(params, window) ** 2).sum(-1) @ torch.ones(L, dtype=torch.float64)
    found = torch.autograd.grad((loss * window.mask[:, -1]).sum(), list(params.values()))
    for name, gradient in zip(params, found, strict=True):
        assert torch.isfinite(gradient).all(), name
        assert gradient.abs().max() > 1e-12, name


def test_mapped_models_equal_each_model_alone():
    model, window = model_of(True, attention_dropout=0.2), windows(True)
    many = [parameters(model), {name: value * 1.1 for name, value in parameters(model).items()}]

    def output(params, key, window):
        return model({**params, CONTEXT: Context(key, training=True)}, SimpleNamespace(**window))

    keys = torch.tensor([3, 4])
    together = torch.func.vmap(output, in_dims=(0, 0, None))(
        {name: torch.stack([p[name] for p in many]) for name in many[0]}, keys, vars(window)
    )
    for position in range(2):
        torch.testing.assert_close(together[position], output(many[position], keys[position], vars(window)), rtol=1e-10, atol=1e-12)


def test_initial_weights_of_the_blocks_are_small_and_do_not_depend_on_the_dtype():
    model = model_of(False)
    params = model.init(torch.Generator().manual_seed(0), torch.float64)
    blocks = torch.cat(
        [value.flatten() for name, value in params.items() if ".blocks." in name and name.endswith(".weight") and "norm" not in name]
    )
    assert blocks.std().item() == pytest.approx(0.02, rel=0.1)
    assert all((value == 0).all() for name, value in params.items() if ".blocks." in name and name.endswith(".bias"))
    assert all((value == 1).all() for name, value in params.items() if name.endswith("norm.weight"))
    single = model.init(torch.Generator().manual_seed(0), torch.float32)
    assert all(torch.equal(single[name], value.float()) for name, value in params.items())


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InvalidInput, match=r"heads' is 3.*8 features"):
        model_of(False, heads=3)
