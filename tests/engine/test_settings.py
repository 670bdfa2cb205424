"""Settings: dotted names, types, limits, and errors that name the value and what to do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from offrl.errors import InvalidInput, Unknown
from offrld import settings
from offrld.nets import Encoder
from offrld.settings import setting


@dataclass(frozen=True)
class Example:
    rate: float = setting(1e-3, "a rate", low=0.0, exclusive_low=True, high=1.0)
    count: int = setting(3, "a count", unit="things", low=1)
    kind: str = setting("a", "a kind", choices=("a", "bee"))
    on: bool = setting(False, "a switch")
    encoder: Encoder = Encoder(units=(8, 8))


def test_a_dotted_setting_reaches_the_nested_field_and_leaves_the_others():
    built = settings.build(Example(), {"encoder.units": [4], "count": 5})
    assert built.encoder.units == (4,)
    assert built.encoder.activation == "relu"
    assert (built.count, built.rate) == (5, 1e-3)


def test_a_whole_number_is_taken_where_a_float_is_meant():
    assert settings.build(Example(), {"rate": 1}).rate == 1.0


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("rate", 0.0, "'rate' takes a number above 0 and at most 1, got 0.0"),
        ("rate", float("nan"), "got nan"),
        ("rate", "fast", "got 'fast'"),
        ("count", 1.5, "'count' takes a whole number at least 1, got 1.5"),
        ("count", True, "got True"),
        ("on", 1, "takes true or false, got 1"),
        ("kind", "be", "takes one of a, bee, got 'be'"),
        ("encoder.units", [0], "got (0,)"),
        ("encoder.units", [8, "x"], "got (8, 'x')"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_what_is_allowed(name, value, text):
    with pytest.raises(InvalidInput) as caught:
        settings.build(Example(), {name: value})
    assert text in str(caught.value)


def test_a_misspelled_setting_is_answered_with_the_nearest():
    with pytest.raises(Unknown) as caught:
        settings.build(Example(), {"encoder.unit": [4]})
    assert "did you mean 'encoder.units'?" in caught.value.hint


def test_the_flat_form_builds_the_same_config_again():
    config = Example(count=9, encoder=Encoder(units=(1, 2, 3), layer_norm=True))
    assert settings.build(Example(), settings.as_flat(config)) == config


def test_every_setting_of_every_algorithm_says_what_it_means_in_json():
    import json

    from offrld.algos import ALGORITHMS

    for algorithm in ALGORITHMS.values():
        for name, field in settings.describe(algorithm.config).items():
            described = json.loads(json.dumps(field.as_json()))
            assert described["help"], (algorithm.name, name)
            assert described["type"].removesuffix(" | None") in {"int", "float", "bool", "str", "list[int]", "list[float]", "dict"}
