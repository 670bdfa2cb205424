"""Settings: dotted names, types, limits, and errors that name the value and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from offrl.errors import InvalidInput, Unknown
from offrld import settings
from offrld.nets import Encoder
from offrld.settings import setting


def plugin_types() -> tuple[str, ...]:
    return ("plain", "wavy", "own")


@dataclass(frozen=True)
class Part:
    """A component: a type, and settings that only some types use."""

    type: str = setting("plain", "a type", choices=plugin_types)
    height: float = setting(1.0, "of waves", only=("wavy",))
    numbers: tuple[float, ...] | None = setting(None, "some numbers", low=0.0)
    options: dict[str, Any] = setting({"a": 1}, "free ones", only=("own",))


@dataclass(frozen=True)
class Flat:
    width: int = setting(1, "a width")


@dataclass(frozen=True)
class Groups:
    encoder: Flat = Flat()


@dataclass(frozen=True)
class Example:
    rate: float = setting(1e-3, "a rate", low=0.0, exclusive_low=True, high=1.0)
    count: int = setting(3, "a count", unit="things", low=1)
    kind: str = setting("a", "a kind", choices=("a", "bee"))
    on: bool = setting(False, "a switch")
    encoder: Encoder = Encoder(units=(8, 8))
    part: Part = Part(height=2.0)


def test_a_dotted_setting_reaches_the_nested_field_and_leaves_the_others():
    built = settings.build(Example(), {"encoder.units": [4], "count": 5})
    assert built.encoder.units == (4,)
    assert built.encoder.activation == "relu"
    assert (built.count, built.rate) == (5, 1e-3)


def test_a_whole_number_is_accepted_for_a_float():
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
        ("encoder.units", [0], "got [0]"),
        ("encoder.units", [8, "x"], "got [8, 'x']"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_what_is_allowed(name, value, text):
    with pytest.raises(InvalidInput) as caught:
        settings.build(Example(), {name: value})
    assert text in str(caught.value)


def test_a_misspelled_setting_suggests_the_nearest():
    with pytest.raises(Unknown) as caught:
        settings.build(Example(), {"encoder.unit": [4]})
    assert "did you mean 'encoder.units'?" in caught.value.hint


def test_a_word_for_a_component_sets_its_type_and_keeps_the_owners_defaults():
    assert settings.build(Example(), {"part": "wavy"}).part == Part(type="wavy", height=2.0)
    assert settings.build(Example(), {"part": {"type": "wavy", "height": 3}}).part == Part(type="wavy", height=3.0)
    with pytest.raises(InvalidInput, match=r"'part.type' takes one of plain, wavy, own, got 'wavey'") as caught:
        settings.build(Example(), {"part": "wavey"})
    assert "did you mean 'wavy'?" in caught.value.hint
    with pytest.raises(InvalidInput, match="'encoder' is a group"):
        settings.build(Groups(), {"encoder": "wide"})
    with pytest.raises(Unknown) as caught:
        settings.build(Example(), {"prt": "wavy"})
    assert "did you mean 'part'?" in caught.value.hint


def test_a_later_layer_wins_whatever_the_form_and_one_layer_must_not_contradict_itself():
    assert settings.build(Example(), {"part.type": "own"}, {"part": "wavy"}).part.type == "wavy"
    assert settings.build(Example(), {"part": "own"}, {"part.type": "wavy"}).part.type == "wavy"
    with pytest.raises(InvalidInput, match=r"'part.type' is given twice, as 'own' and as 'wavy'"):
        settings.build(Example(), {"part": "own", "part.type": "wavy"})


def test_a_setting_that_the_chosen_type_ignores_is_refused_unless_it_has_its_default():
    with pytest.raises(InvalidInput, match=r"setting 'part.height' has no effect with part.type 'plain'") as caught:
        settings.build(Example(), {"part.height": 3.0})
    assert caught.value.hint == "it counts for wavy"
    assert settings.build(Example(), {"part.height": 2.0}) == Example()
    assert settings.build(Example(), {"part.height": 3.0, "part": "wavy"}).part.height == 3.0


def test_the_description_names_the_types_that_use_a_setting():
    described = settings.describe(Example)
    assert described["part.height"].as_json()["only"] == {"part.type": ["wavy"]}
    assert "only" not in described["part.type"].as_json()
    assert described["part.type"].as_json()["choices"] == ["plain", "wavy", "own"]


def test_lists_of_numbers_accept_whole_numbers_and_are_checked_element_by_element():
    assert settings.build(Example(), {"part.numbers": [1, 2.5]}).part.numbers == (1.0, 2.5)
    assert settings.build(Example(), {"part.numbers": None}).part.numbers is None
    for wrong in ([1, -1], ["x"], [True], 3.0):
        with pytest.raises(InvalidInput, match=r"'part.numbers' takes a list of numbers at least 0 or none"):
            settings.build(Example(), {"part.numbers": wrong})


def test_a_table_is_replaced_as_a_whole_or_entry_by_entry():
    own = {"part": "own"}
    assert settings.build(Example(), {**own, "part.options": {"b": 2}}).part.options == {"b": 2}
    assert settings.build(Example(), {**own, "part.options.b": 2}).part.options == {"a": 1, "b": 2}
    assert settings.build(Example(), {**own, "part": {"type": "own", "options": {"c": [1]}}}).part.options == {"c": [1]}
    inside = settings.build(Example(), {**own, "part.options.b.c": 2}, {"part.options.b.d": 3})
    assert inside.part.options == {"a": 1, "b": {"c": 2, "d": 3}}
    with pytest.raises(InvalidInput, match="a table of names and values"):
        settings.build(Example(), {**own, "part.options": {"b": object()}})


def test_a_table_is_not_shared():
    given = {"b": {"c": 1}}
    built = settings.build(Example(), {"part": "own", "part.options": given})
    given["b"]["c"] = 2
    settings.as_flat(built)["part.options"]["b"]["c"] = 3
    assert built.part.options == {"b": {"c": 1}}
    assert Example().part.options is not Example(part=Part()).part.options


def test_two_sides_that_must_differ_read_the_setting_in_question():
    known = settings.describe(Example)
    assert settings.contrast(known, "part.height") == ({"part.type": "wavy"}, {"part.type": "wavy", "part.height": 1.0})
    assert settings.contrast(known, "count") == ({}, {"count": 4})


def test_settings_that_no_installed_type_uses_are_known_and_only_names_valid_choices():
    from offrld.algos import ALGORITHMS

    for algorithm in ALGORITHMS.values():
        known = settings.describe(algorithm.config)
        for name, field in known.items():
            for other, words in field.only.items():
                assert set(words) <= set(known[other].choices), (algorithm.name, name)


def test_the_flat_form_builds_the_same_config_again():
    config = Example(count=9, encoder=Encoder(units=(1, 2, 3), layer_norm=True))
    assert settings.build(Example(), settings.as_flat(config)) == config


def test_every_setting_of_every_algorithm_is_described_in_json():
    import json

    from offrld.algos import ALGORITHMS

    for algorithm in ALGORITHMS.values():
        for name, field in settings.describe(algorithm.config).items():
            described = json.loads(json.dumps(field.as_json()))
            assert described["help"], (algorithm.name, name)
            assert described["type"].removesuffix(" | None") in {"int", "float", "bool", "str", "list[int]", "list[float]", "dict"}
