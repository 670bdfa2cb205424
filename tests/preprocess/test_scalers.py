"""Scalers: what they are fitted on, what they map where and back, and that sums of rewards are sums of scaled ones."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from offrl.errors import InvalidInput, Unknown
from offrl_store.format import FINAL_MISSING
from offrld import settings
from offrld.algos import ALGORITHMS
from offrld.engine import Learner
from offrld.export.onnx import export_policy
from offrld.preprocess import statistics
from offrld.preprocess.rewards import RewardScaler, fit_reward, needs_column, reward_column
from offrld.preprocess.scalers import ActionScaler, Affine, ObservationScaler, fit_action, fit_observation, observation_between

CPU = torch.device("cpu")
F64 = torch.float64


def learner_of(store, **values):
    algorithm = ALGORITHMS["td3_bc"]
    holdout = values.pop("holdout", 0.0)
    config = algorithm.configure({"batch_size": 16, "observation_scaler": "none", **values})
    return Learner.create(algorithm, config, store, dtype=torch.float64, holdout=holdout)


def starting_rows(store, episodes):
    """The observations that start a transition, and their rewards, of some episodes."""
    observations, received = [], []
    for number in episodes:
        episode, record = store.episodes[int(number)], store.episode_table[int(number)]
        lost = int(record["flags"]) == FINAL_MISSING
        observations.append(episode.observation[: episode.steps - lost])
        received.append(episode.reward[: episode.steps - lost])
    return np.concatenate(observations).astype(np.float64), np.concatenate(received).astype(np.float64)


@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_observations_are_standardised_by_the_transitions_of_the_training_episodes(continuous_store, holdout):
    learner = learner_of(continuous_store, observation_scaler="standard", holdout=holdout)
    training = sorted(set(range(len(continuous_store))) - set(learner.holdout.tolist()))
    rows, _ = starting_rows(continuous_store, training)
    scaler = learner.scalers.observation["observation"]
    np.testing.assert_allclose(scaler.shift, rows.mean(0), rtol=1e-10)
    np.testing.assert_allclose(1 / scaler.scale, rows.std(0) + 1e-3, rtol=1e-10)


def test_min_max_maps_observations_onto_minus_one_to_one(continuous_store):
    learner = learner_of(continuous_store, observation_scaler="min_max")
    rows, _ = starting_rows(continuous_store, range(len(continuous_store)))
    scaled = learner.scalers.observation["observation"](torch.from_numpy(rows))
    np.testing.assert_allclose(scaled.amin(0), -1, atol=1e-12)
    np.testing.assert_allclose(scaled.amax(0), 1, atol=1e-12)


def test_a_dimension_that_never_changes_maps_to_zero():
    scaler = Affine.between(np.array([2.0, 0.0]), np.array([2.0, 4.0]), torch.float64, torch.device("cpu"))
    assert scaler(torch.tensor([[2.0, 4.0]], dtype=torch.float64)).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("kind", ["standard", "min_max"])
def test_every_steps_reward_is_scaled_before_the_n_step_sum(continuous_store, kind):
    learner = learner_of(continuous_store, reward_scaler=kind, n_steps=3, gamma=0.9)
    _, received = starting_rows(continuous_store, range(len(continuous_store)))
    if kind == "standard":
        shift, scale = received.mean(), 1 / (received.std() + 1e-3)
    else:
        shift, scale = (received.max() + received.min()) / 2, 2 / (received.max() - received.min())
    feed = learner.trainer.feeds.several_steps[0]
    batch = feed.batch(0)
    index = feed.source.samples(0).batch.index.numpy()
    column, table = continuous_store.column("reward"), continuous_store.episode_table
    for row, value, discount in zip(index, batch.reward, batch.discount, strict=True):
        record = table[np.searchsorted(table["first_row"], row, side="right") - 1]
        used = round(np.log(float(discount)) / np.log(0.9))
        assert 1 <= used <= min(3, record["first_row"] + record["steps"] - row)
        expected = sum(0.9**i * (float(column[row + i]) - shift) * scale for i in range(used))
        assert float(value) == pytest.approx(expected, abs=1e-5)


def test_actions_are_scaled_by_their_bounds_and_back(continuous_store):
    learner = learner_of(continuous_store)
    feed = learner.trainer.feeds.several_steps[0]
    batch = feed.batch(0)
    raw = feed.source.samples(0).batch.action.double()
    torch.testing.assert_close(batch.action, raw / 2)
    torch.testing.assert_close(learner.scalers.action.reverse(batch.action), raw)


def test_the_same_scalers_are_found_again_in_a_checkpoint(continuous_store, tmp_path):
    learner = learner_of(continuous_store, observation_scaler="standard", reward_scaler="standard")
    learner.save(tmp_path / "c.safetensors")
    other = learner_of(continuous_store, observation_scaler="standard", reward_scaler="standard")
    other.scalers.observation["observation"].shift.zero_()
    other.restore(tmp_path / "c.safetensors")
    for name, value in learner.scalers.tensors().items():
        assert torch.equal(other.scalers.tensors()[name], value)


# --- Observations ---
IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
VECTORS = np.random.default_rng(1).normal(size=(50, 3)) * [1, 7, 0] + [5, 0, 2]


def fitted(spec, columns):
    return fit_observation(spec, columns, {name: lambda column=column: iter((column,)) for name, column in columns.items()}, F64, CPU)


def test_images_are_divided_by_255_whatever_is_not_asked_for():
    for spec in (ObservationScaler(), ObservationScaler(type="pixel")):
        scaler = fitted(spec, {"observation": IMAGES})["observation"]
        np.testing.assert_allclose(scaler(torch.from_numpy(IMAGES).double()), IMAGES / 255.0, rtol=1e-15)
        np.testing.assert_allclose(scaler.reverse(scaler(torch.from_numpy(IMAGES).double())), IMAGES, rtol=1e-12)


def test_beside_images_vectors_are_scaled_as_asked_for_and_single_fields_as_named():
    columns = {"camera": IMAGES, "arm": VECTORS, "raw": VECTORS}
    found = fitted(ObservationScaler(type="standard", fields={"raw": "none"}), columns)
    assert found["raw"] is None
    assert float(found["camera"].scale) == pytest.approx(1 / 255)
    scaled = found["arm"](torch.from_numpy(VECTORS))
    np.testing.assert_allclose(scaled, (VECTORS - VECTORS.mean(0)) / (VECTORS.std(0) + 1e-3), rtol=1e-12)
    assert fitted(ObservationScaler(), columns)["arm"] is None


def test_vectors_are_not_pixels():
    with pytest.raises(InvalidInput, match="pixel scaling needs uint8 observations, got float64"):
        fitted(ObservationScaler(type="pixel"), {"observation": VECTORS})


def test_statistics_given_by_hand_are_used_in_the_order_of_the_fields_and_the_others_fitted():
    columns = {"one": VECTORS[:, :2], "two": VECTORS[:, 2:]}
    found = fitted(ObservationScaler(type="standard", mean=(1.0, 2.0, 3.0), std=(0.5,), eps=0.0), columns)
    assert [found[n].shift.tolist() for n in columns] == [[1.0, 2.0], [3.0]]
    assert [found[n].scale.tolist() for n in columns] == [[2.0, 2.0], [2.0]]
    least = fitted(ObservationScaler(type="min_max", minimum=(-100.0,)), columns)["one"]
    np.testing.assert_allclose(least(torch.tensor([[-100.0, -100.0]], dtype=F64)), -1)
    np.testing.assert_allclose(least(torch.from_numpy(VECTORS[:, :2])).amax(0), 1)


def test_as_many_numbers_as_elements_are_asked_for():
    with pytest.raises(InvalidInput, match=r"observation_scaler.mean has 2 numbers for 3 elements of the observation"):
        fitted(ObservationScaler(type="standard", mean=(1.0, 2.0)), {"observation": VECTORS})


def test_an_element_without_deviation_stays_finite_even_with_eps_zero():
    scaler = fitted(ObservationScaler(type="standard", eps=0.0), {"observation": VECTORS})["observation"]
    assert scaler(torch.from_numpy(VECTORS))[:, 2].tolist() == [0.0] * 50


def test_a_scaler_of_stacked_frames_treats_each_alike():
    spec = ObservationScaler(type="standard")
    for column in (VECTORS, IMAGES):
        scaler = fit_observation(replace(spec, fields={"x": "standard"}), {"x": column}, {"x": lambda c=column: iter((c,))}, F64, CPU)["x"]
        frames = torch.from_numpy(np.concatenate([column[:1], column[1:2]], axis=1)).double()  # [1, 2 D] or [1, 2 C, H, W]
        single = [scaler(torch.from_numpy(column[i : i + 1]).double()) for i in (0, 1)]
        torch.testing.assert_close(scaler.stacked(2)(frames), torch.cat(single, dim=1))


def test_min_max_is_fitted_from_an_environments_bounds_and_what_bounds_do_not_say_is_refused():
    low, high = np.array([-1.0, 0.0], np.float32), np.array([3.0, 8.0], np.float32)
    scaler = observation_between(ObservationScaler(type="min_max"), {"observation": (low, high)}, F64, CPU)["observation"]
    assert scaler(torch.tensor([[-1.0, 8.0], [1.0, 4.0]], dtype=F64)).tolist() == [[-1.0, 1.0], [0.0, 0.0]]
    with pytest.raises(InvalidInput, match="standard scaling of observations cannot be fitted from an environment's bounds"):
        observation_between(ObservationScaler(type="standard"), {"observation": (low, high)}, F64, CPU)
    with pytest.raises(InvalidInput, match="unbounded elements"):
        observation_between(ObservationScaler(type="min_max"), {"observation": (low, high * np.inf)}, F64, CPU)


def test_values_that_are_not_finite_are_refused_rather_than_fitted():
    with pytest.raises(InvalidInput, match="not finite"):
        fitted(ObservationScaler(type="standard"), {"observation": np.array([[1.0], [np.nan]])})


def test_statistics_read_blocks_whose_size_does_not_grow_with_the_row_or_the_column():
    for shape in ((3_000_000,), (40, 3, 400, 300)):
        column = np.zeros(shape, np.uint8)
        sizes = [block.size for block in statistics.rows(column, np.ones(len(column), bool))]
        assert sum(sizes) == column.size
        assert max(sizes) <= 1 << 20


# --- Actions ---
def test_actions_are_scaled_by_given_limits_by_bounds_or_not_at_all():
    low, high = np.array([-2.0, 0.0]), np.array([2.0, 10.0])
    assert fit_action(ActionScaler(type="none"), low, high, F64, CPU) is None
    assert fit_action(ActionScaler(), -np.ones(2), np.ones(2), F64, CPU) is None
    for kind in ("auto", "min_max"):
        scaler = fit_action(ActionScaler(type=kind), low, high, F64, CPU)
        assert scaler(torch.tensor([[-2.0, 10.0]], dtype=F64)).tolist() == [[-1.0, 1.0]]
    given = fit_action(ActionScaler(type="min_max", minimum=(-4.0,), maximum=(4.0, 20.0)), low, high * np.inf, F64, CPU)
    assert given.reverse(torch.tensor([[1.0, 0.0]], dtype=F64)).tolist() == [[4.0, 8.0]]
    with pytest.raises(InvalidInput, match="action dimension 1 has the bounds 0 and inf"):
        fit_action(ActionScaler(), low, np.array([1.0, np.inf]), F64, CPU)


# --- Rewards ---
R = np.random.default_rng(2).normal(size=200) * 3 + 1
RETURNS = np.array([-4.0, 10.0, 6.0])
LEAST, MOST = R.min(), R.max()
TABLE = [
    ({"type": "multiply", "multiplier": 2.5}, 2.5 * R),
    ({"type": "clip", "low": -1.0, "high": 2.0, "multiplier": 3.0}, 3 * np.clip(R, -1, 2)),
    ({"type": "clip", "high": 0.5}, np.minimum(R, 0.5)),
    ({"type": "min_max", "multiplier": 4.0}, 4 * (2 * (R - LEAST) / (MOST - LEAST) - 1)),
    ({"type": "min_max", "minimum": -10.0, "maximum": 30.0}, 2 * (R + 10) / 40 - 1),
    ({"type": "standard", "multiplier": 2.0}, 2 * (R - R.mean()) / (R.std() + 1e-3)),
    ({"type": "standard", "mean": 1.0, "std": 2.0, "eps": 0.5}, (R - 1) / 2.5),
    ({"type": "return", "multiplier": 1000.0}, 1000 * R / 14),
    ({"type": "return", "return_max": 16.0}, R / 20),
    ({"type": "shift", "shift": -1.0, "multiplier": 3.0}, 3 * (R - 1)),
    ({"type": "shift", "shift": -1.0, "multiplier": 3.0, "multiply_first": True}, 3 * R - 1),
]


def reward_scaler(values):
    return fit_reward(settings.build(RewardScaler(), values), lambda: iter((R[:70], R[70:])), lambda: RETURNS, F64, CPU)


@pytest.mark.parametrize(("values", "expected"), TABLE, ids=str)
def test_rewards_are_scaled_as_the_formula_says_and_back(values, expected):
    scaler = reward_scaler(values)
    scaled = scaler(torch.from_numpy(R))
    np.testing.assert_allclose(scaled, expected, rtol=1e-12, atol=1e-12)
    back = np.clip(R, values.get("low", -np.inf), values.get("high", np.inf)) if values["type"] == "clip" else R
    np.testing.assert_allclose(scaler.reverse(scaled), back, rtol=1e-12, atol=1e-12)


def test_episodes_of_equal_return_do_not_divide_by_zero():
    scaler = fit_reward(RewardScaler(type="return"), lambda: iter((R,)), lambda: np.array([3.0, 3.0]), F64, CPU)
    assert float(scaler(torch.tensor(2.0, dtype=F64))) == 2.0


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"type": "clip"}, "clip needs low or high"),
        ({"type": "clip", "low": 2.0, "high": 1.0}, "low 2 is above high 1"),
        ({"type": "multiply", "multiplier": 0.0}, "multiplier is 0"),
        ({"type": "multiply", "shift": 1.0}, "'shift' has no effect with type 'multiply'"),
    ],
)
def test_a_reward_scaler_that_makes_no_sense_is_refused(values, text):
    with pytest.raises(InvalidInput) as caught:
        settings.build(RewardScaler(), values)
    assert text in str(caught.value)


@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_returns_are_those_of_the_transitions_of_the_training_episodes(continuous_store, holdout):
    learner = learner_of(continuous_store, reward_scaler="return", holdout=holdout)
    found = []
    for number in set(range(len(continuous_store))) - set(learner.holdout.tolist()):
        found.append(starting_rows(continuous_store, [number])[1].sum())
    assert 1 / float(learner.scalers.reward.scale) == pytest.approx(max(found) - min(found), rel=1e-12)


def test_a_column_of_scaled_rewards_holds_every_steps_own(continuous_store, monkeypatch):
    monkeypatch.setattr(statistics, "_ELEMENTS", 7)
    column = reward_column(reward_scaler({"type": "clip", "low": -0.5, "high": 0.25}), continuous_store)
    assert column.dtype == np.float32
    np.testing.assert_allclose(column, np.clip(continuous_store.column("reward"), -0.5, 0.25), rtol=1e-6)


def test_a_column_is_needed_where_a_sum_cannot_be_scaled_after_it_was_made():
    clip, multiply = reward_scaler({"type": "clip", "low": 0.0}), reward_scaler({"type": "multiply"})
    shift = reward_scaler({"type": "shift", "shift": 1.0})
    assert not needs_column(None)
    assert needs_column(clip)
    assert not needs_column(multiply, n_steps=5, gamma=1.0, whole_returns=True)
    assert not needs_column(shift, n_steps=5, gamma=0.99)
    assert needs_column(shift, n_steps=5, gamma=1.0)
    assert needs_column(shift, n_steps=1, gamma=0.99, whole_returns=True)


# --- Own scalers, checkpoints ---
OWN = """
import numpy as np
import torch

def fit(blocks, options):
    return {"most": max(np.abs(block).max() for block in blocks()) * options.get("factor", 1.0)}

def transform(x, parts):
    return torch.sign(x) * torch.log1p(x.abs()) / parts["most"]

def reverse(y, parts):
    return torch.sign(y) * torch.expm1(y.abs() * parts["most"])
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with two scalers, one of which cannot be imported, as pip would install it."""
    (tmp_path / "own_scalers.py").write_text(OWN)
    (tmp_path / "broken_scalers.py").write_text("import no_such_module_anywhere")
    folder = tmp_path / "own_scalers-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: own-scalers\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[offrl.scalers]\nlogarithm = own_scalers\nbroken = broken_scalers\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_scalers", None)


def test_an_installed_packages_scaler_is_listed_without_being_imported(installed):
    config = ALGORITHMS["td3_bc"].config
    for part in ("observation_scaler", "reward_scaler"):
        assert {"logarithm", "broken"} <= set(settings.describe(config)[f"{part}.type"].choices)
    assert "own_scalers" not in sys.modules
    with pytest.raises(InvalidInput, match=r"has no effect with observation_scaler.type 'standard'"):
        settings.build(config, {"observation_scaler.options.factor": 2})


def test_an_installed_packages_scaler_trains_goes_through_a_checkpoint_and_into_the_policy(installed, continuous_store, tmp_path):
    values = {"observation_scaler": "logarithm", "observation_scaler.options": {"factor": 2}, "reward_scaler": "logarithm"}
    learner = learner_of(continuous_store, **values)
    learner.run(2)
    rows, received = starting_rows(continuous_store, range(len(continuous_store)))
    parts = learner.scalers.tensors()
    assert float(parts["observation.observation.most"]) == pytest.approx(2 * np.abs(rows).max(), rel=1e-12)
    assert float(parts["reward.most"]) == pytest.approx(np.abs(received).max(), rel=1e-12)
    learner.save(tmp_path / "c.safetensors")
    other = learner_of(continuous_store, **values)
    for tensor in other.scalers.tensors().values():
        tensor.fill_(7.0)
    other.restore(tmp_path / "c.safetensors")
    assert {n: t.tolist() for n, t in other.scalers.tensors().items()} == {n: t.tolist() for n, t in parts.items()}
    policy, raw = learner.policy(0), torch.from_numpy(rows[:4]).float()
    seen = torch.sign(raw) * torch.log1p(raw.abs()) / parts["observation.observation.most"].float()
    params = {name: value[0].float() for name, value in learner.state.params.items()}
    torch.testing.assert_close(policy(raw), 2 * learner.nets.actor(params, seen), rtol=1e-5, atol=1e-6)
    metadata = {"space": learner.space}
    assert export_policy(policy, tmp_path / "p.onnx", observation=("float32", (3,)), discrete=False, metadata=metadata) < 1e-5


def test_a_package_that_cannot_be_imported_is_named(installed, continuous_store):
    with pytest.raises(InvalidInput, match=r"'broken' of 'offrl.scalers' cannot be loaded from broken_scalers: ModuleNotFoundError"):
        learner_of(continuous_store, observation_scaler="broken")


def test_an_unknown_field_is_answered_with_the_nearest():
    with pytest.raises(Unknown) as caught:
        fitted(ObservationScaler(fields={"camra": "pixel"}), {"camera": IMAGES, "arm": VECTORS})
    assert "did you mean 'camera'?" in caught.value.hint
