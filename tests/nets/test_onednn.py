"""Linear layers through oneDNN: the same values and derivatives as torch's, and not used if unavailable."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from offrld.engine.updates.runner import choose_linear
from offrld.nets import onednn
from offrld.nets.linear import linear, products

needs_onednn = pytest.mark.skipif(not onednn.present(), reason="this torch has no product of oneDNN")
RIGHT = onednn.product
SHAPES = [
    ((256, 23), 256),            # a first layer
    ((256, 256), 256),
    ((30, 256, 64), 128),        # candidates
    ((4500, 40), 48),            # more rows than are summed at a time
    ((4500, 6), 256),            # candidate actions
]  # fmt: skip


class Products(TorchDispatchMode):
    """Count oneDNN's products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += "_linear_pointwise" in str(function)
        return function(*arguments, **(options or {}))


def made(shape, outputs, *, dtype=torch.float32, gradient=True):
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (outputs, shape[-1]), (outputs,))
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(gradient) for size in sizes]


def reference(x, weight, bias, *, relu):
    out = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return F.relu(out) if relu else out


def assert_near(one, other):
    assert (one.double() - other.double()).abs().max() <= 1e-5 * other.double().abs().max()


@needs_onednn
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_values_and_gradients_are_those_of_float64(shape, outputs, biased, relu):
    wanted = made(shape, outputs)[: 3 if biased else 2]
    x, weight, bias = (*wanted, None)[:3]
    with products(through_onednn=True), Products() as seen:
        out = linear(x, weight, bias, relu=relu)
        found = torch.autograd.grad(out.sin().sum(), wanted)
    assert seen.count >= 3
    expected = reference(x, weight, bias, relu=relu)
    assert_near(out, expected)
    for one, other in zip(found, torch.autograd.grad(expected.sin().sum(), wanted), strict=True):
        assert_near(one, other)


@needs_onednn
def test_column_slices_of_a_wider_weight_are_multiplied_correctly_and_fast():
    x, wide, bias = made((256, 23), 256)
    with products(through_onednn=True), torch.no_grad():
        assert_near(linear(x[:, :17].contiguous(), wide[:, :17], bias), reference(x[:, :17], wide[:, :17], bias, relu=False))
        seconds = min(onednn._seconds((lambda: linear(x[:, :17], wide[:, :17], bias),)) for _ in range(5))
    assert seconds < 2e-3  # the reference kernel, which takes whatever strides, needs 10 ms


@needs_onednn
def test_nan_stays_nan():
    x, weight, bias = made((256, 64), 128, gradient=False)
    weight[3, 5] = float("nan")
    with products(through_onednn=True), Products() as seen:
        out = linear(x, weight, bias, relu=True)
    assert seen.count == 1
    assert out[:, 3].isnan().all()
    assert not out[:, 4].isnan().any()


@needs_onednn
def test_only_requested_gradients_are_computed():
    x, weight, bias = made((256, 256), 256)
    with products(through_onednn=True):
        for wanted, expected in (([x], 1), ([weight], 1), ([weight, bias], 1), ([x, weight, bias], 2)):
            leaves = [value.detach().requires_grad_(any(value is w for w in wanted)) for value in (x, weight, bias)]
            out = linear(*leaves)
            with Products() as seen:
                torch.autograd.grad(out.sum(), [leaf for leaf in leaves if leaf.requires_grad])
            assert seen.count == expected


@needs_onednn
@pytest.mark.parametrize("relu", [False, True])
def test_second_derivatives_are_those_of_float64(relu):
    def penalty(function, x, weight, bias):
        (slope,) = torch.autograd.grad(function(x, weight, bias, relu=relu).sin().sum(), [x], create_graph=True)
        return torch.autograd.grad((slope**2).sum(), [weight, bias])

    given = made((256, 64), 128)
    with products(through_onednn=True), Products() as seen:
        found = penalty(linear, *given)
    assert seen.count > 0
    for one, other in zip(found, penalty(reference, *made((256, 64), 128, dtype=torch.float64)), strict=True):
        assert_near(one, other)


def test_it_is_used_only_if_requested_and_available():
    x, weight, bias = made((256, 256), 256)
    plain = x.detach()
    cases = {
        "float64": lambda: linear(x.double(), weight.double(), bias.double()),
        "small": lambda: linear(x[:4], weight, bias),
        "narrow": lambda: linear(x.repeat(100, 1), weight[:6], bias[:6]),
        "vmap": lambda: torch.func.vmap(linear)(x.repeat(2, 1, 1), weight.repeat(2, 1, 1), bias.repeat(2, 1)),
        "functional gradient": lambda: torch.func.grad(lambda w: linear(x, w, bias).sum())(weight),
        "trace": lambda: torch.jit.trace(lambda w: linear(plain, w), weight.detach(), check_trace=False),
    }
    for name, case in cases.items():
        with products(through_onednn=True), Products() as seen:
            case()
        assert seen.count == 0, name
    with Products() as seen:
        linear(x, weight, bias)
    assert seen.count == 0


def test_a_compiled_graph_has_torchs_own_operations():
    x, weight, bias = made((256, 256), 256)
    graphs = []

    def backend(module, inputs):
        graphs.append(str(module.graph))
        return module

    with products(through_onednn=True):
        out = torch.compile(lambda w: linear(x, w, bias, relu=True), fullgraph=True, backend=backend)(weight)
    assert len(graphs) == 1
    assert "linear_pointwise" not in graphs[0]
    assert_near(out, reference(x, weight, bias, relu=True))


@needs_onednn
def test_the_context_restores_the_product_even_after_an_error():
    x, weight, bias = made((256, 256), 256)
    with pytest.raises(ZeroDivisionError), products(through_onednn=True):
        raise ZeroDivisionError
    with Products() as seen:
        linear(x, weight, bias)
    assert seen.count == 0


def slow(*arguments):
    """oneDNN's product, repeated twenty times so that it is slow."""
    return [RIGHT(*arguments) for _ in range(20)].pop()


@pytest.fixture
def probe(monkeypatch, tmp_path):
    """A probe of another oneDNN, as a process that has not looked before makes it: ``probe(product)``."""

    def probe(product, folder=tmp_path):
        onednn._probe.cache_clear()
        monkeypatch.setattr(onednn, "product", product)
        return onednn.faster(1, folder)

    yield probe
    onednn._probe.cache_clear()


@needs_onednn
@pytest.mark.parametrize(("product", "text"), [(lambda *arguments: RIGHT(*arguments) * 1.01, "difference"), (slow, "us with oneDNN")])
def test_the_probe_rejects_a_wrong_or_slow_product(probe, product, text):
    found, seen = probe(product)
    assert not found
    assert text in seen


@needs_onednn
def test_the_first_answer_holds_in_every_later_run(probe, tmp_path):
    """If two libraries are about as fast, a new probe could choose differently in each run and change the last bits."""
    wrong, text = lambda *arguments: RIGHT(*arguments) * 1.01, "a difference between oneDNN's product and torch's"
    first = probe(slow)
    assert probe(wrong) == first
    (file,) = tmp_path.iterdir()
    file.write_text('{"faster": true')  # cut short by a full disk: looked at again, and mended
    assert probe(wrong) == (False, text)
    assert probe(slow) == (False, text)


@needs_onednn
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 3000,
        b'["faster", "seen"]',
        b'{"faster": "no", "seen": "a text for a truth value"}',
        b'{"faster": true, "seen": "lines\\nand \\u001b[31m escapes"}',
        b'{"faster": true, "seen": 3}',
        b'{"faster": true, "seen": "' + b"x" * 5000 + b'"}',
        b"\xff\xfe",
        "a pipe",
        "a link that leads nowhere",
    ],
)
def test_an_invalid_saved_answer_is_replaced(probe, tmp_path, content):
    wrong, text = lambda *arguments: RIGHT(*arguments) * 1.01, "a difference between oneDNN's product and torch's"
    file = tmp_path / f"linear-{onednn._circumstances(1)}.json"
    if content == "a pipe":
        os.mkfifo(file)
    elif content == "a link that leads nowhere":
        file.symlink_to(tmp_path / "nowhere")
    else:
        file.write_bytes(content)
    assert probe(wrong) == (False, text)
    assert json.loads(file.read_bytes())["seen"] == text
    assert file.is_file()
    assert not file.is_symlink()


@needs_onednn
def test_nothing_is_saved_for_a_user_without_a_home(probe, monkeypatch):
    def no_home(_: type) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    assert not probe(slow, None)[0]


@needs_onednn
def test_of_two_concurrent_probes_the_first_to_write_wins(probe, tmp_path):
    def late(*arguments):
        """Simulate another process that writes its answer while this one measures."""
        if not list(tmp_path.iterdir()):
            file = tmp_path / f"linear-{onednn._circumstances(1)}.json"
            file.write_text('{"faster": true, "seen": "the other"}')
        return slow(*arguments)

    assert probe(late) == (True, "the other")


@needs_onednn
def test_nothing_is_saved_in_a_read_only_folder(probe, tmp_path):
    (tmp_path / "file").touch()
    assert not probe(slow, tmp_path / "file" / "folder")[0]


@needs_onednn
def test_jobs_save_their_choice_in_the_state_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("OFFRL_LINEAR", raising=False)
    (tmp_path / f"linear-{onednn._circumstances(torch.get_num_threads())}.json").write_text('{"faster": true, "seen": "a day"}')
    asked = {"device": torch.device("cpu"), "dtype": torch.float32, "plain": True, "cache_dir": tmp_path}
    assert choose_linear("auto", **asked) == ("onednn", "because of a day")
