"""Q functions against plain NumPy loops over members, samples and quantiles, in float64."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from offrl.errors import InvalidInput
from offrld.losses import bellman
from offrld.nets import CONTEXT, Context, Critics, DiscreteCritics, Encoder, QFunction, ValueFunction
from offrld.nets.tracing import one_graph
from offrld.nets.values import Quantiles

D, A, N_ACTIONS, B, K, MEMBERS = 3, 2, 4, 5, 6, 3
ENCODER = Encoder(units=(7, 6))
DISTRIBUTIONAL = ("qr", "iqn", "fqf")
ALL = ("mean", *DISTRIBUTIONAL)
types = pytest.mark.parametrize("kind", ALL)
both = pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def critics_of(kind, *, discrete, members=MEMBERS, **values):
    q = QFunction(type=kind, n_quantiles=None if kind == "mean" else 5, n_greedy_quantiles=4, embed_size=3, **values)
    if discrete:
        return DiscreteCritics("q", members, (D,), N_ACTIONS, ENCODER, q)
    return Critics("q", members, (D,), A, ENCODER, q)


def params_of(net, seed=0):
    """Return parameters larger than the initial ones, so that quantiles and proposals differ visibly."""
    return {name: 2.5 * value for name, value in net.init(generator(seed), torch.float64).items()}


def training(params, *, key=3, on=True):
    return {**params, CONTEXT: Context(torch.tensor(key), on)}


def inputs(discrete):
    return (normal(B, D),) if discrete else (normal(B, D), normal(B, A, seed=2).tanh())


# --- The reference ---
def layer(p, name, x):
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def reference(params, net, kind, x, member, fractions):
    """Compute one member's quantiles ``[outputs][M]`` and expected values ``[outputs]`` for one input vector."""
    p = {name: value.detach().numpy() for name, value in params.items() if name != CONTEXT}
    trunk = "q.encoder" if "q.encoder.0.weight" in p else f"q.{member}.encoder"
    h = x
    for i in range(2):
        h = np.maximum(layer(p, f"{trunk}.{i}", h), 0)
    head = f"q.{member}"
    if kind == "mean":
        out = layer(p, f"{head}.head", h)
        return [[value] for value in out], out
    if kind == "qr":
        out = layer(p, f"{head}.head", h).reshape(-1, 5)
        return out, out.mean(-1)
    weight = np.full(len(fractions), 1 / len(fractions))
    if kind == "fqf":
        weight = np.exp(layer(p, f"{head}.proposal", h))
        weight /= weight.sum()
        ends = np.concatenate([[0], np.cumsum(weight)])
        np.testing.assert_allclose(fractions, (ends[1:] + ends[:-1]) / 2, rtol=1e-12)
    columns = []
    for tau in fractions:
        cosines = np.array([np.cos(np.pi * i * float(tau)) for i in range(1, 4)])
        columns.append(layer(p, f"{head}.head", h * np.maximum(layer(p, f"{head}.embedding", cosines), 0)))
    out = np.stack(columns, -1)
    return out, out @ weight


def check_values(params, net, kind, discrete, values, rows):
    """``rows``: input vector per index of the batch."""
    quantiles, mean = values.quantiles.detach().numpy(), values.mean.detach().numpy()
    assert quantiles.shape[:-1] == mean.shape
    for index in np.ndindex(*rows.shape[:-1]):
        for member in range(MEMBERS):
            fractions = values.fractions
            if fractions is not None and fractions.dim() > 1:
                fractions = fractions[(member, *index)]
            expected, expected_mean = reference(params, net, kind, rows[index], member, fractions)
            where = (member, *index)
            np.testing.assert_allclose(quantiles[where], expected if discrete else expected[0], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(mean[where], expected_mean if discrete else expected_mean[0], rtol=1e-9, atol=1e-12)


@types
@both
@pytest.mark.parametrize("share", [False, True], ids=["own encoders", "one encoder"])
def test_values_are_those_of_loops_over_members_samples_and_fractions(kind, discrete, share):
    net = critics_of(kind, discrete=discrete, share_encoder=share)
    for params in (params_of(net), training(params_of(net))):
        given = inputs(discrete)
        values = net.values(params, *given)
        assert values.mean.shape == ((MEMBERS, B, N_ACTIONS) if discrete else (MEMBERS, B))
        check_values(params, net, kind, discrete, values, np.concatenate([x.numpy() for x in given], -1))


@types
def test_many_actions_per_observation_have_the_values_of_each_alone(kind):
    net = critics_of(kind, discrete=False)
    params, observation, actions = params_of(net), normal(B, D), normal(K, B, A, seed=2)
    values = net.values(params, observation, actions)
    assert values.mean.shape == (MEMBERS, K, B)
    rows = np.concatenate([np.broadcast_to(observation.numpy(), (K, B, D)), actions.numpy()], -1)
    check_values(params, net, kind, False, values, rows)
    torch.testing.assert_close(net(params, observation, actions), values.mean)


@both
def test_the_first_members_alone_are_the_first_of_all(discrete):
    for kind in ALL:
        net = critics_of(kind, discrete=discrete)
        params, given = params_of(net), inputs(discrete)
        torch.testing.assert_close(net(params, *given, members=1), net(params, *given)[:1])


@pytest.mark.parametrize("discrete", [False, True])
def test_iqn_draws_new_fractions_in_losses_and_acts_with_evenly_spaced_ones(discrete):
    net = critics_of("iqn", discrete=discrete)
    params, given = params_of(net), inputs(discrete)
    torch.testing.assert_close(net.values(params, *given).fractions, torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64))
    online, target = training(params), training(params, on=False)
    drawn = [net.values(p, *given).fractions for p in (online, online, target, training(params, key=4))]
    for i, one in enumerate(drawn):
        assert one.shape == (MEMBERS, B, 5)
        assert one.unique().numel() == one.numel()  # each member, sample and quantile its own
        for other in drawn[:i]:
            assert not torch.isin(one, other).any()
    torch.testing.assert_close(net.values(training(params), *given).fractions, drawn[0])


def test_iqn_with_its_own_defaults_takes_continuous_actions():
    """64 quantiles in training and 32 in acting: d3rlpy's second version refuses the pair."""
    net = Critics("q", 2, (D,), A, ENCODER, QFunction(type="iqn"))
    params, given = params_of(net), inputs(False)
    assert net.values(training(params), *given).quantiles.shape == (2, B, 64)
    assert net.values(params, *given).quantiles.shape == (2, B, 32)
    error = net.values(training(params), *given).error(net.target(params, *given))
    assert torch.isfinite(error)


def test_each_type_has_its_own_default_number_of_quantiles():
    assert [QFunction(type=kind).quantiles for kind in ALL] == [1, 32, 64, 32]
    assert QFunction(type="iqn", n_quantiles=7).quantiles == 7


# --- Reductions ---
def reduced(quantiles, mean, how, lam=0.75):
    """Over members of ``[N, M]`` and ``[N]``."""
    low, high = quantiles[np.argmin(mean)], quantiles[np.argmax(mean)]
    return {"min": low, "max": high, "mix": lam * low + (1 - lam) * high, "mean": quantiles.mean(0)}[how]


@types
@both
@pytest.mark.parametrize("how", ["min", "max", "mix", "mean"])
def test_targets_take_all_quantiles_of_the_member_chosen_by_its_mean(kind, discrete, how):
    net = critics_of(kind, discrete=discrete)
    params, given = params_of(net, seed=20), inputs(discrete)
    values = net.values(params, *given)
    if how == "mean" and kind != "mean":
        with pytest.raises(InvalidInput, match="not defined for quantiles"):
            values.reduce(how)
        return
    action = (None,) if discrete else ()
    target = net.target(params, *given, *action, how, 0.6)
    quantiles, mean = values.quantiles.detach().numpy(), values.mean.detach().numpy()
    assert target.shape == quantiles.shape[1:]
    assert len({int(m) for m in mean.reshape(MEMBERS, -1).argmin(0)}) > 1  # else a constant choice would pass
    for index in np.ndindex(*mean.shape[1:]):
        each = (slice(None), *index)
        np.testing.assert_allclose(target[index].numpy(), reduced(quantiles[each], mean[each], how, 0.6), rtol=1e-12)
    if discrete:
        chosen = torch.tensor([0, 3, 1, 2, 3])
        rows = torch.arange(B)
        torch.testing.assert_close(net.target(params, *given, chosen, how, 0.6), target[rows, chosen])


def test_targets_carry_no_gradient():
    net = critics_of("qr", discrete=False)
    params = {name: value.requires_grad_() for name, value in params_of(net).items()}
    assert not net.target(params, *inputs(False)).requires_grad


def test_an_unknown_reduction_is_named():
    net = critics_of("mean", discrete=False)
    with pytest.raises(InvalidInput, match="'median'"):
        net.values(params_of(net), *inputs(False)).reduce("median")


@types
def test_the_best_candidate_has_the_largest_mixed_mean(kind):
    net = critics_of(kind, discrete=False)
    params, observation, actions = params_of(net), normal(B, D), normal(K, B, A, seed=2)
    values = net.values(params, observation, actions)
    best, choice = values.best(0.6)
    quantiles, mean = values.quantiles.detach().numpy(), values.mean.detach().numpy()
    for b in range(B):
        mixed = [0.6 * mean[:, k, b].min() + 0.4 * mean[:, k, b].max() for k in range(K)]
        k = int(np.argmax(mixed))
        assert choice[b] == k
        np.testing.assert_allclose(best[b].detach().numpy(), reduced(quantiles[:, k, b], mean[:, k, b], "mix", 0.6), rtol=1e-12)
    assert choice.unique().numel() > 1


# --- Errors ---
def huber(e):
    return 0.5 * e * e if abs(e) < 1 else abs(e) - 0.5


@types
@both
@pytest.mark.parametrize("count", [1, 7])
def test_the_error_is_the_sum_over_members_of_the_batch_mean(kind, discrete, count):
    if kind == "mean" and count > 1:
        return
    net = critics_of(kind, discrete=discrete, **({"entropy_coeff": 0.3} if kind == "fqf" else {}))
    params, given, target = training(params_of(net)), inputs(discrete), 2 * normal(B, count, seed=5)
    values = net.values(params, *given)
    action = torch.tensor([0, 3, 1, 2, 3])
    at = values.taken(action) if discrete else values
    total = 0.0
    for member in range(MEMBERS):
        for b in range(B):
            where = (member, b, int(action[b])) if discrete else (member, b)
            predicted, y = values.quantiles[where].detach().numpy(), target[b].numpy()
            if kind == "mean":
                e = predicted[0] - y[0]
                total += huber(e) if discrete else e * e
                continue
            tau = values.fractions if values.fractions.dim() == 1 else values.fractions[member, b]
            for j, theta in enumerate(predicted):
                for target_i in y:
                    total += abs(float(tau[j]) - (target_i < theta)) * huber(target_i - theta) / len(y)
            if kind == "fqf":
                ends = values.proposal.fractions[member, b].detach().numpy()
                q = np.diff(ends, prepend=0.0)
                total += 0.3 * np.sum(q * np.log(q))
    assert float(at.error(target)) == pytest.approx(total / B, rel=1e-10)
    torch.testing.assert_close(at.errors(target).mean(-1).sum(0), at.error(target))


def test_qr_fractions_are_midpoints():
    net = critics_of("qr", discrete=True)
    torch.testing.assert_close(net.values(params_of(net), *inputs(True)).fractions, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).double())


def test_a_target_without_its_axis_of_quantiles_is_refused():
    net = critics_of("mean", discrete=False)
    with pytest.raises(ValueError, match=r"\(5,\)"):
        net.values(params_of(net), *inputs(False)).error(normal(B))


@pytest.mark.parametrize("count", [None, 1, 7])
def test_bellman_targets_broadcast_to_quantiles(count):
    batch = SimpleNamespace(reward=normal(B), discount=torch.full((B,), 0.9).double(), terminal=torch.tensor([0, 1, 0, 0, 1.0]).double())
    value = normal(B, *([] if count is None else [count]), seed=3)
    y = bellman(batch, value)
    assert y.shape == value.shape
    for b in range(B):
        torch.testing.assert_close(y[b], batch.reward[b] + 0.9 * (1 - batch.terminal[b]) * value[b])


# --- Gradients ---
def gradients(net, params, discrete, target, values_of=lambda values: values):
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    values = net.values(training(leaves), *inputs(discrete))
    values = values.taken(torch.tensor([0, 3, 1, 2, 3])) if discrete else values
    given = torch.autograd.grad(values_of(values).error(target), list(leaves.values()), allow_unused=True)
    return {name: torch.zeros_like(leaves[name]) if g is None else g for name, g in zip(leaves, given, strict=True)}


@both
@pytest.mark.parametrize("kind", ["mean", "qr"])
def test_a_shared_encoders_gradient_is_the_sum_over_members_divided_by_their_number(kind, discrete):
    shared, separate = critics_of(kind, discrete=discrete, share_encoder=True), critics_of(kind, discrete=discrete)
    params, target = params_of(shared), normal(B, 1, seed=5)
    copied = {name.replace("q.encoder", f"q.{i}.encoder"): value for i in range(MEMBERS) for name, value in params.items()}
    mine, parts = gradients(shared, params, discrete, target), gradients(separate, copied, discrete, target)
    for name, value in mine.items():
        if name.startswith("q.encoder"):
            value, each = MEMBERS * value, [parts[name.replace("q.encoder", f"q.{i}.encoder")] for i in range(MEMBERS)]
            torch.testing.assert_close(value, sum(each))
        else:
            torch.testing.assert_close(value, parts[name])


def test_a_shared_encoder_passes_the_actions_gradient_undivided():
    shared, separate = critics_of("mean", discrete=False, share_encoder=True), critics_of("mean", discrete=False)
    params = params_of(shared)
    copied = {name.replace("q.encoder", f"q.{i}.encoder"): value for i in range(MEMBERS) for name, value in params.items()}
    observation, action = inputs(False)
    action.requires_grad_()
    one, other = (torch.autograd.grad(net(p, observation, action).sum(), action)[0] for net, p in ((shared, params), (separate, copied)))
    torch.testing.assert_close(one, other)
    assert one.abs().min() > 0


@both
@pytest.mark.parametrize("entropy_coeff", [0.0, 0.2])
def test_fqfs_proposal_gradient_is_the_formula_and_touches_nothing_else(discrete, entropy_coeff):
    net = critics_of("fqf", discrete=discrete, entropy_coeff=entropy_coeff)
    params, target = params_of(net), normal(B, 4, seed=5)
    mine = gradients(net, params, discrete, target)
    without = gradients(net, params, discrete, target, lambda values: Quantiles(values.mean, values.quantiles, values.taus))
    p = {name: value.numpy() for name, value in params.items()}
    action = [0, 3, 1, 2, 3]
    rows = np.concatenate([x.numpy() for x in inputs(discrete)], -1)
    for member in range(MEMBERS):
        weight, bias = np.zeros((5, 6)), np.zeros(5)
        for b in range(B):
            h = rows[b]
            for i in range(2):
                h = np.maximum(layer(p, f"q.{member}.encoder.{i}", h), 0)
            q = np.exp(layer(p, f"q.{member}.proposal", h))
            q /= q.sum()
            tau = np.cumsum(q)
            middles = tau - q / 2

            def theta(fraction, h=h, member=member, b=b):
                cosines = np.cos(np.pi * np.arange(1, 4) * fraction)
                embedded = np.maximum(layer(p, f"q.{member}.embedding", cosines), 0)
                return layer(p, f"q.{member}.head", h * embedded)[action[b] if discrete else 0]

            slope = np.zeros(5)  # with respect to the logits
            for j in range(4):
                gradient = 2 * theta(tau[j]) - theta(middles[j]) - theta(middles[j + 1])
                for k in range(5):
                    slope[k] += 1e-4 * gradient * sum(q[i] * ((i == k) - q[k]) for i in range(j + 1))
            entropy = -np.sum(q * np.log(q))
            slope -= entropy_coeff * (-q * (np.log(q) + entropy))
            weight += np.outer(slope, h) / B
            bias += slope / B
        np.testing.assert_allclose(mine[f"q.{member}.proposal.weight"].numpy(), weight, rtol=1e-8, atol=1e-15)
        np.testing.assert_allclose(mine[f"q.{member}.proposal.bias"].numpy(), bias, rtol=1e-8, atol=1e-15)
        assert np.abs(weight).max() > 1e-8
    for name, value in mine.items():
        if ".proposal." in name:
            assert not without[name].any()  # the quantile error alone does not move it
        else:
            torch.testing.assert_close(value, without[name], rtol=1e-12, atol=1e-15)
    assert without["q.0.encoder.0.weight"].any()


# --- One program for many seeds ---
@types
@both
@pytest.mark.parametrize("share", [False, True], ids=["own encoders", "one encoder"])
def test_vmap_over_seeds_equals_a_loop(kind, discrete, share):
    net = critics_of(kind, discrete=discrete, share_encoder=share)
    seeds = [params_of(net, seed) for seed in (0, 1)]
    stacked = {name: torch.stack([params[name] for params in seeds]).requires_grad_() for name in seeds[0]}
    keys, target = torch.tensor([11, 12]), normal(B, 4 if kind != "mean" else 1, seed=5)
    action = torch.tensor([[0, 3, 1, 2, 3], [1, 1, 0, 2, 0]])
    observation, continuous = normal(2, B, D), normal(2, B, A, seed=2)

    def loss(params, key, observation, action):
        values = net.values({**params, CONTEXT: Context(key, True)}, observation, *(() if discrete else (action,)))
        frozen = {**{name: value.detach() for name, value in params.items()}, CONTEXT: Context(key, False)}
        following = net.target(frozen, observation, action, "mix")
        return (values.taken(action) if discrete else values).error(0.5 * following + target.mean())

    given = action if discrete else continuous
    together = torch.func.vmap(loss)(stacked, keys, observation, given)
    grads = torch.autograd.grad(together.sum(), list(stacked.values()))
    for i in range(2):
        alone = {name: value[i].detach().requires_grad_() for name, value in stacked.items()}
        value = loss(alone, keys[i], observation[i], given[i])
        torch.testing.assert_close(together[i], value, rtol=1e-10, atol=1e-12)
        for mine, other in zip(grads, torch.autograd.grad(value, list(alone.values())), strict=True):
            torch.testing.assert_close(mine[i], other, rtol=1e-9, atol=1e-13)


@types
@both
def test_a_loss_is_one_graph(kind, discrete):
    """`fullgraph`: no fall-back to Python inside, so that a GPU can capture it."""
    net = critics_of(kind, discrete=discrete, share_encoder=True)
    params, target, given = params_of(net), normal(B, 4 if kind != "mean" else 1, seed=5), inputs(discrete)
    action = torch.tensor([0, 3, 1, 2, 3])

    def loss(params, key):
        values = net.values({**params, CONTEXT: Context(key, True)}, *given)
        return (values.taken(action) if discrete else values).error(target)

    leaves = {name: value.requires_grad_() for name, value in params.items()}
    torch._dynamo.reset()
    compiled = one_graph(loss, backend="aot_eager")
    one, other = compiled(leaves, torch.tensor(3)), loss(leaves, torch.tensor(3))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for mine, eager in zip(*(torch.autograd.grad(v, list(leaves.values()), allow_unused=True) for v in (one, other)), strict=True):
        torch.testing.assert_close(mine, eager, rtol=1e-9, atol=1e-14)


def test_a_value_function_is_its_encoder_and_one_linear_output():
    net = ValueFunction("value", (D,), ENCODER)
    params = net.init(generator(), torch.float64)
    p = {name: value.numpy() for name, value in params.items()}
    for b, x in enumerate(normal(B, D).numpy()):
        h = x
        for i in range(2):
            h = np.maximum(layer(p, f"value.encoder.{i}", h), 0)
        assert float(net(params, normal(B, D))[b]) == pytest.approx(float(layer(p, "value.head", h)[0]), rel=1e-12)
