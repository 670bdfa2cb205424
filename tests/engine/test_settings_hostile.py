"""Any value of a setting is accepted or refused in one short line, before anything is built."""

import pytest

from offrl.errors import OffrlError
from offrld import settings
from offrld.algos import get, names

ODD = [
    10**5000, -(10**5000), float("nan"), float("inf"), -float("inf"), 1e400, -1, 0, 1.5, "x", "x" * 10**6, "\x1b[31m", "", [], [[]], {},
    True, None, [float("nan")], [10**5000], [-1], [0], ["a"], [True], [1] * 10**5, {"a": 10**5000},
    {"a": {"b": float("inf")}}, b"x", object(), 1 + 2j,
    10**18, [10**18], 1e39,
]  # fmt: skip
SIZES = ("units", "channels", "filters", "feature_size", "hidden_size", "blocks", "batch_size", "dynamics_batch_size", "context_size")
SETTINGS = {
    (name.rpartition(".")[2], each.type, each.low, each.high): (algorithm, name)
    for algorithm in names()
    for name, each in settings.describe(get(algorithm).config).items()
}


@pytest.mark.parametrize(("algorithm", "name"), SETTINGS.values(), ids=lambda each: each)
def test_an_odd_value_is_accepted_or_refused_in_one_short_line(algorithm, name):
    for value in ODD:
        try:
            get(algorithm).configure({name: value})
        except OffrlError as refused:
            said = str(refused)
            assert "\n" not in said and "\x1b" not in said
            assert len(said) < 700
            assert name.rpartition(".")[2] in said


@pytest.mark.parametrize("value", [float("inf"), 1e400, float("nan"), 1e39, "0.9", -0.1, 1.1])
def test_a_discount_is_a_number_from_0_to_1(value):
    with pytest.raises(OffrlError, match="setting 'gamma' takes a number at least 0 and at most 1"):
        get("td3_bc").configure({"gamma": value})


@pytest.mark.parametrize("value", [float("inf"), 1e39, 10**400])
def test_numbers_beyond_float32_are_refused_where_there_is_no_limit(value):
    with pytest.raises(OffrlError, match="setting 'alpha'"):
        get("td3_bc").configure({"alpha": value})


SIZED = [pair for pair in SETTINGS.values() if pair[1].rpartition(".")[2] in SIZES]


@pytest.mark.parametrize(("algorithm", "name"), SIZED, ids=lambda each: each)
def test_sizes_that_fill_a_machine_are_refused(algorithm, name):
    kind = settings.describe(get(algorithm).config)[name].type
    huge = [10**9] * 3 if kind.startswith("list") else 10**9
    with pytest.raises(OffrlError, match="at most"):
        get(algorithm).configure({name: huge})
