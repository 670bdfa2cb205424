"""Every setting of every algorithm matters: another value changes the update, the networks, the schedule or the policy.

An algorithm's own settings are proved one by one. A component (encoder, optimizer, ...) is proved once, setting by setting, on one
algorithm that has it; of every algorithm it is then enough to show that each of its components is read, and by its own networks.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import typing

import numpy as np
import pytest
import torch
from cheap_settings import FROM_DATA, action_of, cheap_learner, cheap_settings, other_run

from offrl.errors import InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld import settings
from offrld.algos import ALGORITHMS
from offrld.engine import ObservationScaler, Optimizer, RewardScaler
from offrld.nets import Encoder, QFunction

UPDATES = 4
OBSERVATIONS = torch.linspace(-2.0, 2.0, 15).reshape(5, 3)


def components(config) -> dict[str, type]:
    """Name and class of each component of a config."""
    hints = typing.get_type_hints(type(config))
    found = {field.name: hints[field.name] for field in dataclasses.fields(config)}
    return {name: kind for name, kind in found.items() if dataclasses.is_dataclass(kind)}


def own_settings(config) -> list[str]:
    """The settings of the algorithm itself."""
    return [name for name in settings.describe(config) if "." not in name]


# --- What is proved where ---
OWN = [(algorithm, name) for algorithm in FROM_DATA.values() for name in own_settings(algorithm.config) if name not in algorithm.inputs]
INPUTS = [(algorithm, name) for algorithm in FROM_DATA.values() for name in algorithm.inputs]
SLOTS = [(algorithm, name, kind) for algorithm in FROM_DATA.values() for name, kind in components(algorithm.config).items()]
# Where a component is proved if not in the first algorithm of the registry that has it: Q functions where both losses read them.
WHERE = {
    Encoder: ("bc", "encoder"), QFunction: ("td3_bc", "q_function"), Optimizer: ("bc", "optimizer"), RewardScaler: ("td3", "reward_scaler"),
}  # fmt: skip
COMPONENTS = {kind: (algorithm.name, name) for algorithm, name, kind in reversed(SLOTS)} | WHERE
INNER = [(kind, name) for kind in COMPONENTS for name in settings.describe(kind)]

# The setting that shows that a component is read. A type that is new would show in the names of the optimizer's tensors alone.
SHOWS = {Encoder: "activation", Optimizer: "weight_decay", RewardScaler: "multiplier"}
# Settings that only images read, with a value that fits the small ones here; and those that types of other packages read.
PIXELS = {(Encoder, "filters"): [4, 3, 2], (Encoder, "channels"): [2]}
OPTIONS = {
    (Encoder, "options"): {"features": 5}, (QFunction, "options"): {"members": 3}, (ObservationScaler, "options"): {"factor": 2.0},
    (RewardScaler, "options"): {"factor": 2.0},
}  # fmt: skip

# What an algorithm does not do it says, rather than ignore the setting: these compare or imagine single observations.
REFUSED = {("prdc", "frame_stack"), ("mopo", "frame_stack"), ("combo", "frame_stack")}
# A batch is drawn for every algorithm; these learn nothing of it.
IDLE = {("random_policy", "batch_size"), ("discrete_random_policy", "batch_size")}


# --- Stores and packages ---
@pytest.fixture(scope="session")
def pixel_store(tmp_path_factory):
    """Random images with two continuous actions."""
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("stores") / "pixels"
    schema = Schema(observation=Field("uint8", (1, 12, 12)), action=Field("float32", (2,), low=-1.0, high=1.0), reward=Field("float32"))
    store = EpisodeStore.create(path, schema)
    with store.writer() as writer:
        for _ in range(4):
            images = random.integers(0, 255, (11, 1, 12, 12), dtype=np.uint8)
            actions = random.uniform(-1, 1, (10, 2)).astype(np.float32)
            writer.append(Episode(observation=images, action=actions, reward=np.ones(10, np.float32), terminated=True))
    return EpisodeStore.open(path)


PACKAGE = """
import torch
from offrld.nets.linear import Linear


class Waves:
    def __init__(self, name, size, features):
        self.feature_size, self._linear = features, Linear(name, size, features)

    def init(self, generator, dtype):
        return self._linear.init(generator, dtype)

    def __call__(self, params, observation, action=None):
        return torch.sin(self._linear(params, observation))


def build(name, view, encoder, action_size):
    return Waves(name, view[0] + action_size, encoder.options.get("features", 16))


def fit(blocks, options):
    return {"factor": options.get("factor", 1.0)}


def transform(x, parts):
    return torch.asinh(x) * parts["factor"]


def reverse(y, parts):
    return torch.sinh(y / parts["factor"])


def size(options):
    return options.get("members", 2)


def mean(numbers, options):
    return numbers.mean(-1)


def errors(numbers, target, options):
    return ((numbers - target) ** 2).sum(-1)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with an encoder, a Q function and a scaler named waves."""
    (tmp_path / "offrl_test_waves.py").write_text(PACKAGE)
    folder = tmp_path / "offrl_test_waves-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: offrl-test-waves\nVersion: 1.0\n")
    groups = "".join(f"[{group}]\nwaves = offrl_test_waves\n" for group in ("offrl.encoders", "offrl.q_functions", "offrl.scalers"))
    (folder / "entry_points.txt").write_text(groups)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield "waves"
    sys.modules.pop("offrl_test_waves", None)


# --- Training both sides ---
def str_of(value) -> str:
    """The name of an algorithm, a class or a setting."""
    return value if isinstance(value, str) else getattr(value, "name", None) or value.__name__


@pytest.fixture(scope="module")
def outcome():
    """``(algorithm, store, settings) -> `` the state after a few updates and what the policy then does; each trained once."""
    known = {}

    def trained(algorithm, store, values):
        key = (algorithm.name, str(store.path), str(values))
        if key not in known:
            learner = cheap_learner(algorithm, store, values, dtype=torch.float64)
            learner.run(UPDATES)
            tensors = learner.state.tensors()
            known[key] = {name: value.clone() for name, value in tensors.items() if not name.startswith("optimizer/")}
            if len(learner.space_.view) == 1 and algorithm.acts:
                seen = OBSERVATIONS.repeat(1, learner.config.frame_stack)
                known[key]["policy"] = action_of(learner.policy(0), seen)
        return known[key]

    return trained


def assert_differ(one, other, what):
    same = one.keys() == other.keys() and all(one[name].shape == other[name].shape and torch.equal(one[name], other[name]) for name in one)
    assert not same, f"{what} has no effect within {UPDATES} updates"


def sides(algorithm, name):
    """Two groups of settings that differ in ``name`` alone, from what the tests otherwise train with too."""
    common, changed = settings.contrast(settings.describe(algorithm.config), name)
    assert cheap_settings(algorithm, common).get(name) != changed[name]
    return common, changed


@pytest.mark.parametrize(("algorithm", "name"), OWN, ids=str_of)
def test_every_setting_of_an_algorithm_matters(algorithm, name, store_for, outcome):
    store, (common, changed) = store_for(algorithm), sides(algorithm, name)
    if (algorithm.name, name) in REFUSED:
        with pytest.raises(InvalidInput):
            outcome(algorithm, store, changed)
    elif (algorithm.name, name) not in IDLE:
        assert_differ(outcome(algorithm, store, common), outcome(algorithm, store, changed), f"{algorithm.name}: {name}")


@pytest.mark.parametrize(("algorithm", "name"), INPUTS, ids=str_of)
def test_every_setting_that_names_another_job_matters(algorithm, name, store_for, outcome, tmp_path):
    store, results = store_for(algorithm), []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.safetensors"
        other_run(algorithm.inputs[name], store, seed).save(path)
        results.append(outcome(algorithm, store, {name: str(path)}))
    assert_differ(*results, f"{algorithm.name}: {name}")


@pytest.mark.parametrize(("kind", "name"), INNER, ids=str_of)
def test_every_setting_of_a_component_matters(kind, name, store_for, pixel_store, outcome, request):
    owner, slot = COMPONENTS[kind]
    algorithm, full = ALGORITHMS[owner], f"{slot}.{name}"
    store = store_for(algorithm)
    if (kind, name) in OPTIONS:
        common = {f"{slot}.type": request.getfixturevalue("package")}
        changed = {**common, full: OPTIONS[kind, name]}
    else:
        common, changed = sides(algorithm, full)
    if (kind, name) in PIXELS:
        store, common = pixel_store, {**common, full: PIXELS[kind, name]}
    assert_differ(outcome(algorithm, store, common), outcome(algorithm, store, changed), f"{owner}: {full}")


@pytest.mark.parametrize(("algorithm", "slot", "kind"), SLOTS, ids=str_of)
def test_every_component_of_an_algorithm_is_read(algorithm, slot, kind, store_for, outcome):
    name = SHOWS.get(kind) or next(iter(settings.describe(kind)))
    store, (common, changed) = store_for(algorithm), sides(algorithm, f"{slot}.{name}")
    assert_differ(outcome(algorithm, store, common), outcome(algorithm, store, changed), f"{algorithm.name}: {slot}")


# --- Each component where it belongs ---
def shapes(algorithm, store, values):
    """Name -> shape of every tensor of the training state at its start."""
    state = cheap_learner(algorithm, store, values).state.tensors()
    return {name: tuple(value.shape) for name, value in state.items()}


def owners(before, after, part) -> set[str]:
    """Networks (part ``params``) or steps (``optimizer``) whose tensors differ in name or shape."""
    names = {name for name in before.keys() ^ after.keys() if name.startswith(f"{part}/")}
    names |= {name for name in before.keys() & after.keys() if name.startswith(f"{part}/") and before[name] != after[name]}
    return {name.split("/")[1].split(".")[0] if part == "params" else name.split("/")[1] for name in names}


@pytest.mark.parametrize(
    ("kind", "setting", "value", "part"),
    [(Encoder, "layer_norm", True, "params"), (Optimizer, "type", "sgd", "optimizer")],
    ids=["encoder", "optimizer"],
)
@pytest.mark.parametrize("algorithm", FROM_DATA.values(), ids=lambda a: a.name)
def test_no_two_encoders_and_no_two_optimizers_have_the_same_part(algorithm, kind, setting, value, part, store_for):
    store, seen = store_for(algorithm), {}
    slots = {name for name, each in components(algorithm.config).items() if each is kind}
    before = shapes(algorithm, store, {}) if slots else {}
    for slot in sorted(slots):
        default = settings.describe(algorithm.config)[f"{slot}.{setting}"].default
        other = value if default != value else {"sgd": "adam", True: False}[value]
        for owner in owners(before, shapes(algorithm, store, {f"{slot}.{setting}": other}), part):
            assert owner not in seen, f"{owner} is shaped by {seen[owner]} and by {slot}"
            seen[owner] = slot
    assert set(seen.values()) == slots, f"{algorithm.name}: nothing belongs to {slots - set(seen.values())}"
