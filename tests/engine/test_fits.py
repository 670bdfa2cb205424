"""Checks of dataset and settings before training: actions that no policy can output, images too small for the filters."""

import gymnasium.spaces as spaces
import numpy as np
import pytest

from offrl.errors import InvalidInput
from offrl.spaces import action_converter, schema_of_spaces
from offrl_store import Field, Schema
from offrld import settings
from offrld.algos import get
from offrld.engine.learner.shapes import Shapes
from offrld.fits import check_fits, fitting, too_small

VECTOR = Field("float32", (3,))


@pytest.mark.parametrize(
    ("action", "metadata", "said"),
    [
        (Field("int64", (2,), low=0, high=[2, 3]), {"action_space": {"kind": "MultiDiscrete"}}, "2 choices at once (MultiDiscrete)"),
        (Field("int8", (2,), low=0, high=1), {"action_space": {"kind": "MultiBinary"}}, "2 choices at once (MultiBinary)"),
        (Field("bool", (2,)), {}, "2 choices at once (bool)"),
        (Field("int64", (), low=1, high=3), {}, "whole numbers from 1 to 3"),
        (Field("int64", ()), {}, "whole numbers from ? to ?"),
        (Field("float32", (), low=-1, high=1), {}, "actions have shape ()"),
        (Field("float32", (2, 2), low=-1, high=1), {}, "actions have shape (2, 2)"),
        (Field("int64", (), low=0, high=2**40), {}, "1099511627777 choices"),
        (Field("int64", (1,), low=0, high=2**25), {}, "lies between 0 and 33554432"),
        (Field("float64", (1,), low=1.7e9, high=1.7e9 + 1), {}, "lies between 1700000000 and 1700000001"),
        ({"a": VECTOR, "b": VECTOR}, {}, "several action fields (a, b)"),
    ],
)
def test_actions_that_no_policy_can_output_are_refused_in_one_line(action, metadata, said):
    with pytest.raises(InvalidInput) as refused:
        check_fits(Schema(VECTOR, action, metadata=metadata), {}, algorithm="td3_bc", actions="continuous")
    assert said in str(refused.value)
    assert refused.value.hint
    assert "\n" not in str(refused.value)


def test_actions_of_the_other_kind_are_refused():
    with pytest.raises(InvalidInput, match="'td3_bc' learns continuous actions, the dataset has discrete ones"):
        check_fits(Schema(VECTOR, Field("int64", (), low=0, high=2)), {}, algorithm="td3_bc", actions="continuous")
    with pytest.raises(InvalidInput, match="CartPole-v1 has discrete ones"):
        check_fits(Schema(VECTOR, Field("int64", (), low=0, high=2)), {}, algorithm="td3_bc", actions="continuous", whose="CartPole-v1")


@pytest.mark.parametrize("action", [Field("int64", (2,), low=0, high=10), Field("float32", (2,), low=-1, high=1), Field("float32", (2,))])
def test_vectors_of_numbers_are_accepted(action):
    check_fits(Schema(VECTOR, action), {}, algorithm="td3_bc", actions="continuous")


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 24, 32), (1, 3, 3), (1, 1, 1), (3, 30, 200)])
@pytest.mark.parametrize("fields", ["one", "several"])
def test_an_image_too_small_for_the_filters_is_refused_with_filters_that_fit(shape, fields):
    image = Field("uint8", shape)
    schema = Schema(image if fields == "one" else {"observation.image": image, "state": VECTOR}, Field("float32", (2,), low=-1, high=1))
    algorithm = get("rebrac")
    with pytest.raises(InvalidInput) as refused:
        check_fits(schema, settings.as_flat(algorithm.config), algorithm="rebrac", actions="continuous")
    assert f"{shape[1]} x {shape[2]} pixels" in str(refused.value)
    option, _, value = refused.value.hint.partition("--set ")[2].partition("=")
    numbers = [int(number) for number in value.strip("[]").split(",")]
    encoders = [name for name in settings.as_flat(algorithm.config) if name.endswith(".filters")]
    assert option in encoders
    mended = algorithm.configure(dict.fromkeys(encoders, numbers))
    check_fits(schema, settings.as_flat(mended), algorithm="rebrac", actions="continuous")
    space = Shapes.of(schema.observation, action_size=2).space
    algorithm.networks(mended, space)  # the networks say the same
    with pytest.raises(InvalidInput, match="too small for the filters"):
        algorithm.networks(algorithm.config, space)


def test_the_filters_named_as_an_example_fit_every_image():
    for height in range(1, 60):
        for width in (1, 2, height, 84):
            assert too_small(height, width, tuple(int(n) for n in fitting(height, width).strip("[]").split(","))) is None


# --- The environment's own actions ---
@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.Box(0, 10, (1,), np.int64), [6.99], [7]),
        (spaces.Box(-3, 3, (2,), np.int8), [-2.6, 2.4], [-3, 2]),
        (spaces.Box(0, 10, (2,), np.uint8), [-0.4, 300.0], [0, 10]),
        (spaces.Box(-(2**62), 2**62, (1,), np.int64), [1e30], [2**62]),
        (spaces.Box(-0.1, 0.1, (1,), np.float64), [0.1], [0.1]),
        (spaces.Box(-1, 1, (2, 2)), [0, 0.25, 0.5, 1], [[0, 0.25], [0.5, 1]]),
        (spaces.Box(0, 9, (2, 2), np.int32), [0.6, 1.4, 8.6, 9.4], [[1, 1], [9, 9]]),
        (spaces.MultiDiscrete([3, 4], start=[1, 0]), [0.2, 2.9], [1, 3]),
        (spaces.MultiBinary(2), [0.6, 0.4], [1, 0]),
    ],
)
def test_a_policy_s_numbers_become_the_nearest_action_of_the_environment(space, action, expected):
    action = np.array(action, np.float32)
    given = action_converter(space)(action)
    assert given.dtype == space.dtype
    assert given.tolist() == expected
    assert space.contains(given)
    batch = action_converter(space)(np.stack([action, action]))
    assert batch.tolist() == [expected, expected]


def test_a_choice_counts_from_the_start_of_the_space():
    convert = action_converter(spaces.Discrete(3, start=5))
    assert convert(2) == 7
    assert type(convert(2)) is np.int64
    assert convert(np.array([0, 2])).tolist() == [5, 7]


def test_a_vector_of_choices_is_marked_in_the_schema():
    schema = schema_of_spaces(spaces.Box(-1, 1, (3,)), spaces.MultiDiscrete([3, 4]), None)
    assert schema.metadata["action_space"] == {"kind": "MultiDiscrete"}
    with pytest.raises(InvalidInput, match="2 choices at once"):
        check_fits(schema, {}, algorithm="bc", actions="both")
