"""Checks of train jobs against the describe worker's catalog: every mistake gives one line that names the value."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from describe_program import ALGORITHMS

from offrl.errors import InternalError, InvalidInput, Unknown
from offrl.job import TrainSpec
from offrl.set_values import flat
from offrld import settings
from offrld.daemon.workers.catalog import Catalog, checked, checked_environment, fingerprint, parse
from offrld.executors.local import LocalExecutor
from offrld.state.folder import StateFolder

CATALOG = {"algorithms": ALGORITHMS, "environments": ["CartPole-v1", "Hopper-v5"]}
DISCRETE = {"action": {"role": "action", "dtype": "int64", "shape": [], "n": 4}}
SMOOTH = {
    "action": {"role": "observation", "dtype": "int64", "shape": [], "n": 3}, "u": {"role": "action", "dtype": "float32", "shape": [2]},
}  # fmt: skip


def check(fields: dict | None = None, **spec) -> TrainSpec:
    return checked(TrainSpec(**{"algorithm": "anything", "dataset": "d", **spec}), CATALOG, fields)


@pytest.mark.parametrize(
    "config",
    [
        {"learning_rate": 1},
        {"learning_rate": 0.5},
        {"batch_size": 1},
        {"critic_encoder.units": [32]},
        {"critic_encoder.units": []},
        {"critic_encoder": {"units": [8, 8], "activation": "tanh"}},
        {"clip": None},
        {"clip": 0.0},
        {"layer_norm": True},
    ],
)
def test_right_settings_pass_under_their_dotted_names(config: dict) -> None:
    assert check(config=config).config == flat(config)
    assert all("." in name or not isinstance(value, dict) for name, value in check(config=config).config.items())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"learning_rate": "fast"}, "'fast'"),
        ({"learning_rate": True}, "True"),
        ({"learning_rate": 0.0}, "takes a number above 0 and at most 1, got 0.0"),
        ({"learning_rate": 1.5}, "takes a number above 0 and at most 1, got 1.5"),
        ({"learning_rate": float("nan")}, "nan"),
        ({"learning_rate": float("inf")}, "inf"),
        ({"learning_rate": None}, "None"),
        ({"batch_size": 0}, "takes a whole number at least 1, got 0"),
        ({"batch_size": 2.5}, "takes a whole number at least 1, got 2.5"),
        ({"batch_size": False}, "False"),
        ({"critic_encoder.units": 256}, "256"),
        ({"critic_encoder.units": [256, "x"]}, "'x'"),
        ({"critic_encoder.units": [0]}, "takes a list of whole numbers at least 1, got [0]"),
        ({"critic_encoder.activation": "rely"}, "'rely'"),
        ({"layer_norm": 1}, "got 1"),
        ({"clip": -1.0}, "-1.0"),
        ({"behaviour": ["a"]}, "['a']"),
    ],
)
def test_a_wrong_value_is_named_with_its_setting(config: dict, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(config=config)
    (name,) = config
    assert name in str(caught.value)
    assert words in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("spec", "name", "hint"),
    [
        ({"algorithm": "anythng"}, "anythng", "'anything'"),
        ({"config": {"batchsize": 3}}, "batchsize", "'batch_size'"),
        ({"config": {"critic_encoder": {"unit": [1]}}}, "critic_encoder.unit", "'critic_encoder.units'"),
        ({"preset": "papr"}, "papr", "'paper'"),
        ({"eval_env": "Hoper-v5"}, "Hoper-v5", "'Hopper-v5'"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest_known_one(spec: dict, name: str, hint: str) -> None:
    with pytest.raises(Unknown) as caught:
        check(**spec)
    assert repr(name) in str(caught.value)
    assert hint in caught.value.hint


def test_algorithms_and_actions_must_fit() -> None:
    check(DISCRETE, algorithm="discrete_thing")
    check(SMOOTH, algorithm="smooth_thing")
    check(None, algorithm="smooth_thing")
    for fields, name in ((SMOOTH, "discrete_thing"), (DISCRETE, "smooth_thing")):
        check(fields)
        with pytest.raises(InvalidInput, match=f"{name} requires") as caught:
            check(fields, algorithm=name)
        assert "anything" in caught.value.hint
        assert name not in caught.value.hint


def test_combinations_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidInput, match="eval_every=5"):
        check(eval_every=5)
    with pytest.raises(InvalidInput, match="occurs twice"):
        check(seeds=[1, 2, 1])
    with pytest.raises(InvalidInput, match=r"model_thing learns no policy.*CartPole-v1"):
        check(algorithm="model_thing", eval_env="CartPole-v1")
    check(eval_every=5, eval_env="CartPole-v1", preset="paper")


def test_a_setting_of_several_types_takes_each() -> None:
    setting = settings.Setting.of_json("x", {"type": "int | list[float] | None", "default": 1, "help": ""})
    assert [setting.check(value) for value in (1, [1.0, 2], None)] == [1, (1.0, 2.0), None]
    with pytest.raises(InvalidInput, match="takes a whole number or a list of numbers or none, got '1'"):
        setting.check("1")


INF = float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", INF), ("rate", -INF), ("rate", float("nan")), ("rate", 1e39), ("rate", 10**400), ("rate", 0.5), ("rate", 1),
        ("rate", True), ("count", INF), ("count", 2**60), ("count", 1e5), ("count", 1.5), ("sizes", [INF]), ("sizes", [1e39]),
        ("sizes", [1] * 2000), ("sizes", [1, 2.5]), ("sizes", None), ("options", {"a": INF}), ("options", {"a": [1.0, INF]}),
        ("options", {"a": {"b": 1e39}}), ("options", {"a": [1, "x", {"b": None}]}), ("word", "b"), ("word", "c"), ("word", 3),
    ],
)  # fmt: skip
def test_the_daemon_refuses_exactly_the_values_that_the_engine_refuses(name: str, value: object) -> None:
    config = {key: setting.as_json() for key, setting in settings.describe(EveryType).items()}
    catalog = {"algorithms": [{"name": "a", "actions": "both", "presets": {}, "config": config}], "environments": []}

    def refused(check: Callable[[], object]) -> bool:
        try:
            check()
        except InvalidInput:
            return True
        return False

    spec = TrainSpec(algorithm="a", dataset="d", config={name: value})
    assert refused(lambda: checked(spec, catalog, None)) == refused(lambda: settings.build(EveryType(), {name: value}))


@dataclass(frozen=True)
class EveryType:
    rate: float = settings.setting(1e-3, "a rate")
    count: int = settings.setting(3, "a count")
    sizes: tuple[float, ...] | None = settings.setting(None, "sizes")
    options: dict[str, Any] = settings.setting({}, "options")
    word: str = settings.setting("a", "a word", choices=("a", "b"))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"algorithms": 3}', b'{"algorithms": [{}], "environments": []}'])
def test_an_invalid_description_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse(data)


def test_the_fingerprint_is_stable_and_knows_the_command() -> None:
    assert fingerprint(("a",)) == fingerprint(("a",)) != fingerprint(("b",))


PARTS = {
    "scaler.type": {"type": "str", "default": "none", "help": "how", "choices": ["none", "clip", "own"]},
    "scaler.low": {"type": "float | None", "default": None, "help": "limit", "only": {"scaler.type": ["clip"]}},
    "scaler.options": {"type": "dict", "default": {}, "help": "free ones", "only": {"scaler.type": ["own"]}},
}


def part_check(**spec) -> TrainSpec:
    presets = {"clipped": {"scaler": "clip"}}
    catalog = {"algorithms": [{"name": "a", "actions": "both", "presets": presets, "config": PARTS}], "environments": []}
    return checked(TrainSpec(**{"algorithm": "a", "dataset": "d", **spec}), catalog, None)


def test_an_unknown_name_says_where_to_look() -> None:
    with pytest.raises(Unknown) as refused:
        part_check(config={"zzz": 1})
    assert refused.value.hint == "`offrl algos a` lists them"
    with pytest.raises(Unknown, match="the daemon imports none by name"):
        checked_environment("mine:Arm-v0", {"environments": ["Arm-v0"]})


def test_components_are_taken_by_their_types_name_and_tables_by_entry() -> None:
    for config in ({"scaler": "clip", "scaler.low": 1.0}, {"scaler": {"type": "own", "options": {"depth": {"of": 2}}}}):
        assert part_check(config=config).config == flat(config)
    with pytest.raises(InvalidInput, match=r"a: setting 'scaler.type' takes one of none, clip, own, got 'clap'"):
        part_check(config={"scaler": "clap"})


def test_a_setting_that_the_type_does_not_read_is_refused_at_once_with_presets_counted_in() -> None:
    with pytest.raises(InvalidInput, match=r"'scaler.low' has no effect with scaler.type 'none'"):
        part_check(config={"scaler.low": 1.0})
    assert part_check(config={"scaler.low": 1.0}, preset="clipped").config == {"scaler.low": 1.0}
    with pytest.raises(InvalidInput, match=r"'scaler.options' has no effect with scaler.type 'clip'"):
        part_check(config={"scaler.options.depth": 2}, preset="clipped")


MORTAL = """
import os, signal, sys
with open({starts!r}, "a") as file:
    file.write("x")
if os.path.getsize({starts!r}) <= {deaths}:
    os.kill(os.getpid(), signal.SIGKILL)
sys.path.insert(0, {folder!r})
import runpy; runpy.run_path({program!r}, run_name="__main__")
"""


@pytest.mark.parametrize("deaths", [0, 2, 3])
def test_a_describe_worker_that_a_signal_ends_is_started_again(tmp_path: Path, deaths: int) -> None:
    state, starts = StateFolder(tmp_path / "state"), tmp_path / "starts"
    state.cache.mkdir(parents=True)
    here = Path(__file__).resolve().parent
    code = MORTAL.format(starts=str(starts), deaths=deaths, folder=str(here), program=str(here / "describe_program.py"))
    catalog = Catalog(state, LocalExecutor(["none"], [sys.executable, "-S", "-c", code]))
    if deaths < 3:
        assert [entry["name"] for entry in asyncio.run(catalog.ready())["algorithms"]] == [entry["name"] for entry in ALGORITHMS]
    else:
        with pytest.raises(InternalError, match="exit status -9"):
            asyncio.run(catalog.ready())
    assert starts.read_text() == "x" * min(deaths + 1, 3)
