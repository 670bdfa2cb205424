"""Encoders of installed packages: listed by name without an import, built by name, refused in one line if they are invalid."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from offrl.errors import InvalidInput, Unknown
from offrld import settings
from offrld.nets import Encoder
from offrld.nets.encoders import build, types

PLUGIN = """
import torch
from offrl.errors import InvalidInput
from offrld.nets.linear import Linear


class Fourier:
    def __init__(self, name, size, features, action_size):
        self.feature_size = 2 * features
        self._linear = Linear(name, size + action_size, features)

    def init(self, generator, dtype):
        return self._linear.init(generator, dtype)

    def __call__(self, params, observation, action=None):
        x = self._linear(params, observation) if action is None else self._linear(params, observation, action)
        return torch.cat([torch.sin(x), torch.cos(x)], dim=-1)


def build(name, view, encoder, action_size):
    unknown = set(encoder.options) - {"features"}
    if unknown:
        raise InvalidInput(f"encoder fourier does not know {sorted(unknown)}", hint="it takes features")
    return Fourier(name, view[0], encoder.options.get("features", 16), action_size)
"""
POINTS = {
    "fourier": "offrl_test_fourier",
    "broken": "offrl_test_broken",
    "bare": "offrl_test_bare",
    "nothing": "offrl_test_nothing",
    "vector": "offrl_test_broken",
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package with entry points in a folder of ``sys.path``."""
    (tmp_path / "offrl_test_fourier.py").write_text(PLUGIN)
    (tmp_path / "offrl_test_broken.py").write_text("import offrl_no_such_module\n")
    (tmp_path / "offrl_test_bare.py").write_text("")
    (tmp_path / "offrl_test_nothing.py").write_text("def build(*arguments):\n    return None\n")
    info = tmp_path / "offrl_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offrl-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[offrl.encoders]\n" + "".join(f"{name} = {module}\n" for name, module in POINTS.items()))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for module in POINTS.values():
        sys.modules.pop(module, None)


def test_an_installed_encoder_is_listed_without_being_imported(installed):
    assert types()[:6] == ("default", "vector", "dense", "pixel", "impala", "simba")
    assert {"fourier", "broken"} <= set(types())
    assert types().count("vector") == 1
    assert "fourier" in settings.describe(Encoder)["type"].choices
    assert not any(module in sys.modules for module in POINTS.values())


def test_an_installed_encoder_is_built_with_its_options_and_computes(installed):
    encoder = settings.build(Encoder(), {"type": "fourier", "options": {"features": 5}})
    network = build("net", (3,), encoder, 2)
    params = network.init(torch.Generator().manual_seed(0), torch.float64)
    assert params.keys() == {"net.weight", "net.bias"}
    assert network.feature_size == 10
    features = network(params, torch.randn(6, 3).double(), torch.randn(4, 6, 2).double())
    assert features.shape == (4, 6, 10)
    torch.testing.assert_close(features[..., :5] ** 2 + features[..., 5:] ** 2, torch.ones(4, 6, 5).double())


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (Encoder(type="fourier", options={"feature": 5}), "does not know ['feature']"),
        (Encoder(type="broken"), "'broken' of 'offrl.encoders' cannot be loaded from offrl_test_broken: ModuleNotFoundError"),
        (Encoder(type="bare"), "'bare' of 'offrl.encoders' (offrl_test_bare) has no function build"),
        (Encoder(type="nothing"), "'nothing' built NoneType, which is not a network"),
    ],
    ids=lambda value: getattr(value, "type", ""),
)
def test_an_invalid_installed_encoder_gives_a_one_line_error(installed, encoder, words):
    with pytest.raises(InvalidInput) as caught:
        build("net", (3,), encoder)
    assert words in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_package_cannot_replace_a_built_in_encoder(installed):
    assert build("net", (3,), Encoder(type="vector")).feature_size == 256
    assert "offrl_test_broken" not in sys.modules


def test_a_name_claimed_by_two_packages_is_refused(installed, tmp_path):
    info = tmp_path / "offrl_other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offrl-other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[offrl.encoders]\nfourier = offrl_test_bare\n")
    importlib.invalidate_caches()
    with pytest.raises(InvalidInput, match="claimed by offrl_test_bare and by offrl_test_fourier"):
        build("net", (3,), Encoder(type="fourier"))


def test_an_unknown_type_suggests_the_nearest(installed):
    with pytest.raises(Unknown) as caught:
        build("net", (3,), Encoder(type="furier"))
    assert caught.value.hint == "did you mean 'fourier'?"


def test_a_package_that_is_not_installed_is_not_listed():
    assert "fourier" not in types()
